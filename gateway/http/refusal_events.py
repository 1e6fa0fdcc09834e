"""Refusals as server-sent events, for routes whose clients read the body of a stream without looking at the status.

Status and headers stay those of the refusal. A client that accepts JSON and no events, or sends `Last-Event-ID`, gets
the JSON envelope. Libraries that send this header repeat the request after a response that is no event stream
(fetch-event-source) or has no status 200 (sse.js), and would take an event for the stream's end.
"""

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Scope

from tailrace.gateway.http import sse
from tailrace.gateway.http.media_type import JSON, accept_header

RenderRefusal = Callable[[str, str, int | None], bytes]
"""Returns the events for an error's code, its message, and the delay in seconds after which a retry may help."""


def renderer_of(scope: Scope) -> RenderRefusal | None:
    """Returns the function that renders a refusal of this request; None if its client gets the envelope.

    The application has the functions by path, each for a POST (app.py).
    """
    if "app" not in scope or scope["method"] != "POST":
        return None
    # An application without the routes of the gateway has none.
    render: RenderRefusal | None = getattr(scope["app"].state, "refusal_renderers", {}).get(scope["path"])
    return None if render is None or _wants_envelope(Headers(scope=scope)) else render


def _wants_envelope(headers: Headers) -> bool:
    accept = accept_header(headers)
    return "last-event-id" in headers or (JSON in accept and sse.MEDIA_TYPE not in accept)
