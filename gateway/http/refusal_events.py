"""Refusals as server-sent events, for routes whose clients read the body of a stream without looking at the status.

Status and headers stay those of the refusal. A client that accepts JSON and no events, or sends `Last-Event-ID`, gets
the JSON envelope. Libraries that send this header repeat the request after a response that is no event stream
(fetch-event-source) or has no status 200 (sse.js), and would take an event for the stream's end.
"""

from collections.abc import Callable, Mapping

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http import sse
from tailrace.gateway.http.error_responses import Envelope
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
        start: Message | None = None

        async def send_events(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                # Hold it: its headers have the length of the body, which comes in one message.
                start = message
                return
            if start is not None:
                problem = msgspec.json.decode(message["body"], type=Envelope).error
                headers = MutableHeaders(scope=start)
                retry_after = headers.get("retry-after")
                body = render(problem.code, problem.message, None if retry_after is None else int(retry_after))
                headers.update({"content-type": sse.MEDIA_TYPE, "content-length": str(len(body))})
                await send(start)
                message["body"] = body
            await send(message)

        await self._app(scope, receive, send_events)


def _wants_envelope(headers: Headers) -> bool:
    accept = accept_header(headers)
    return "last-event-id" in headers or (JSON in accept and sse.MEDIA_TYPE not in accept)
