"""Three nats-servers that are one, on loopback: for what a single server cannot show."""

import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL
from typing import Self

import msgspec

from deploy import port
from deploy.nats_server import Site, answers, choose, command, config
from deploy.process import signal_group, spawn
from proto.errors import LogUnavailable
from proto.log import Connection, streams
from tests.until import until

NODES = 3
GIB = 1024**3


class Node:
    """One server of a cluster."""

    def __init__(self, name: str, site: Site, routes: list[int], route: int) -> None:
        self.site = site
        others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes if other != route)
        self.config = config(site).replace("server_name: tailrace", f"server_name: {name}") + (
            f'cluster {{ name: tailrace, listen: "127.0.0.1:{route}", no_advertise: true, routes: [{others}] }}\n'
        )

    async def __aenter__(self) -> Self:
        start = command(self.site)
        (self.site.folder / "nats.conf").write_text(self.config)
        with (self.site.folder / "nats.log").open("ab") as log:
            self.process = await spawn(start, {}, log.fileno())
        return self

    async def __aexit__(self, *_: object) -> None:
        signal_group(self.process, SIGKILL)
        await self.process.wait()


class Cluster:
    """`async with Cluster(folder) as cluster:` has all streams in three copies; `cluster.urls`, one for each node."""

    def __init__(self, folder: Path) -> None:
        token, routes = secrets.token_hex(16), port.free(NODES)
        self.nodes = [self._node(folder / f"node-{number}", token, routes, number) for number in range(NODES)]
        self.urls = [node.site.url for node in self.nodes]
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as starting:
            for node in self.nodes:
                await starting.enter_async_context(node)
            for node in self.nodes:
                await answers(node.site.port)
            connection = await Connection.open(self.urls[0], "test-streams")
            starting.push_async_callback(connection.close)
            # Answers come before the three have found each other and chosen a leader.
            await until(lambda: _applied(connection), deadline_s=20)
            self._running = starting.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()

    @staticmethod
    def _node(folder: Path, token: str, routes: list[int], number: int) -> Node:
        folder.mkdir()
        site = msgspec.structs.replace(choose(folder, sync="default", file_bytes_max=GIB), token=token)
        return Node(f"node-{number}", site, routes, routes[number])


async def _applied(connection: Connection) -> bool:
    try:
        await streams.apply(connection, replicas=NODES, bytes_max=GIB // 4)
    except LogUnavailable:
        return False
    return True
