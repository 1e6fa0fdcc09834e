"""Refusals as server-sent events, for routes whose clients read the body of a stream without looking at the status.

Status and headers stay those of the refusal. A client gets the JSON envelope where that is what it can use: if it
accepts JSON and no events, or sends `Last-Event-ID`. Libraries that send it repeat the request after a response that is
no event stream (fetch-event-source) or has no status 200 (sse.js), and would take an event for the stream's end.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http import error_responses, sse
from tailrace.gateway.http.media_type import JSON, accepted

RenderRefusal = Callable[[str, str, float | None], bytes]
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
        refusal: Message | None = None

        async def send_events(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                # Sent with the body, whose length it has.
                refusal = message
            elif refusal is None:
                await send(message)
            else:
                headers = MutableHeaders(scope=refusal)
                # `error_responses` sends the envelope in one message.
                problem = msgspec.json.decode(message["body"], type=error_responses.Envelope).error
                after_s = headers.get("retry-after")
                body = render(problem.code, problem.message, None if after_s is None else float(after_s))
                headers.update({"content-type": sse.MEDIA_TYPE, "content-length": str(len(body))})
                await send(refusal)
                await send({**message, "body": body})

        await self._app(scope, receive, send_events)


def _wants_envelope(headers: Headers) -> bool:
    accept = accepted(headers)
    return "last-event-id" in headers or (JSON in accept and sse.MEDIA_TYPE not in accept)
