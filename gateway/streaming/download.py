"""A response whose body is made while it is sent, piece by piece.

A body that fails in the middle lacks its last chunk, so that clients do not take it for complete. A download counts as
one of its principal's streams.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from starlette.types import Receive, Scope, Send

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.streaming.response import Interruptions, StreamedResponse, body
from tailrace.gateway.streaming.stream_context import StreamContext
from tailrace.proto.errors import LogError, Refused


class Download(StreamedResponse):
    """A slow client holds one piece in memory, and a revoked credential ends the download."""

    def __init__(
        self,
        streams: StreamContext,
        request: ApiRequest,
        pieces: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        *,
        is_stream: bool = False,
    ) -> None:
        """`is_stream`: it counts against the limit `streams` of the principal, as its pieces are costly."""
        super().__init__(headers)
        self._authenticator = streams.authenticator
        self._principal = request.principal
        self._permit = streams.permit(request, request.principal)
        self._pieces = pieces
        self._is_stream = is_stream

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._permit.enter()
            if self._is_stream:
                await self._permit.acquire()
            with self._authenticator.watch(self._principal) as expired:
                async with Interruptions(receive, None, expired) as interruptions:
                    await interruptions.run(self._write(send, is_head=scope["method"] == "HEAD"))
        finally:
            await self._permit.release()

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
