"""Deferred responses: a stream is sent when the middleware, the router and the endpoint around it have returned.

An open stream would otherwise hold their frames, and each of its writes would pass their wrappers of `send`. The layers
see how the response begins, and an error whole. The body of a success goes directly to the server.
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http import error_responses
from tailrace.proto.errors import LogError, Refused

# The type of a message that no server knows. The layers pass it on: they only look at the types of ASGI.
DEFERRED = "tailrace.response.deferred"


async def defer(
    response: ASGIApp, scope: Scope, receive: Receive, send: Send, error_headers: Mapping[str, str]
) -> None:
    """Hands `response` over to the `send_deferred` around the layers, and returns before it is sent.

    What `response` raises before its body is a response with a status of its own, and has the `error_headers`.
    """
    # A reference in a list, so that the layers' `send` is released when the response has begun.
    layers = [send]

    async def respond(send_directly: Send) -> None:
        async def send_either(message: Message) -> None:
            if not layers:
                await send_directly(message)
                return
            await layers[0](message)
            if message["type"] == "http.response.start" and message["status"] < HTTPStatus.BAD_REQUEST:
                layers.clear()

        try:
            await response(scope, receive, send_either)
        except Exception as error:
            if not layers:
                raise
            if isinstance(error, Refused | LogError):
                failure = error_responses.render_error(error, scope, error_headers)
            else:
                failure = await error_responses.handle_unexpected_error(Request(scope), error)
            await failure(scope, receive, send_either)

    await send({"type": DEFERRED, "respond": respond})


def send_deferred(app: ASGIApp) -> ASGIApp:
    """Returns `app`, which sends a response that was deferred when everything in `app` has returned."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        deferred: list[Callable[[Send], Awaitable[None]]] = []

        async def send_or_take(message: Message) -> None:
            if message["type"] == DEFERRED:
                deferred.append(message["respond"])
            else:
                await send(message)

        await app(scope, receive, send_or_take)
        if deferred:
            await deferred.pop()(send)

    return respond
