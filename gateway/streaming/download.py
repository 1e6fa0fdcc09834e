"""A response whose body is made while it is sent, piece by piece.

A body that fails in the middle lacks its last chunk, so that clients do not take it for complete. A download counts as
one reader of its principal.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial

from starlette.types import Receive, Scope, Send

from tailrace.gateway.http.deferred_response import StreamedResponse, body
from tailrace.gateway.streaming.endings import BROKEN, WHOLE, StreamEnding
from tailrace.gateway.streaming.reader import Reader
from tailrace.gateway.streaming.response import serve
from tailrace.proto.errors import LogError, Refused


class Download(StreamedResponse):
    """A slow client holds one piece in memory, and a revoked credential ends the download."""

    def __init__(
        self,
        reader: Reader,
        pieces: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        *,
        is_stream: bool = False,
    ) -> None:
        """`is_stream`: the download also counts against the limit `streams`, because its pieces are costly."""
        super().__init__(headers)
        self._reader = reader
        self._pieces = pieces
        self._is_stream = is_stream

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._reader.open(receive, None), aclosing(self._pieces):
            if self._is_stream:
                await self._reader.acquire()
            await self.begin(send, 200)
            if scope["method"] == "HEAD" or await serve(self._reader, partial(self._send_piece, send)) is WHOLE:
                await send(body(b"", more=False))

    async def _send_piece(self, send: Send) -> StreamEnding | bool:
        try:
            data = await anext(self._pieces, None)
        except (LogError, Refused):
            return BROKEN
        if data is None:
            return WHOLE
        await send(body(data, more=True))
        return True
