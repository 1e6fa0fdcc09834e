"""The media type of a request body."""

from starlette.requests import Request

JSON = "application/json"
FORM = "multipart/form-data"


def media_type(request: Request) -> str:
    """Returns the `Content-Type` without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
