"""A TCP proxy that cuts connections: in front of a gateway, where the reader's network would break. Knows no HTTP.

`async with Cutting(port, seeded(7, 3, bytes_max=2000)) as proxy:`. The next cut is used up by the first connection on
which so many bytes have come back; when all are, the proxy lets everything through. A fault that did not happen
proves nothing, so a test ends with `assert proxy.left == []`.
"""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterable
from contextlib import suppress
from random import Random
from typing import Literal, NamedTuple, Self, cast

from tests.stopping import stop

# "On, and wait zero seconds": closing a socket then throws away what was not sent, and the peer is told by RST.
LINGER_NOT = struct.pack("ii", 1, 0)
BYTES_AT_ONCE = 65536


class Cut(NamedTuple):
    """Bytes of one connection that still reach the client, its response headers included, and how it then breaks."""

    after_bytes: int
    how: Literal["fin", "rst"] = "rst"


def seeded(seed: int, count: int, bytes_max: int, bytes_min: int = 0) -> list[Cut]:
    """Cuts at random places; the same seed gives the same."""
    random = Random(seed)
    return [Cut(random.randint(bytes_min, bytes_max), random.choice(("fin", "rst"))) for _ in range(count)]


class Cutting:
    """The proxy, on a port of its own. `left` are the cuts that have not happened, `connections` counts clients.

    Bytes that are `whole` are not cut through: what should go between two of them goes after them.
    """

    def __init__(self, port: int, cuts: Iterable[Cut] = (), *, whole: bytes = b"") -> None:
        self.left = list(cuts)
        self._whole = whole
        self.connections = 0
        self._to = port
        self._carrying: dict[asyncio.Task[None], StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Whoever is still there is cut off; nothing of the proxy is left when it returns."""
        await stop(self._server)
        carrying = dict(self._carrying)
        for task, client in carrying.items():
            task.cancel()
            client.transport.abort()
        await asyncio.gather(*carrying, return_exceptions=True)
        await are_closed(*carrying.values())

    def _accept(self, reader: StreamReader, client: StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._carry(reader, client))
        self._carrying[task] = client
        task.add_done_callback(self._carrying.pop)

    async def _carry(self, reader: StreamReader, client: StreamWriter) -> None:
        """Until one side goes away, or the connection is cut; then both sides are closed."""
        try:
            back, server = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            client.transport.abort()
            return
        ways = {asyncio.create_task(pump(reader, server)), asyncio.create_task(self._answer(back, client))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before anything is awaited: the block may end just now, and cancel this.
            server.transport.abort()
            client.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await are_closed(server, client)

    async def _answer(self, back: StreamReader, client: StreamWriter) -> None:
        passed = 0
        with suppress(ConnectionError):
            while received := await back.read(BYTES_AT_ONCE):
                if self.left and passed <= self.left[0].after_bytes < passed + len(received):
                    cut = self.left.pop(0)
                    client.write(received[: self._place(received, cut.after_bytes - passed)])
                    await client.drain()
                    _break(client, cut.how)
                    return
                client.write(received)
                await client.drain()
                passed += len(received)

    def _place(self, received: bytes, place: int) -> int:
        """Where the cut goes that should go to `place`."""
        begin = received.find(self._whole, max(place - len(self._whole) + 1, 0))
        return begin + len(self._whole) if 0 <= begin < place else place


async def pump(reader: StreamReader, writer: StreamWriter) -> None:
    """Whatever comes, until no more does; a peer that is gone is the end as well."""
    with suppress(ConnectionError):
        while received := await reader.read(BYTES_AT_ONCE):
            writer.write(received)
            await writer.drain()


async def are_closed(*writers: StreamWriter) -> None:
    """Once they are; how they came to it does not matter."""
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


def _break(client: StreamWriter, how: Literal["fin", "rst"]) -> None:
    """What is written is sent; a FIN tells that no more comes, and looks like an end to who does not count."""
    if how == "fin":
        client.close()
        return
    # asyncio hands out a stand-in of the socket; its options are the socket's.
    sock = cast("socket.socket", client.get_extra_info("socket"))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    client.transport.abort()
