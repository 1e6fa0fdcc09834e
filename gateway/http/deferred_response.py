"""Deferred responses: a stream is sent when the middleware, the router and the endpoint around it have returned.

An open stream would otherwise hold their frames, and each of its writes would pass their wrappers of `send`. The layers
see the start message of a success, and every message of an error. The body of a success goes directly to the server
(StreamedResponse in streaming/response.py).
"""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http import error_responses
from tailrace.proto.errors import Refused

# The type of a message that no server knows, whose `respond` sends the response. The layers pass it on: they only look
# at the types of ASGI.
DEFERRED = "tailrace.response.deferred"
INTERRUPTED = "this gateway is shutting down, and the request may have had an effect: check it, or repeat the request"


def send_deferred(app: ASGIApp, on_start: Callable[[Message], None] = lambda _: None) -> ASGIApp:
    """Returns an application that calls `app`, and sends its deferred response after `app` has returned.

    `on_start` may change the message with the status and the headers of each response. A request that is cancelled
    before its response has begun is refused with `draining`.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        deferred: Callable[[Send], Awaitable[None]] | None = None
        is_begun = False

        async def send_or_keep(message: Message) -> None:
            nonlocal deferred, is_begun
            if message["type"] == DEFERRED:
                deferred = message["respond"]
                return
            if message["type"] == "http.response.start":
                is_begun = True
                on_start(message)
            await send(message)

        try:
            await app(scope, receive, send_or_keep)
        except asyncio.CancelledError:
            # uvicorn cancels the requests that outlast its stop, and would answer 500.
            if is_begun:
                raise
            # A client must not repeat a POST by itself, unless it has a key.
            may_repeat = scope["method"] != "POST" or b"idempotency-key" in dict(scope["headers"])
            refusal = Refused("draining", INTERRUPTED, retry_after_s=1, may_repeat=may_repeat)
            await error_responses.render_error(refusal, scope)(scope, receive, send_or_keep)
        if deferred is not None:
            await deferred(send)

    return respond
