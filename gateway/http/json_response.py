"""JSON responses with `Cache-Control: no-store`."""

import msgspec
from starlette.responses import Response


def json_response(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a JSON response that no cache stores."""
    no_store = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(content), status, no_store, "application/json")
