"""A proxy of a nats-server that loses single messages of the server, by a seed, and keeps the connection open.

By default it loses acknowledgements of appends: the writer receives none for an entry that is stored.
"""

import asyncio
import random
from contextlib import suppress
from typing import Self

from tests.harness.stop_server import stop

PIECE_BYTES = 65536
# What a stream of ours answers to an append that it has stored.
ACKNOWLEDGED = b'{"stream":"TURNS"'


class LossyLink:
    """`async with LossyLink(server.url, share=0.5) as link:` loses this share of the messages with `what`."""

    def __init__(self, url: str, *, share: float, what: bytes = ACKNOWLEDGED) -> None:
        self._before, _, port = url.rpartition(":")
        self._to = int(port)
        self._chance = random.Random(7)
        self._what = what
        self.share = share
        self.lost = 0

    async def __aenter__(self) -> Self:
        self._carrying: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"{self._before}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._server)
        for task in tuple(self._carrying):
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        ways = [asyncio.create_task(way) for way in (self._forward(reader, back), self._forward_frames(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in (writer, back):
                side.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, from_: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while piece := await from_.read(PIECE_BYTES):
            to.write(piece)
            await to.drain()

    async def _forward_frames(self, from_: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Reads frames of the NATS protocol: a line, and after MSG and HMSG as many bytes as the line says."""
        with suppress(asyncio.IncompleteReadError):
            while True:
                frame = await from_.readuntil(b"\r\n")
                if frame.startswith((b"MSG ", b"HMSG ")):
                    payload = await from_.readexactly(int(frame.split()[-1]) + 2)
                    frame += payload
                    if self._what in frame and self._chance.random() < self.share:
                        self.lost += 1
                        continue
                to.write(frame)
                await to.drain()
