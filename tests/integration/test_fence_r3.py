"""The fence in a cluster of three: two writers as fast as they can, and one story for everybody.

Single-node tests prove nothing about this: the leader checks the fence before it proposes, and refuses with
10164 what it cannot settle yet. A change of leader may let a fork in, which the chain then leaves out.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial

import nats.errors
import pytest
import pytest_asyncio

from tailrace.proto.chain import START, Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Entry, Stored, encode
from tailrace.proto.errors import FenceLost
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId, new_id
from tailrace.proto.nats import Claim, Claims, Connection, TurnLog
from tailrace.proto.nats.log_server import PublishUnclear
from tailrace.proto.nats.signing_secret import signing_secret
from tailrace.proto.nats.used_tickets import UsedTickets
from tailrace.proto.subjects import STREAM, TurnKey
from tests.harness.nats_cluster import Cluster
from tests.harness.turn_builder import NOON, attempt, event, opening, request, says
from tests.harness.until import until

TURNS = 16
STEP_DOWNS = 3


class CountingLog(TurnLog):
    """The turn log, and what it was refused with."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.refused: Counter[str] = Counter()

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        try:
            return await super().publish(key, entry, fence)
        except PublishUnclear as unclear:
            self.refused[str(unclear).split()[0]] += 1
            raise


class Contest:
    """Two writers of one turn who both append after the same entry, again and again; the winner's is the next."""

    def __init__(self, key: TurnKey, writers: list[CountingLog]) -> None:
        self.key = key
        self.writers = writers
        self.won: list[Stored] = []
        self.lost: list[Entry] = []

    async def run(self, rounds: int, stop: asyncio.Event) -> None:
        """`rounds` rounds, and on until the event is set; then the end, which both want to write."""
        log = self.writers[0]
        chain = await log.append(self.key, START, request())
        chain = await log.append(self.key, chain, attempt(chain))
        for one in opening():
            chain = await log.append(self.key, chain, event(chain, one))
        while rounds > 0 or not stop.is_set():
            rounds -= 1
            chain = await self.round(chain, [says(chain, f" {name}{chain.last}") for name in "ab"])
        turn = await log.turn(self.key)
        await self.round(chain, [build_end(turn, "completed"), build_end(turn, "cancelled")])

    async def round(self, chain: Chain, rivals: list[Entry]) -> Chain:
        appends = [log.append(self.key, chain, entry) for log, entry in zip(self.writers, rivals, strict=True)]
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        for outcome, entry in zip(outcomes, rivals, strict=True):
            if isinstance(outcome, Chain):
                self.won.append(Stored(outcome.last, NOON, entry))
            else:
                assert isinstance(outcome, FenceLost), outcome
                self.lost.append(entry)
        assert len(self.won) == len(self.lost), f"one wins each position: {outcomes}"
        return Chain(self.won[-1].seq, 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        try:
            cluster = await stack.enter_async_context(Cluster(tmp_path_factory.mktemp("cluster")))
        except AssertionError:
            # A test beside this one may have taken a port between its choice and its use: once more, with others.
            cluster = await stack.enter_async_context(Cluster(tmp_path_factory.mktemp("cluster")))
        yield cluster


@pytest_asyncio.fixture
async def connections(cluster: Cluster) -> AsyncIterator[list[Connection]]:
    """One to each node."""
    connections = [await Connection.open(url, "test") for url in cluster.urls]
    yield connections
    for connection in connections:
        await connection.close()


@pytest.mark.rule("R8")
async def test_exactly_one_of_two_writers_wins_each_position(connections: list[Connection], tenant: Tenant) -> None:
    """Whose append was acknowledged is in the log, whose was refused is not, and all nodes tell the same story."""
    stop = asyncio.Event()
    stop.set()
    await contest(connections, tenant, rounds=40, stop=stop)


@pytest.mark.rule("R10")
async def test_the_story_is_one_also_while_the_leader_changes(connections: list[Connection], tenant: Tenant) -> None:
    """The stream's leader steps down three times while they write: what is refused may be unclear, never stored."""
    stop = asyncio.Event()

    async def step_down() -> None:
        for _ in range(STEP_DOWNS):
            leading = await until(lambda: leader(connections[2]))
            await connections[2].client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", b"", timeout=5)
            await until(partial(changed, connections[2], leading))
        stop.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(step_down())
        group.create_task(contest(connections, tenant, rounds=10, stop=stop))


async def contest(connections: list[Connection], tenant: Tenant, *, rounds: int, stop: asyncio.Event) -> None:
    writers = [CountingLog(connection) for connection in connections[:2]]
    contests = [Contest(TurnKey(tenant, TurnId(new_id())), writers) for _ in range(TURNS)]
    async with asyncio.TaskGroup() as group:
        for one in contests:
            group.create_task(one.run(rounds, stop))
    forked = 0
    for one in contests:
        turns = [await TurnLog(connection).turn(one.key) for connection in connections]
        assert all(turn == turns[0] for turn in turns)
        forked += turns[0].skipped
        told = await followed(TurnLog(connections[2]), one.key)
        assert fold(told).text == turns[0].text
        # The first four entries had no rival.
        assert [(stored.seq, encode(stored.entry)) for stored in told[4:]] == [
            (stored.seq, encode(stored.entry)) for stored in one.won
        ]
        assert not {encode(entry) for entry in one.lost} & {encode(stored.entry) for stored in told}
    refused = writers[0].refused + writers[1].refused
    contended = sum(len(one.won) for one in contests)
    print(f"\n{contended} positions contended, refused {dict(refused)}, forked {forked}")
    assert refused["10071"] + refused["10164"] >= contended // 2, "the writers did not contend"


async def followed(log: TurnLog, key: TurnKey) -> list[Stored]:
    async with aclosing(log.follow(key)) as follower:
        return [stored async for some in follower for stored in some]


async def leader(connection: Connection) -> str | None:
    # The leader alone answers; without one nobody does.
    with suppress(nats.errors.Error):
        info = await connection.jetstream.stream_info(STREAM)
        return info.cluster.leader if info.cluster else None
    return None


async def changed(connection: Connection, old: str | None) -> bool:
    new = await leader(connection)
    return new is not None and new != old


@pytest.mark.rule("R26")
async def test_a_key_that_is_claimed_on_all_nodes_at_once_names_one_turn(
    connections: list[Connection], tenant: Tenant
) -> None:
    """Whoever asks is told the first claim, also by a server that is behind."""
    claims = [Claims(connection) for connection in connections]
    for number in range(100):
        mine = [Claim(TurnId(new_id()), "0" * 64) for _ in claims]
        asked = [one.claim(tenant, f"key-{number}", claim) for one, claim in zip(claims, mine, strict=True)]
        found = await asyncio.gather(*asked)
        assert len(set(found)) == 1
        assert found[0] in mine


@pytest.mark.rule("R39")
async def test_a_ticket_that_is_used_on_all_nodes_at_once_is_used_once(connections: list[Connection]) -> None:
    """One stream is begun, however many find the link; and all sign with one secret, whoever made it."""
    uses = [UsedTickets(connection) for connection in connections]
    for _ in range(100):
        ticket = new_id()
        used = await asyncio.gather(*(one.mark_used(ticket) for one in uses * 3))
        assert used.count(True) == 1
    assert len(set(await asyncio.gather(*(signing_secret(connection) for connection in connections * 3)))) == 1
