"""A link between two processes: a TCP proxy on loopback that fails as networks do. Knows no protocol.

What passes is not changed. What a failure did is counted, for one that nobody has felt proves nothing.
"""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections import Counter
from contextlib import suppress
from typing import Literal, Self, cast

from tests.harness.stop_server import stop

PIECE_BYTES = 65536
DELAY_S = 0.5
THROTTLED_BYTES_PER_S = 10_000
SLICE_BYTES = 250
# "On, and wait zero seconds": closing a socket then throws away what was not sent, and the peer is told by RST.
LINGER_NOT = struct.pack("ii", 1, 0)

Failure = Literal["cut", "blackhole", "deaf", "delay", "throttle"]
"""`cut`: RST, and nobody gets through. `blackhole`: nothing arrives, either way, and nobody is told. `deaf`: what the
server says is lost. `delay`: everything is half a second late. `throttle`: 10 kB a second."""


class Link:
    """`async with Link("g0 > nats-1", port) as link:` passes on to `port` what comes to `link.port`."""

    def __init__(self, name: str, to: int) -> None:
        self.name = name
        self.felt: Counter[Failure] = Counter()
        """By failure: bytes that felt it; of `cut`, connections."""
        self._to = to
        self._failure: Failure | None = None
        self._passes = asyncio.Event()
        self._passes.set()
        self._carrying: dict[asyncio.Task[None], list[StreamWriter]] = {}
        # Bytes of these were lost: what comes after would make no sense to whoever hears it.
        self._torn: set[StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._server)
        carrying = list(self._carrying)
        self._reset_all()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    @property
    def carries(self) -> int:
        """How many connections there are."""
        return len(self._carrying)

    def fail(self, failure: Failure) -> None:
        """From now on, until `mend`."""
        self._failure = failure
        if failure == "blackhole":
            self._passes.clear()
        if failure == "cut":
            self.felt["cut"] += self.carries
            self._reset_all()

    def mend(self) -> None:
        self._failure = None
        self._passes.set()
        for writer in self._torn:
            _reset(writer)
        self._torn.clear()

    def _reset_all(self) -> None:
        for writers in self._carrying.values():
            for writer in writers:
                _reset(writer)

    def _accept(self, reader: StreamReader, client: StreamWriter) -> None:
        if self._failure == "cut":
            self.felt["cut"] += 1
            _reset(client)
            return
        task = asyncio.create_task(self._carry(reader, client))
        self._carrying[task] = [client]
        task.add_done_callback(self._carrying.pop)

    async def _carry(self, reader: StreamReader, client: StreamWriter) -> None:
        """Until one side goes away, or both are reset."""
        try:
            await self._passes.wait()
            back, server = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            _reset(client)
            return
        if (me := asyncio.current_task()) is not None:
            self._carrying[me].append(server)
        ways = {
            asyncio.create_task(self._pass(reader, server, is_answer=False)),
            asyncio.create_task(self._pass(back, client, is_answer=True)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for writer in (server, client):
                self._torn.discard(writer)
                writer.close()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, from_: StreamReader, to: StreamWriter, *, is_answer: bool) -> None:
        with suppress(OSError):
            while piece := await from_.read(PIECE_BYTES):
                failure = self._failure
                if failure == "cut":
                    return
                if failure is not None and (failure != "deaf" or is_answer):
                    self.felt[failure] += len(piece)
                if failure == "deaf" and is_answer:
                    self._torn.add(to)
                if to in self._torn:
                    continue
                if failure == "delay":
                    await asyncio.sleep(DELAY_S)
                for _ in range(0, len(piece), SLICE_BYTES):
                    # It may be mended half-way.
                    if self._failure == "throttle":
                        await asyncio.sleep(SLICE_BYTES / THROTTLED_BYTES_PER_S)
                await self._passes.wait()
                to.write(piece)
                await to.drain()


def _reset(writer: StreamWriter) -> None:
    if not writer.transport.is_closing():
        # asyncio hands out a stand-in of the socket; its options are the socket's.
        sock = cast("socket.socket", writer.get_extra_info("socket"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    writer.transport.abort()
