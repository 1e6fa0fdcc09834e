"""A proxy of a nats-server that loses single messages of the server, by a seed, and keeps the connection open.

By default it loses acknowledgements of appends: the writer receives none for an entry that is stored.
"""

import asyncio
import random
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from typing import Self

from tests.harness.cutting_proxy import Cutting

# What a stream of ours answers to an append that it has stored.
ACKNOWLEDGED = b'{"stream":"TURNS"'


class LossyLink(Cutting):
    """`async with LossyLink(server.url, share=0.5) as link:` loses this share of the messages with `what`."""

    def __init__(self, url: str, *, share: float, what: bytes = ACKNOWLEDGED) -> None:
        self._before, _, port = url.rpartition(":")
        super().__init__(int(port))
        self._chance = random.Random(7)
        self._what = what
        self.share = share
        self.lost = 0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.url = f"{self._before}:{self.port}"
        return self

    async def _answer(self, back: StreamReader, client: StreamWriter) -> None:
        """Reads frames of the NATS protocol: a line, and after MSG and HMSG as many bytes as the line says."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frame = await back.readuntil(b"\r\n")
                if frame.startswith((b"MSG ", b"HMSG ")):
                    frame += await back.readexactly(int(frame.split()[-1]) + 2)
                    if self._what in frame and self._chance.random() < self.share:
                        self.lost += 1
                        continue
                client.write(frame)
                await client.drain()
