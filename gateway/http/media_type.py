"""The media types of a request body and of the response that the client accepts."""

from starlette.datastructures import Headers
from starlette.requests import Request

JSON = "application/json"
FORM = "multipart/form-data"


def media_type(request: Request) -> str:
    """Returns the `Content-Type` without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def accept_header(headers: Headers) -> str:
    """Returns the `Accept` header in lower case, because media types are compared so (RFC 9110, section 8.3.1)."""
    return headers.get("accept", "").lower()
