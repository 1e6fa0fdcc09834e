"""A TCP proxy on loopback that fails like a network, and counts what each failure has affected."""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections import Counter
from contextlib import suppress
from typing import Literal, Self, cast

from tests.harness.stop_server import stop

PIECE_BYTES = 65536
THROTTLED_BYTES_PER_S = 10_000
SLICE_BYTES = 250
# SO_LINGER on with 0 seconds: closing the socket drops unsent data and sends RST.
LINGER_0 = struct.pack("ii", 1, 0)

Failure = Literal["cut", "blackhole", "deaf", "delay", "throttle"]
"""`cut`: RST, and new connections are reset. `blackhole`: nothing arrives in either direction. `deaf`: what the server
sends is lost. `delay`: all data is `delay_s` late, or up to twice as much. `throttle`: 10 kB a second."""


class Proxy:
    """`async with Proxy("g0 > nats-1", port) as proxy:` forwards connections to `proxy.port` to `port`."""

    def __init__(self, name: str, to: int) -> None:
        self.name = name
        self.affected: Counter[Failure] = Counter()
        """Bytes by failure; connections of `cut`."""
        self.delay_s = 0.5
        self.held_back = 0
        """New connections during a `blackhole`."""
        self.to = to
        """The port of the server."""
        self._failure: Failure | None = None
        self._can_pass = asyncio.Event()
        self._can_pass.set()
        self._forwarding: dict[asyncio.Task[None], list[StreamWriter]] = {}
        # Connections that have lost bytes.
        self._incomplete: set[StreamWriter] = set()

    @classmethod
    def in_front_of(cls, url: str) -> Self:
        """Returns a proxy of the server at `url`; `url_of(url)` is its own address."""
        return cls(url, int(url.rpartition(":")[2]))

    def url_of(self, url: str) -> str:
        """Returns `url` with the proxy's port."""
        return f"{url.rpartition(':')[0]}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._server)
        carrying = list(self._forwarding)
        self._reset_all()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    @property
    def open_connections(self) -> int:
        return len(self._forwarding)

    def fail(self, failure: Failure) -> None:
        """Fails until `mend`."""
        self._failure = failure
        if failure == "blackhole":
            self._can_pass.clear()
        if failure == "cut":
            self.affected["cut"] += self.open_connections
            self._reset_all()

    def restore(self) -> None:
        self._failure = None
        self._can_pass.set()
        for writer in self._incomplete:
            reset(writer)
        self._incomplete.clear()

    def _reset_all(self) -> None:
        for writers in self._forwarding.values():
            for writer in writers:
                reset(writer)

    def _accept(self, reader: StreamReader, client: StreamWriter) -> None:
        if self._failure == "cut":
            self.affected["cut"] += 1
            reset(client)
            return
        self.held_back += self._failure == "blackhole"
        task = asyncio.create_task(self._forward(reader, client))
        self._forwarding[task] = [client]
        task.add_done_callback(self._forwarding.pop)

    async def _forward(self, reader: StreamReader, client: StreamWriter) -> None:
        """Forwards one connection until one side closes it, or both are reset."""
        try:
            await self._can_pass.wait()
            back, server = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            reset(client)
            return
        if (me := asyncio.current_task()) is not None:
            self._forwarding[me].append(server)
        ways = {
            asyncio.create_task(self._copy(reader, server, is_answer=False)),
            asyncio.create_task(self._copy(back, client, is_answer=True)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for writer in (server, client):
                self._incomplete.discard(writer)
                writer.close()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _copy(self, from_: StreamReader, to: StreamWriter, *, is_answer: bool) -> None:
        with suppress(OSError):
            while piece := await from_.read(PIECE_BYTES):
                failure = self._failure
                if failure == "cut":
                    return
                if failure is not None and (failure != "deaf" or is_answer):
                    self.affected[failure] += len(piece)
                if failure == "deaf" and is_answer:
                    self._incomplete.add(to)
                if to in self._incomplete:
                    continue
                if failure == "delay":
                    await asyncio.sleep(self.delay_s)
                for _ in range(0, len(piece), SLICE_BYTES):
                    if self._failure == "throttle":
                        await asyncio.sleep(SLICE_BYTES / THROTTLED_BYTES_PER_S)
                await self._can_pass.wait()
                to.write(piece)
                await to.drain()


def reset(writer: StreamWriter) -> None:
    """Closes with RST, also without unsent data."""
    if not writer.transport.is_closing():
        # asyncio returns a wrapper of the socket.
        sock = cast("socket.socket", writer.get_extra_info("socket"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    writer.transport.abort()
