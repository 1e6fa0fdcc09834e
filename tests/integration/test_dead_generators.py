"""Generators that watch one another: the turns of a killed one go on at once, and those of a live one stay its own.

tests/unit/test_peer_watch.py has the decisions. With the long leases of these tests, an expired lease would fail them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, SIGUSR2
from time import monotonic

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.peers import PeerLink
from tailrace.proto.subjects import GENERATORS
from tests.harness import processes
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import (
    append_request,
    read_attempts,
    read_stats,
    shorten_lease,
    wait_for_end,
    words,
)
from tests.harness.nats_cluster import Cluster
from tests.harness.own_system import OwnSystem
from tests.harness.processes import Process
from tests.harness.until import until

LEASE_S = 60.0
# A busy machine is given ten times as long as a quiet one needs.
TAKEN_OVER_S_MAX = 5.0
WATCHED_S = 1.5
LONG = "words=900 rate=60"


async def start(stack: AsyncExitStack, folder: Path, urls: Sequence[str], claude: str) -> list[Process]:
    """Starts a generator for each URL of NATS; returns when they watch one another."""
    found = [
        processes.generator(folder, url, claude, TAILRACE_GENERATOR=f"g{number}") for number, url in enumerate(urls)
    ]
    await asyncio.gather(*map(stack.enter_async_context, found))
    await asyncio.sleep(WATCHED_S)
    return found


async def attempt_of(log: TurnLog, key: TurnKey) -> int:
    """Returns the number of the generator of the only attempt at a turn."""
    (attempt,) = await until(lambda: read_attempts(log, key))
    return int(attempt.generator.partition("-")[0].removeprefix("g"))


async def start_turns(
    stack: AsyncExitStack, folder: Path, own: OwnSystem
) -> tuple[list[Process], list[TurnKey], list[int]]:
    """Starts three generators and six turns; returns them, and the number of each turn's generator."""
    generators = await start(stack, folder, [own.server.url] * 3, own.claude)
    keys = [await own.append_request(f"{LONG} tag=t{number}") for number in range(6)]
    return generators, keys, [await attempt_of(own.log, key) for key in keys]


def events(generators: Sequence[Process], event: str) -> int:
    return sum(len(generator.find_lines(event)) for generator in generators)


def assert_nothing_released(generators: Sequence[Process]) -> None:
    assert events(generators, "generator is gone: its leases are released") == 0
    assert events(generators, "another generator takes this one for dead") == 0


@pytest.mark.rule("R151")
@pytest.mark.rule("F1")
async def test_the_turns_of_a_killed_generator_are_continued_before_their_leases_expire(
    own: OwnSystem, tmp_path: Path
) -> None:
    await own.shorten_lease(LEASE_S)
    async with AsyncExitStack() as stack:
        generators, keys, holders = await start_turns(stack, tmp_path, own)
        dead = holders[0]
        await asyncio.sleep(0.5)
        killed_at = monotonic()
        generators[dead].signal(SIGKILL)
        own_turns = [key for key, holder in zip(keys, holders, strict=True) if holder == dead]

        async def are_continued() -> bool:
            return all([len(await own.attempts(key)) == 2 for key in own_turns])

        await until(are_continued)
        assert monotonic() - killed_at < TAKEN_OVER_S_MAX
        turns = [await own.wait_for_end(key) for key in keys]
        assert [turn.text for turn in turns] == [words(900, f"t{number}") for number in range(6)]
        assert [turn.attempt for turn in turns] == [2 if holder == dead else 1 for holder in holders]
        assert await own.calls() == len(keys) + len(own_turns)
        assert events(generators, "generator is gone: its leases are released") == 1
        assert events(generators, "another generator takes this one for dead") == 0


@pytest.mark.rule("R151")
@pytest.mark.rule("F3")
async def test_a_frozen_a_stopped_and_a_disconnected_generator_keep_their_leases(
    own: OwnSystem, tmp_path: Path
) -> None:
    """One is frozen for a second. Then nats-server is killed and restarted, three times; then one stops (SIGTERM)."""
    await own.shorten_lease(LEASE_S)
    async with AsyncExitStack() as stack:
        generators, keys, holders = await start_turns(stack, tmp_path, own)
        freeze(generators[holders[0]])
        await asyncio.sleep(1)
        generators[holders[0]].signal(SIGCONT)
        await asyncio.sleep(0.5)
        for _ in range(3):
            await own.server.stop(SIGKILL)
            await own.server.start()
            await asyncio.sleep(2.5)
        turns = [await own.wait_for_end(key) for key in keys]
        assert [(turn.outcome, turn.attempt) for turn in turns] == [("completed", 1)] * len(keys)
        assert await own.calls() == len(keys)
        await generators[0].stop(SIGTERM)
        await asyncio.sleep(1)
        assert_nothing_released(generators)


@pytest.mark.rule("R151")
async def test_a_nats_server_is_reached_until_it_ends_also_after_its_last_generator_has_gone(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        here, there = [await Connection.open(processes.as_user(url, GENERATORS), "test") for url in cluster.urls[:2]]
        link, server = PeerLink(here, "here"), PeerLink(there, "there").server
        assert server is not None
        await there.close()
        await asyncio.sleep(0.2)
        assert await link.is_reached(server, timeout_s=5)
        await cluster.nodes[1].stop(SIGKILL)
        await cluster.nodes[1].start()
        await until(cluster.is_whole, 60)
        # It is another start of the server.
        assert not await link.is_reached(server, timeout_s=0.3)
        await here.close()


async def kill_in_turn(cluster: Cluster) -> None:
    for node in cluster.nodes:
        await node.stop(SIGKILL)
        await asyncio.sleep(1)
        await node.start()
        await until(cluster.is_whole, 60)


async def server_of_generators(cluster: Cluster) -> NatsServer:
    """Returns a nats-server to which a generator is connected: they choose among several by chance."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        for node in cluster.nodes:
            listed = (await client.get(f"http://127.0.0.1:{node.spec.monitor_port}/connz")).json()
            if any(one.get("name") == "tailrace-generators" for one in listed["connections"]):
                return node
    raise AssertionError("no generator is connected")


async def end_one_in_lame_duck_mode(cluster: Cluster) -> None:
    """It disconnects its clients one by one, within 30 s, and lives on while it does."""
    node = await server_of_generators(cluster)
    node.signal(SIGUSR2)
    await asyncio.wait_for(node.process.wait(), 60)
    await node.start()
    await until(cluster.is_whole, 60)


@pytest.mark.rule("R151")
@pytest.mark.parametrize("fault", [kill_in_turn, end_one_in_lame_duck_mode])
async def test_generators_of_nats_servers_that_end_keep_their_leases(
    tmp_path: Path, fault: Callable[[Cluster], Awaitable[None]]
) -> None:
    """Each generator is connected to another server of a cluster first."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(tmp_path))
        claude = (await stack.enter_async_context(processes.simulated_claude(tmp_path))).url
        await shorten_lease(cluster.connection, LEASE_S)
        log = TurnLog(cluster.connection)
        urls = [",".join(cluster.urls[at:] + cluster.urls[:at]) for at in range(3)]
        generators = await start(stack, tmp_path, urls, claude)
        keys = [await append_request(log, f"words=1500 rate=25 tag=t{number}") for number in range(6)]
        for key in keys:
            await attempt_of(log, key)
        await fault(cluster)
        assert_nothing_released(generators)
        assert events(generators, "nats connection restored") >= 1
        turns = [await wait_for_end(log, key) for key in keys]
        assert [(turn.outcome, turn.attempt) for turn in turns] == [("completed", 1)] * len(keys)
        assert (await read_stats(claude))["calls"] == len(keys)
