"""Large bodies are let in a few at a time, and who finds no room in time is told to come again. It looks into none.

A route holds a body until it answers: as it came, as it was read, and as what was lifted out of it. So there is room
for so many bytes at once, and for one tenant's half of that: whoever sends slowly, or falls silent, shuts out nobody
else. It is taken when a body turns out to be large, which is after its sender has shown a key, and given back when the
answer begins, or before that: when the route has made an entry of the body, and waits for the model.

It is taken for all that a sender declares. Taken piece by piece, a crowd of halves would fill it and none could end.

What a route does with 30 MB (put the pieces together, read them as JSON) takes some 40 ms, in which every stream stands
still, and it cannot be done elsewhere: msgspec keeps the interpreter to itself. So of several that are there at once
one is handed over at a time, and the streams go on in between.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.turns.read_body import declared_bytes
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.byte_semaphore import ByteSemaphore

# Of bodies up to here as many are read as clients connect.
SMALL_BYTES_MAX = 256 * 1024
# In the scope: gives the room back.
LEAVE = "tailrace.large"


async def let_go(scope: Scope) -> None:
    """For an answer that waits: nobody holds the body of its request any more."""
    if (leave := scope.get(LEAVE)) is not None:
        await leave()


class LargeBodyLimit:
    """ASGI middleware. What a client does not declare counts as `body_bytes_max`."""

    def __init__(
        self, app: ASGIApp, bytes_max: int, body_bytes_max: int, timeout_s: float, whose: Callable[[Request], Tenant]
    ) -> None:
        """`bytes_max` is the room for all; `whose` says whose request it is, or raises Refused."""
        self._app = app
        self._room = ByteSemaphore(bytes_max)
        self._share_bytes_max = max(1, bytes_max // 2)
        self._shares: WeakValueDictionary[Tenant, ByteSemaphore] = WeakValueDictionary()
        self._body_bytes_max = body_bytes_max
        self._timeout_s = timeout_s
        self._whose = whose
        self._handing_over = asyncio.Lock()

    @property
    def free(self) -> int:
        """Bytes that nobody has taken."""
        return self._room.free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0
        is_large = is_let_go = False
        held = AsyncExitStack()

        async def receive_in_room() -> Message:
            nonlocal received, is_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > SMALL_BYTES_MAX and not (is_large or is_let_go):
                is_large = True
                await self._enter(held, Request(scope))
            if is_large and not (is_let_go or message.get("more_body")):
                async with self._handing_over:
                    await asyncio.sleep(0)
            return message

        async def leave() -> None:
            nonlocal is_let_go
            is_let_go = True
            await held.aclose()

        async def send_and_leave(message: Message) -> None:
            if not is_let_go:
                await leave()
            await send(message)

        scope[LEAVE] = leave
        async with held:
            await self._app(scope, receive_in_room, send_and_leave)

    async def _enter(self, held: AsyncExitStack, request: Request) -> None:
        """Takes room of the tenant's share, and then of all; raises Refused when there is none in time."""
        declared = declared_bytes(request.headers)
        size = self._body_bytes_max if declared is None else declared
        share = self._shares.setdefault(self._whose(request), ByteSemaphore(self._share_bytes_max))
        try:
            async with asyncio.timeout(self._timeout_s):
                await held.enter_async_context(share.reserve(size))
                await held.enter_async_context(self._room.reserve(min(size, self._share_bytes_max)))
        except TimeoutError as error:
            message = "too many large requests are being read at this moment: send it again"
            raise Refused("server_busy", message) from error
