"""A TCP proxy that can be cut, or drop what the server sends."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Self

from tests.harness.stop_server import stop

PIECE_BYTES = 65536


class Wire:
    """`async with Wire(server.url) as wire:` forwards connections to `wire.url` to the server."""

    def __init__(self, url: str) -> None:
        self._before, _, port = url.rpartition(":")
        self._to = int(port)
        self.url = ""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.is_deaf = False
        """While true, bytes from the server are dropped."""
        self.lost = bytearray()
        self.is_cut = False
        """While true, no connection is forwarded."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        self.url = f"{self._before}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await stop(self._server)
        self.cut()

    def cut(self) -> None:
        """Closes every connection and refuses new ones until `mend`."""
        self.is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self.is_cut = self.is_deaf = False

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        with ExitStack() as leaving, suppress(OSError):
            leaving.callback(self._leave, writer)
            self._writers.add(writer)
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            leaving.callback(self._leave, back)
            self._writers.add(back)
            if not writer.transport.is_closing():
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, back, lambda: False))
                    group.create_task(self._pass(there, writer, lambda: self.is_deaf))

    def _leave(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        self._writers.discard(writer)

    async def _pass(self, from_: asyncio.StreamReader, to: asyncio.StreamWriter, is_lost: Callable[[], bool]) -> None:
        try:
            while piece := await from_.read(PIECE_BYTES):
                if is_lost():
                    self.lost += piece
                    continue
                to.write(piece)
                await to.drain()
        except OSError:
            pass
        finally:
            to.transport.abort()
