"""Refusals as server-sent events, for routes whose clients read the body of a stream without looking at the status.

Status and headers stay those of the refusal. A client gets the JSON envelope where that is what it can use: if it
accepts JSON and no events, or sends `Last-Event-ID`. Libraries that send it repeat the request after a response that is
no event stream (fetch-event-source) or has no status 200 (sse.js), and would take an event for the stream's end.
"""

from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http import sse
from tailrace.gateway.http.error_responses import REFUSAL, ErrorResponse
from tailrace.gateway.http.media_type import JSON, accept_header

RenderRefusal = Callable[[str, str, int | None], bytes]
"""Returns the events for an error's code, its message, and the delay in seconds after which a retry may help."""


class RefusalEvents:
    """ASGI middleware. `renderers` has the function for each path whose POST is refused with events."""

    def __init__(self, app: ASGIApp, renderers: Mapping[str, RenderRefusal]) -> None:
        self._app = app
        self._renderers = renderers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        render = self._renderers.get(scope["path"])
        if render is None or scope["method"] != "POST" or _wants_envelope(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        body: bytes | None = None

        async def send_events(message: Message) -> None:
            nonlocal body
            refusal: ErrorResponse | None = message.pop(REFUSAL, None)
            if refusal is not None:
                body = render(refusal.problem.code, refusal.problem.message, refusal.retry_after_s)
                headers = {"content-type": sse.MEDIA_TYPE, "content-length": str(len(body))}
                MutableHeaders(scope=message).update(headers)
            elif body is not None:
                message["body"] = body
            await send(message)

        await self._app(scope, receive, send_events)


def _wants_envelope(headers: Headers) -> bool:
    accept = accept_header(headers)
    return "last-event-id" in headers or (JSON in accept and sse.MEDIA_TYPE not in accept)
