"""A TCP proxy in front of the simulated Claude that notes when each word passes. It changes nothing."""

import asyncio
import re
import time
from typing import Self

# The simulated Claude's words: the tag that names the turn, and the number of the word.
WORD = re.compile(rb"([a-z]+)(\d{6})")


class Tap:
    """`passed[(tag, number)]` is the monotonic time in seconds at which the model's delta went by."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.passed: dict[tuple[bytes, bytes], float] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        asked = asyncio.create_task(_pump(reader, up_writer))
        try:
            while chunk := await up_reader.read(65536):
                now = time.monotonic()
                for match in WORD.finditer(chunk):
                    self.passed.setdefault((match[1], match[2]), now)
                writer.write(chunk)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            # asyncio's streams complain of a connection that is cancelled at the end of the run.
            pass
        finally:
            asked.cancel()
            up_writer.close()
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass
