"""Concurrent writers on a cluster of three servers: appends, claims of idempotency keys, and uses of tickets.

A single server proves nothing about this: the leader checks the fence before it proposes, and answers 10164 when it
cannot decide yet. A change of leader may store a fork, which the chain leaves out.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest
import pytest_asyncio

from tailrace.features.tickets.used_tickets import UsedTickets
from tailrace.gateway.auth.signing_secret import signing_secret
from tailrace.proto.chain import START, Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Entry, StoredEntry, encode
from tailrace.proto.errors import FenceLost
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Claim, Claims, Connection, TurnLog
from tailrace.proto.nats.log_server import PublishUnclear
from tailrace.proto.nats.setup_state import read_setup_state
from tailrace.proto.ownership import ScopedKey
from tests.harness.nats_cluster import Cluster
from tests.harness.turn_builder import NOON, attempt, event, opening_events, request, text_delta

pytestmark = pytest.mark.asyncio(loop_scope="module")

TURNS = 16
STEP_DOWNS = 3


class CountingLog(TurnLog):
    """The turn log, and a count of the errors of its appends by code."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.errors: Counter[str] = Counter()

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        try:
            return await super().publish(key, entry, fence)
        except PublishUnclear as unclear:
            self.errors[str(unclear).split()[0]] += 1
            raise


class Contest:
    """Two writers of one turn that append after the same entry, again and again; the winner's entry is the next."""

    def __init__(self, key: TurnKey, logs: list[CountingLog]) -> None:
        self.key = key
        self.logs = logs
        self.won: list[StoredEntry] = []
        self.lost: list[Entry] = []

    async def run(self, rounds: int, stop: asyncio.Event) -> None:
        """Appends for at least `rounds` rounds and until `stop` is set; then both append an end."""
        log = self.logs[0]
        chain = await log.append(self.key, START, request())
        chain = await log.append(self.key, chain, attempt(chain))
        for one in opening_events():
            chain = await log.append(self.key, chain, event(chain, one))
        while rounds > 0 or not stop.is_set():
            rounds -= 1
            chain = await self.round(chain, [text_delta(chain, f" {name}{chain.last}") for name in "ab"])
        turn = await log.read_turn(ScopedKey.whole(self.key))
        await self.round(chain, [build_end(turn, "completed"), build_end(turn, "cancelled")])

    async def round(self, chain: Chain, rivals: list[Entry]) -> Chain:
        appends = [log.append(self.key, chain, entry) for log, entry in zip(self.logs, rivals, strict=True)]
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        for outcome, entry in zip(outcomes, rivals, strict=True):
            if isinstance(outcome, Chain):
                self.won.append(StoredEntry(outcome.last, NOON, entry))
            else:
                assert isinstance(outcome, FenceLost), outcome
                self.lost.append(entry)
        assert len(self.won) == len(self.lost), outcomes
        return Chain(self.won[-1].seq, 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        try:
            cluster = await stack.enter_async_context(Cluster(tmp_path_factory.mktemp("cluster")))
        except AssertionError:
            # Another test may have taken a port between its choice and its use.
            cluster = await stack.enter_async_context(Cluster(tmp_path_factory.mktemp("cluster")))
        yield cluster


@pytest_asyncio.fixture(loop_scope="module")
async def connections(cluster: Cluster) -> AsyncIterator[list[Connection]]:
    """One connection to each server."""
    connections = [await Connection.open(url, "test") for url in cluster.urls]
    yield connections
    for connection in connections:
        await connection.close()


@pytest.mark.rule("R80")
async def test_a_log_with_three_replicas_may_have_forks(connections: list[Connection]) -> None:
    assert (await read_setup_state(connections[0])).is_replicated


@pytest.mark.rule("R8")
@pytest.mark.rule("R10")
async def test_exactly_one_of_two_writers_wins_each_position_while_the_leader_changes(
    cluster: Cluster, connections: list[Connection], tenant: Tenant
) -> None:
    """An acknowledged append is in the log, a refused one is not, and all servers have the same turn."""
    logs = [CountingLog(connection) for connection in connections[:2]]
    contests = [Contest(TurnKey(tenant, TurnId(new_id())), logs) for _ in range(TURNS)]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for contest in contests:
            group.create_task(contest.run(10, stop))
        for _ in range(STEP_DOWNS):
            await cluster.step_down()
        stop.set()
    for contest in contests:
        turns = [await TurnLog(connection).read_turn(ScopedKey.whole(contest.key)) for connection in connections]
        assert all(turn == turns[0] for turn in turns)
        async with aclosing(TurnLog(connections[2]).follow(ScopedKey.whole(contest.key))) as follower:
            stored = [one async for some in follower for one in some]
        assert fold(stored).text == turns[0].text
        # The first four entries had one writer.
        assert [(one.seq, encode(one.entry)) for one in stored[4:]] == [
            (one.seq, encode(one.entry)) for one in contest.won
        ]
        assert not {encode(entry) for entry in contest.lost} & {encode(one.entry) for one in stored}
    errors = logs[0].errors + logs[1].errors
    assert errors["10071"] + errors["10164"] >= sum(len(contest.won) for contest in contests) // 2


@pytest.mark.rule("R26")
async def test_a_key_that_is_claimed_at_all_servers_at_once_names_one_turn(
    connections: list[Connection], tenant: Tenant
) -> None:
    claims = [Claims(connection) for connection in connections]
    for number in range(100):
        made = [Claim(TurnId(new_id()), "0" * 64) for _ in claims]
        claiming = [one.claim(tenant, f"key-{number}", claim) for one, claim in zip(claims, made, strict=True)]
        found = await asyncio.gather(*claiming)
        assert len(set(found)) == 1
        assert found[0] in made


@pytest.mark.rule("R39")
async def test_a_ticket_that_is_used_at_all_servers_at_once_is_used_once(connections: list[Connection]) -> None:
    """All gateways sign with one secret."""
    uses = [UsedTickets(connection) for connection in connections]
    for _ in range(100):
        ticket = new_id()
        used = await asyncio.gather(*(one.mark_used(ticket) for one in uses * 3))
        assert used.count(True) == 1
    assert len(set(await asyncio.gather(*(signing_secret(connection) for connection in connections * 3)))) == 1
