"""A response whose body is made while it is sent, piece by piece.

A body that fails in the middle lacks its last chunk, so that clients do not take it for complete. A download counts as
one of its principal's streams.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from starlette.types import Receive, Scope, Send

from tailrace.gateway.streaming.response import Interruptions, StreamedResponse, body
from tailrace.gateway.streaming.stream_access import StreamAccess
from tailrace.proto.errors import LogError, Refused


class Download(StreamedResponse):
    """A slow client holds one piece in memory, and a revoked credential ends the download."""

    def __init__(
        self,
        access: StreamAccess,
        pieces: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        *,
        is_stream: bool = False,
    ) -> None:
        """`is_stream`: it counts against the limit `streams` of the principal, as its pieces are costly."""
        super().__init__(headers)
        self._access = access
        self._pieces = pieces
        self._is_stream = is_stream

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._access.open() as expired, Interruptions(receive, None, expired) as interruptions:
            if self._is_stream:
                await self._access.permit.acquire()
            await interruptions.run(self._write(send, is_head=scope["method"] == "HEAD"))

    async def _write(self, send: Send, *, is_head: bool) -> None:
        await self.begin(send, 200)
        if is_head:
            await send(body(b"", more=False))
            return
        async with aclosing(self._pieces) as pieces:
            with suppress(LogError, Refused):
                async for data in pieces:
                    await send(body(data, more=True))
                await send(body(b"", more=False))
