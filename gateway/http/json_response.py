"""JSON responses with `Cache-Control: no-store`."""

from starlette.responses import Response

from tailrace.proto import long_strings, odd_json

NO_STORE = {"cache-control": "no-store"}


async def large_json_response(content: object) -> Response:
    """Returns `content`, which may have 32 MB, as `json_response` does; the event loop runs other tasks meanwhile."""
    body = b"".join(await long_strings.encode(content))
    return Response(body, headers=NO_STORE, media_type="application/json")


def json_response(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a JSON response that no cache stores."""
    return Response(odd_json.encode(content), status, NO_STORE | (headers or {}), "application/json")
