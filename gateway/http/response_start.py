"""Hook at the beginning of a response: sees, and may change, its status and headers before they are sent."""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def on_response_start(response: ASGIApp, call: Callable[[Message], None]) -> ASGIApp:
    """Returns `response`, which calls `call` with its `http.response.start` message."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                call(message)
            await send(message)

        await response(scope, receive, send_observed)

    return respond
