"""A cluster of three nats-servers on loopback, configured as `tailrace up --cluster` does."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Self

import nats.errors
from nats.js.api import ClusterInfo

from tailrace.deploy.local import nats_cluster
from tailrace.deploy.local.nats_server import NatsServer, ServerSpec
from tailrace.deploy.local.options import Sync
from tailrace.deploy.nats import setup
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection
from tailrace.proto.subjects import STREAM
from tests.harness.until import until

NODES = nats_cluster.NODES
GIB = 1024**3
START_S_MAX = 20.0


class Cluster:
    """A cluster that runs for the length of the block, with all streams at three replicas.

    Tests may kill, freeze and restart its `nodes`; `urls` has one URL a node, `url` all of them.
    """

    def __init__(
        self, folder: Path, *, sync: Sync = "default", specs: Sequence[ServerSpec] = (), bytes_max: int = GIB // 4
    ) -> None:
        specs = specs or nats_cluster.new_specs(folder, sync=sync, file_bytes_max=GIB)
        for spec in specs:
            spec.directory.mkdir(parents=True, exist_ok=True)
        self.nodes = [NatsServer(spec.directory, spec=spec) for spec in specs]
        self._bytes_max = bytes_max
        self.urls = [node.url for node in self.nodes]
        self.url = ",".join(self.urls)
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as starting:
            for node in self.nodes:
                await starting.enter_async_context(node)
            self.connection = await Connection.open(self.url, "test-cluster")
            starting.push_async_callback(self.connection.close)
            # The servers answer requests before they have elected a leader.
            await until(lambda: _apply_streams(self.connection, self._bytes_max), START_S_MAX)
            self._running = starting.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()

    async def leader(self, stream: str = STREAM) -> NatsServer:
        """Waits until the stream has a leader and returns it."""
        info = await until(lambda: self._info(stream), START_S_MAX)
        return next(node for node in self.nodes if info is not None and node.spec.name == info.leader)

    async def followers(self, stream: str = STREAM) -> list[NatsServer]:
        leader = await self.leader(stream)
        return [node for node in self.nodes if node is not leader]

    async def step_down(self, stream: str = STREAM) -> None:
        """Makes the leader step down; returns when another server leads."""
        old = await self.leader(stream)
        await self.connection.client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=5)

        async def is_another() -> bool:
            return await self.leader(stream) is not old

        await until(is_another, START_S_MAX)

    async def is_whole(self) -> bool:
        """Whether all replicas are current and every consumer has a leader."""
        with suppress(LogUnavailable):
            return not await setup.lagging_servers(self.connection)
        return False

    async def kill_all(self) -> None:
        for node in self.nodes:
            node.signal(SIGKILL)
        await asyncio.gather(*(node.process.wait() for node in self.nodes))

    async def start_all(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes))

    async def _info(self, stream: str) -> ClusterInfo | None:
        # Only the leader answers.
        with suppress(nats.errors.Error):
            found = (await self.connection.jetstream.stream_info(stream)).cluster
            return found if found and found.leader else None
        return None


async def _apply_streams(connection: Connection, bytes_max: int) -> bool:
    try:
        await setup.apply(connection, replicas=NODES, bytes_max=bytes_max)
    except LogUnavailable:
        return False
    return True
