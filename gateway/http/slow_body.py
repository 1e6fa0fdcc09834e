"""How a body arrives: from a sender that keeps sending, or is not waited for. It looks into none.

However large a body may be, and however long it may take (`body_timeout_s`): each so many bytes of it have `STRETCH_S`
to come, or the rest of it has. Who falls silent, or lets it drip, would otherwise keep the room that its body has been
given (large.py). A body that waits for that room is not late: what counts is how long its sender is waited for.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.proto.errors import Refused

# A phone between two cells is silent for some seconds.
STRETCH_S = 15.0


class SlowBodyTimeout:
    """ASGI middleware. A sender below `rate_min` bytes a second is refused with `body_timeout`, where it is read."""

    def __init__(self, app: ASGIApp, rate_min: int) -> None:
        self._app = app
        self._rate_min = rate_min

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        is_awaited = True
        left_s, missing = STRETCH_S, STRETCH_S * self._rate_min

        async def receive_in_time() -> Message:
            nonlocal is_awaited, left_s, missing
            if not is_awaited:
                return await receive()
            began_s = loop.time()
            try:
                async with asyncio.timeout(left_s):
                    message = await receive()
            except TimeoutError as error:
                told = f"the body arrives too slowly: send {self._rate_min} bytes a second, and do not stop"
                raise Refused("body_timeout", told) from error
            is_awaited = message.get("more_body", False)
            left_s, missing = left_s - (loop.time() - began_s), missing - len(message.get("body", b""))
            if missing <= 0:
                left_s, missing = STRETCH_S, STRETCH_S * self._rate_min
            return message

        async def send_and_forget(message: Message) -> None:
            nonlocal is_awaited
            # Who answers without having read it only listens whether the client is there.
            is_awaited = False
            await send(message)

        await self._app(scope, receive_in_time, send_and_forget)
