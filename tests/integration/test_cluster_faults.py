"""Running turns during faults of a cluster of three servers.

The bars are those of FAULTS F7 to F10 and F12. A machine that runs other tests, too, is given twice as long, or as many
times as processes wait for each of its cores; `python -m benchmarks.cluster` measures them where nothing else runs.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from signal import SIGKILL
from time import monotonic

import httpx2
import pytest
import pytest_asyncio

from tailrace.deploy.nats import setup
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Connection, stream_configs
from tailrace.proto.subjects import GENERATORS, STREAM
from tests.harness import readers
from tests.harness.cluster_faults import FAULTS, Fault, freeze_the_gateways, kill_leader, kill_the_generators
from tests.harness.cluster_system import (
    HEARTBEAT_S,
    RESPONSE_S_MAX,
    ClusterSystem,
    Listener,
    PostResult,
    running_cluster,
)
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import wait_for_open_streams, words
from tests.harness.until import until

TURNS = 4
ALL = {"number": 100, "rate": 20}
# A kill and a freeze of a leader, and one of both at the server of each role. `benchmarks.cluster` has all faults.
TESTED = [fault for fault in FAULTS if fault not in (freeze_the_gateways, kill_the_generators)]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
    # nats-py leaves its socket to a frozen server to the garbage collector.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterSystem]:
    async with running_cluster(tmp_path_factory.mktemp("cluster")) as system:
        yield system


@pytest_asyncio.fixture(loop_scope="module")
async def system(shared_cluster: ClusterSystem) -> AsyncIterator[ClusterSystem]:
    """With three servers that are well, before each test."""
    await shared_cluster.wait_until_healed()
    yield shared_cluster
    await shared_cluster.wait_until_healed()


async def post_until(system: ClusterSystem, deadline: float) -> tuple[list[PostResult], TurnKey]:
    """Posts until a turn is accepted, as a client does after a 503."""
    posts: list[PostResult] = []
    while True:
        posted, key = await system.post("words=3 rate=0")
        posts.append(posted)
        if key is not None:
            return posts, key
        assert monotonic() < deadline, posts
        await asyncio.sleep(0.2)


def busy() -> float:
    """Returns how many times longer than alone a process takes, at least 2."""
    return max(2.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def has_continued(listener: Listener, count: int) -> bool:
    return listener.connected is not None or len(listener.deltas_at) > count


@pytest.mark.rule("F7")
@pytest.mark.rule("F8")
@pytest.mark.rule("F9")
@pytest.mark.rule("F10")
@pytest.mark.parametrize("fault", TESTED, ids=[fault.__name__ for fault in TESTED])
async def test_running_turns_are_completed_after_a_fault_of_a_server(system: ClusterSystem, fault: Fault) -> None:
    """Each reader keeps its connection and gets heartbeats; nothing acknowledged is lost, and no call is repeated."""
    bar_s, attempts, calls = FAULTS[fault], await system.attempts(), await system.calls()
    factor = busy()
    deadline_s = factor * bar_s
    async with system.streaming(TURNS, **ALL) as listeners:
        received = [len(listener.deltas_at) for listener in listeners]
        began = monotonic()
        await fault(system)
        posting = asyncio.create_task(post_until(system, began + deadline_s + RESPONSE_S_MAX))
        for listener, count in zip(listeners, received, strict=True):
            # Two deltas may have been on their way when the fault began.
            await until(partial(has_continued, listener, count + 2), deadline_s)
        posts, key = await posting
    assert {(post.status, post.code, post.retry_after) for post in posts[:-1]} <= {(503, "log_unavailable", "2")}
    await system.wait_until_healed()
    turns = []
    for listener in listeners:
        turn, verdict = await system.verdict(listener)
        assert verdict.is_green, verdict.evidence
        assert (turn.text, turn.outcome) == (listener.text, "completed")
        assert listener.connected is not None
        assert listener.connected.over == "ended"
        assert listener.data_pause_s(began) < 2.5 * factor * HEARTBEAT_S
        turns.append(turn)
    turns.append(await system.wait_for_end(key))
    assert (turns[-1].text, turns[-1].outcome) == (words(3), "completed")
    attempts, paid = await system.attempts() - attempts, await system.calls() - calls
    silence_s = max(listener.delta_pause_s(began) for listener in listeners)
    print(f"\n{fault.__name__}: silent for {silence_s:.1f} s at most, and the bar is {bar_s:g}; ", end="")
    print(f"{attempts} attempts of {len(turns)} turns, {paid} calls, {len(posts)} POSTs")
    assert paid <= attempts
    # A generator that gets no CPU time for two seconds loses its lease.
    assert all(turn.attempt <= factor for turn in turns)


@pytest.mark.rule("F7")
@pytest.mark.rule("F28")
async def test_turns_are_cancelled_while_the_log_has_no_leader(system: ClusterSystem) -> None:
    """Each turn gets one end, which its reader receives, and no call stays open."""
    async with system.streaming(TURNS, number=9000, rate=20) as listeners:
        first = asyncio.create_task(cancel(system, listeners[0].key))
        await kill_leader(system)
        cancelled = await asyncio.gather(first, *(cancel(system, listener.key) for listener in listeners[1:]))
        await wait_for_open_streams(system.claude.url, 0)
    await system.wait_until_healed()
    print(f"\n{[len(answers) for answers in cancelled]} answers")
    for listener, answers in zip(listeners, cancelled, strict=True):
        turn, verdict = await system.verdict(listener)
        assert verdict.is_green, verdict.evidence
        assert {answer.status_code for answer in answers[:-1]} <= {503}
        assert turn.ended_at is not None
        assert answers[-1].status_code == 200
        ended_at = datetime.fromisoformat(answers[-1].json()["ended_at"])
        assert (
            (answers[-1].json()["outcome"], ended_at) == (turn.outcome, turn.ended_at) == ("cancelled", turn.ended_at)
        )
        assert listener.connected is not None
        assert listener.connected.over == "ended"
        assert listener.text.startswith(turn.text)
        assert turn.text


async def cancel(system: ClusterSystem, key: TurnKey) -> list[httpx2.Response]:
    """Cancels a turn at both gateways in turn until the answer is not 503; returns all answers."""
    answers: list[httpx2.Response] = []
    while not answers or answers[-1].status_code == 503:
        client = system.clients[len(answers) % len(system.clients)]
        answers.append(await client.post(f"/v1/turns/{key.turn}/cancel"))
    return answers


@pytest.mark.rule("F12")
async def test_without_a_majority_stored_turns_are_readable_and_new_ones_are_503(system: ClusterSystem) -> None:
    """Running turns end when the majority is back."""
    client = system.clients[1]
    _, old = await system.post("words=40 rate=0", 1)
    assert old is not None
    whole = await readers.read(client, old.turn)
    async with system.streaming(2, **ALL) as listeners:
        for node in system.cluster.nodes[:2]:
            await node.stop(SIGKILL)
        posts = [(await system.post("words=3 rate=0", number))[0] for number in (0, 1)]
        assert {(post.status, post.code, post.retry_after) for post in posts} == {(503, "log_unavailable", "2")}

        async def ready() -> tuple[int, str]:
            answer = await client.get("/readyz")
            return answer.status_code, answer.json()["log"]["detail"]

        async def is_known() -> bool:
            return (await ready())[1].startswith("nothing has been stored for ")

        await until(is_known)
        assert (await ready())[0] == 503
        assert (await client.get("/healthz")).status_code == 200
        # The other gateway has not read the turn: it comes from the one server that is left.
        assert (await readers.read(system.clients[0], old.turn)).frames == whole.frames
        resumed = await readers.read(system.clients[0], old.turn, whole.frames[2].seq)
        assert resumed.frames == whole.frames[3:]
        assert (await client.get(f"/v1/turns/{old.turn}")).json()["text"] == words(40)
        await system.wait_until_healed()
    for listener in listeners:
        turn, verdict = await system.verdict(listener)
        assert verdict.is_green, verdict.evidence
        assert (turn.text, turn.outcome) == (listener.text, "completed")

    async def is_ready() -> bool:
        return (await ready())[0] == 200

    await until(is_ready)


async def test_a_consumer_without_a_leader_is_reported_as_lagging(system: ClusterSystem) -> None:
    """Every stream has a leader. A rolling restart waits for the consumers, too."""
    cluster = system.cluster
    delivering = (await cluster.connection.jetstream.consumer_info(STREAM, GENERATORS)).cluster
    assert delivering is not None
    node = next(node for node in cluster.nodes if node.spec.name == delivering.leader)
    for name in stream_configs.EVERY_STREAM:
        if await cluster.leader(name) is node:
            await cluster.step_down(name)
    other = await Connection.open(next(one.url for one in cluster.nodes if one is not node), "test")
    freeze(node)
    with pytest.raises(LogUnavailable):
        await setup.lagging_servers(other)
    await other.close()
