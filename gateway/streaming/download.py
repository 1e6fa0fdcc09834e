"""A long body that is made while it is sent: piece by piece, until its end, or that of what its reader may.

One that breaks in the middle lacks the last chunk of its body, so that nobody takes it for the whole. Whoever reads one
has a place here, as whoever reads a stream has.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, nullcontext, suppress

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tailrace.gateway.dependencies import Gateway, caller_of
from tailrace.gateway.streaming.event_stream import begin, disconnected, piece
from tailrace.proto.errors import LogError, Refused


class Download:
    """The response. A slow client keeps one piece in memory and not all; a revoked one gets no more of them."""

    def __init__(
        self,
        gateway: Gateway,
        pieces: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        *,
        is_stream: bool = False,
    ) -> None:
        """`is_stream`: what it takes to make the pieces is bounded, as streams are, by its caller's limits."""
        self._gateway = gateway
        self._pieces = pieces
        self._headers = headers
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self._gateway.streams
        with streams.count_reader(scope):
            async with streams.hold_slots(scope) if self._is_stream else nullcontext():
                await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._gateway.door.watch(caller_of(Request(scope))) as ended:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(send, is_head=scope["method"] == "HEAD"))
                leaving = group.create_task(disconnected(receive))
                ending = group.create_task(ended.wait())
                over = (writing, leaving, ending)
                await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
                for task in over:
                    task.cancel()

    async def _write(self, send: Send, *, is_head: bool) -> None:
        await begin(send, 200, self._headers)
        if is_head:
            await send(piece(b"", more=False))
            return
        async with aclosing(self._pieces) as pieces:
            with suppress(LogError, Refused):
                async for data in pieces:
                    await send(piece(data, more=True))
                await send(piece(b"", more=False))
