"""A power cut, at once and for all servers: what was acknowledged is there, and with NATS's own default it is not.

The servers' disks are files, and a cut leaves what those hold at that moment. That the default loses shows that the
test would notice.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL

import nats.errors
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.options import Sync
from tailrace.proto.errors import LogError
from tailrace.proto.ids import Seq, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.subjects import STREAM, TurnKey
from tests.conftest import apply_streams
from tests.harness.disk import Disk, disk, needs_mount
from tests.harness.freeze import freeze
from tests.harness.nats_cluster import Cluster
from tests.harness.turn_writer import Writer
from tests.harness.until import until

TURNS = 40
ENTRIES = 10
BACK_S_MAX = 25.0

pytestmark = [
    needs_mount,
    pytest.mark.timeout(120),
    # nats-py leaves its socket to a frozen server to the garbage collector.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
    ),
]


async def acknowledged(log: TurnLog) -> list[tuple[TurnKey, Seq]]:
    """What was stored, as its writers were told."""

    async def write() -> list[tuple[TurnKey, Seq]]:
        writer = Writer(log, TurnKey(Tenant("t"), TurnId(new_id())))
        stored = [await writer.ask()]
        await writer.begin()
        for number in range(ENTRIES):
            await writer.say(f" {number}")
            stored.append(writer.chain.last)
        return [(writer.key, seq) for seq in stored]

    return [told for of_turn in await asyncio.gather(*(write() for _ in range(TURNS))) for told in of_turn]


async def cut(nodes: Sequence[NatsServer], disks: Sequence[Disk]) -> None:
    """Power is lost, for all of them at the same moment, and comes back."""
    for node in nodes:
        freeze(node)
    await asyncio.gather(*(asyncio.to_thread(one.copy) for one in disks))
    for node in nodes:
        await node.stop(SIGKILL)
    for one in disks:
        one.cut()
    await asyncio.gather(*(node.start() for node in nodes))


async def lost(url: str, told: Sequence[tuple[TurnKey, Seq]]) -> int:
    """How much of what was acknowledged is not there; all of it when there is no log any more."""
    connection = await Connection.open(url, "test")
    try:
        log = TurnLog(connection)

        async def is_back() -> bool:
            try:
                return (await connection.jetstream.stream_info(STREAM)).config.name == STREAM
            except nats.errors.Error:
                return False

        try:
            await until(is_back, BACK_S_MAX)
            there = {(key, stored.seq) for key in {key for key, _ in told} for stored in await log.replay(key)}
        except (AssertionError, LogError):
            there = set()
        return len(set(told) - there)
    finally:
        await connection.close()


async def written(url: str) -> list[tuple[TurnKey, Seq]]:
    connection = await Connection.open(url, "test")
    try:
        return await acknowledged(TurnLog(connection))
    finally:
        await connection.close()


@pytest.mark.rule("F11")
@pytest.mark.parametrize("sync", ["always", "default"])
async def test_what_one_server_acknowledged_outlives_a_power_cut(tmp_path: Path, sync: Sync) -> None:
    """ADR 9: `always`, which `up` has, loses nothing; the default loses what its two minutes hold."""
    there = tmp_path / "disk"
    there.mkdir()
    async with AsyncExitStack() as stack:
        own = stack.enter_context(disk(tmp_path, there))
        server = await stack.enter_async_context(NatsServer(there, sync=sync))
        await apply_streams(server.url)
        own.flush()
        told = await written(server.url)
        await cut([server], [own])
        gone = await lost(server.url, told)
    print(f"\n{sync}: {gone} of {len(told)} lost")
    assert (gone > 0) is (sync == "default")


@pytest.mark.rule("F11")
@pytest.mark.parametrize("sync", ["always", "default"])
async def test_what_three_servers_acknowledged_outlives_a_power_cut_of_all(tmp_path: Path, sync: Sync) -> None:
    """Three copies in three page caches are none."""
    cluster = Cluster(tmp_path, sync=sync)
    async with AsyncExitStack() as stack:
        disks = [stack.enter_context(disk(tmp_path, node.spec.directory)) for node in cluster.nodes]
        await stack.enter_async_context(cluster)
        for one in disks:
            one.flush()
        told = await written(cluster.url)
        await cut(cluster.nodes, disks)
        gone = await lost(cluster.url, told)
    print(f"\n{sync}, three: {gone} of {len(told)} lost")
    assert (gone > 0) is (sync == "default")
