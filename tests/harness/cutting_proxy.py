"""A TCP proxy that cuts connections after a given number of response bytes.

`async with Cutting(port, seeded(7, 3, bytes_max=2000)) as proxy:`. The first connection that returns enough bytes uses
the next cut; after the last cut the proxy forwards everything. A test ends with `assert proxy.left == []`, which
proves that every cut happened.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterable
from contextlib import suppress
from random import Random
from typing import Literal, NamedTuple, Self

from tests.harness.proxy import reset
from tests.harness.stop_server import stop

BYTES_AT_ONCE = 65536


class Cut(NamedTuple):
    """A cut: the number of response bytes, headers included, that still reach the client, then FIN, RST or silence."""

    after_bytes: int
    how: Literal["fin", "rst", "silence"] = "rst"


def random_cuts(seed: int, count: int, bytes_max: int, bytes_min: int = 0) -> list[Cut]:
    """Returns cuts at random positions; the same seed gives the same cuts."""
    random = Random(seed)
    return [Cut(random.randint(bytes_min, bytes_max), random.choice(("fin", "rst"))) for _ in range(count)]


class Cutting:
    """The proxy, on its own port. `left` holds the cuts that have not happened; `connections` counts clients.

    New connections are forwarded to the port `to`.

    A cut never splits an occurrence of `whole`: it moves behind it.
    """

    def __init__(self, port: int, cuts: Iterable[Cut] = (), *, whole: bytes = b"") -> None:
        self.left = list(cuts)
        self._whole = whole
        self.connections = 0
        self.to = port
        self._carrying: dict[asyncio.Task[None], StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Aborts open connections; returns when all sockets and tasks of the proxy are closed."""
        await stop(self._server)
        carrying = dict(self._carrying)
        for task, client in carrying.items():
            task.cancel()
            client.transport.abort()
        await asyncio.gather(*carrying, return_exceptions=True)
        await are_closed(*carrying.values())

    def cut_all(self) -> None:
        """Resets all open connections, whatever was forwarded to them."""
        for client in self._carrying.values():
            reset(client)

    def _accept(self, reader: StreamReader, client: StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._forward(reader, client))
        self._carrying[task] = client
        task.add_done_callback(self._carrying.pop)

    async def _forward(self, reader: StreamReader, client: StreamWriter) -> None:
        """Forwards until one side closes or the connection is cut; then closes both sides."""
        try:
            back, server = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            client.transport.abort()
            return
        ways = {asyncio.create_task(pump(reader, server)), asyncio.create_task(self._answer(back, client))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before the first await: the block may end now and cancel this task.
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
                    client.write(received[: self._find_position(received, cut.after_bytes - passed)])
                    await client.drain()
                    if cut.how == "silence":
                        await asyncio.Event().wait()
                    if cut.how == "rst":
                        reset(client)
                    # Otherwise `_forward` sends FIN, a regular end to a client that does not count bytes.
                    return
                client.write(received)
                await client.drain()
                passed += len(received)

    def _find_position(self, received: bytes, place: int) -> int:
        """Returns the position of a cut wanted at `place`, behind an occurrence of `whole` around it."""
        begin = received.find(self._whole, max(place - len(self._whole) + 1, 0))
        return begin + len(self._whole) if 0 <= begin < place else place


async def pump(reader: StreamReader, writer: StreamWriter) -> None:
    """Copies until the end of the stream; a lost peer counts as the end."""
    with suppress(ConnectionError):
        while received := await reader.read(BYTES_AT_ONCE):
            writer.write(received)
            await writer.drain()


async def are_closed(*writers: StreamWriter) -> None:
    """Waits until the writers are closed; ignores their errors."""
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


class EventCutting(Cutting):
    """The proxy, which cuts one connection after `events` server-sent events, counted over all connections.

    `extra_bytes` of the next event still reach the client, if they have arrived.
    """

    def __init__(self, port: int, events: int, extra_bytes: int = 0) -> None:
        super().__init__(port)
        self.events_left = events
        self._extra_bytes = extra_bytes

    async def _answer(self, back: StreamReader, client: StreamWriter) -> None:
        with suppress(ConnectionError):
            while received := await back.read(BYTES_AT_ONCE):
                end = 0
                while self.events_left and (found := received.find(b"\n\n", end)) >= 0:
                    end = found + 2
                    self.events_left -= 1
                    if not self.events_left:
                        client.write(received[: end + self._extra_bytes])
                        await client.drain()
                        reset(client)
                        return
                client.write(received)
                await client.drain()
