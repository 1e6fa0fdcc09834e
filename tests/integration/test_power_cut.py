"""A power cut of all servers at once: acknowledged entries survive, and with the default of NATS they do not.

Each disk is a file, and a cut leaves the content that the file has at that moment. The loss with the default shows that
the test would notice one.
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
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import STREAM
from tests.conftest import apply_streams
from tests.harness.disk import Disk, mounted_disk, needs_mount
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


async def acknowledged_entries(url: str) -> list[tuple[TurnKey, Seq]]:
    """Writes turns; returns all acknowledged entries."""
    connection = await Connection.open(url, "test")
    log = TurnLog(connection)

    async def write() -> list[tuple[TurnKey, Seq]]:
        writer = Writer(log, TurnKey(Tenant("t"), TurnId(new_id())))
        stored = [await writer.store_request()]
        await writer.begin()
        for number in range(ENTRIES):
            await writer.store_texts(f" {number}")
            stored.append(writer.chain.last)
        return [(writer.key, seq) for seq in stored]

    try:
        return [entry for of_turn in await asyncio.gather(*(write() for _ in range(TURNS))) for entry in of_turn]
    finally:
        await connection.close()


async def cut_power(nodes: Sequence[NatsServer], disks: Sequence[Disk]) -> None:
    """Cuts the power of all servers at one moment, and starts them again."""
    for node in nodes:
        freeze(node)
    await asyncio.gather(*(asyncio.to_thread(one.copy) for one in disks))
    for node in nodes:
        await node.stop(SIGKILL)
    for one in disks:
        one.cut()
    await asyncio.gather(*(node.start() for node in nodes))


async def count_lost(url: str, entries: Sequence[tuple[TurnKey, Seq]]) -> int:
    """Returns how many of the entries are missing; all of them if the log does not exist any more."""
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
            there = {
                (key, stored.seq)
                for key in {key for key, _ in entries}
                for stored in await log.read_entries(ScopedKey.whole(key))
            }
        except (AssertionError, LogError):
            there = set()
        return len(set(entries) - there)
    finally:
        await connection.close()


@pytest.mark.rule("F11")
async def test_acknowledged_entries_of_one_server_survive_a_power_cut(tmp_path: Path) -> None:
    """With sync `always`, which `up` sets (ADR 9)."""
    there = tmp_path / "disk"
    there.mkdir()
    async with AsyncExitStack() as stack:
        own = stack.enter_context(mounted_disk(tmp_path, there))
        server = await stack.enter_async_context(NatsServer(there, sync="always"))
        await apply_streams(server.url)
        own.flush()
        entries = await acknowledged_entries(server.url)
        await cut_power([server], [own])
        assert await count_lost(server.url, entries) == 0


@pytest.mark.rule("F11")
@pytest.mark.parametrize("sync", ["always", "default"])
async def test_acknowledged_entries_of_three_servers_survive_a_power_cut_of_all(tmp_path: Path, sync: Sync) -> None:
    """With NATS's default, which syncs every two minutes, three copies in page caches are lost together."""
    cluster = Cluster(tmp_path, sync=sync)
    async with AsyncExitStack() as stack:
        disks = [stack.enter_context(mounted_disk(tmp_path, node.spec.directory)) for node in cluster.nodes]
        await stack.enter_async_context(cluster)
        for one in disks:
            one.flush()
        entries = await acknowledged_entries(cluster.url)
        await cut_power(cluster.nodes, disks)
        lost_count = await count_lost(cluster.url, entries)
    assert (lost_count > 0) is (sync == "default")
