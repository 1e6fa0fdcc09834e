"""A first token that is late has a second generator ask, too: one of the two is told, and no reader can tell which.

The simulated Claude is late by `wait`, and with `fault=stall@0` it opens a message and says nothing; it counts what was
called, and what was closed. What dies, freezes and wakes up here are processes of their own.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.gateway.turns.cancel import cancel
from tailrace.generators.attempt import TurnRunner
from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.generators.failover import parse_backends
from tailrace.generators.hedging import run_hedge
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.proto import events, subjects
from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import Attempt, Entry, Reservation
from tailrace.proto.errors import FenceLost, LogUnavailable
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.models import find_model
from tailrace.proto.nats import BlobStore, Connection, Counters, Deliveries, Hedge, HedgeRpc, Rpc, Slots, TurnLog
from tailrace.proto.nats.permissions import GATEWAY
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.runtime.byte_semaphore import ByteSemaphore
from tailrace.proto.subjects import GENERATORS, STREAM, TurnKey
from tailrace.proto.usage import Usage
from tests.harness import readers, turn_builder
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import (
    ask,
    attempts,
    ended,
    is_acknowledged,
    open_streams,
    shorten_lease,
    stats,
    words,
    working,
)
from tests.harness.processes import Process, as_user, generator
from tests.harness.until import until
from tests.integration.conftest import NewGateway
from tests.promises import Story, judge, no_gap, no_repeat, one_end

pytestmark = pytest.mark.timeout(120)

LATE_S = 0.1
# Whoever says nothing here is late, and not broken.
LATE: dict[str, Any] = {"hedge_after_s": LATE_S, "stall_timeout_s": 20}
LEASE_S = 0.5
NEVER_TOLD_FIRST = "fault=stall@0x1"
NEVER_TOLD = "fault=stall@0x2"


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


@asynccontextmanager
async def two_working(nats_url: str, claude_url: str, **given: Any) -> AsyncIterator[None]:
    async with working(nats_url, claude_url, **LATE | given), working(nats_url, claude_url, **LATE | given):
        await offering(nats_url, 2)
        yield


async def offering(nats_url: str, count: int) -> None:
    """Returns when so many generators would make a second call."""
    heard: set[bytes] = set()

    async def hear(offer: Msg) -> None:
        # Where nobody is yet, the server itself answers, with nothing.
        heard.update({offer.data} - {b""})

    async def are_there() -> bool:
        await connection.publish(subjects.HEDGE_OFFERS, b"", reply=offers)
        return len(heard) == count

    connection = await Connection.open(as_user(nats_url, GENERATORS), "test")
    offers = connection.client.new_inbox()
    try:
        await connection.subscribe(offers, hear)
        await until(are_there)
    finally:
        await connection.close()


def hedges(outcome: str) -> float:
    """How many came to that, in this process."""
    return REGISTRY.get_sample_value("tailrace_generator_hedges_total", {"outcome": outcome}) or 0.0


@pytest.mark.rule("R51")
async def test_a_late_first_token_is_overtaken_by_a_second_generator(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """The first call says nothing; the second is the answer, the first is closed, and the turn is acknowledged."""
    won = hedges("won")
    async with two_working(own_server.url, claude):
        key = await ask(own_log, f"words=20 rate=0 {NEVER_TOLD_FIRST}")
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
        await open_streams(claude, 0)
    assert (turn.text, turn.outcome, turn.skipped, turn.hedges) == (words(20), "completed", 0, 1)
    first, second = await attempts(own_log, key)
    assert (first.is_hedge, second.is_hedge, second.attempt, second.mode) == (False, True, 2, "fresh")
    assert first.generator != second.generator
    counted = await stats(claude)
    assert (counted["calls"], counted["streams_aborted"]) == (2, 1)
    assert hedges("won") == won + 1


@pytest.mark.rule("R51")
async def test_who_is_overtaken_closes_its_call_at_once(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """While the other's answer goes on, and though its own model is as silent as before: that stops its bill."""
    async with two_working(own_server.url, claude):
        key = await ask(own_log, f"words=200 rate=20 {NEVER_TOLD_FIRST}")

        async def is_closed() -> bool:
            return (await stats(claude))["streams_aborted"] == 1

        await until(is_closed)
        turn = await own_log.turn(key)
        assert (turn.end, turn.hedges) == (None, 1)
        await cancel(own_log, key)


@pytest.mark.rule("R51")
async def test_one_that_is_late_and_first_keeps_its_turn(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Its token is stored first, and the second call is closed."""
    lost = hedges("lost")
    async with two_working(own_server.url, claude, hedge_after_s=0.4):
        key = await ask(own_log, "words=30 rate=40 wait=1")
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert (turn.text, turn.outcome, turn.attempt, turn.hedges) == (words(30), "completed", 1, 0)
    counted = await stats(claude)
    assert (counted["calls"], counted["streams_aborted"]) == (2, 1)
    assert hedges("lost") == lost + 1


async def test_what_comes_in_time_is_asked_once(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """Also when the answer as a whole takes longer than a first token may."""
    async with two_working(own_server.url, claude, hedge_after_s=1):
        turn = await ended(own_log, await ask(own_log, "words=60 rate=40"))
    assert (turn.text, turn.attempt, (await stats(claude))["calls"]) == (words(60), 1, 1)


async def test_nobody_hedges_who_was_not_told_to(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """Off by default; and one that is on finds nobody among those that are off."""
    declined = hedges("declined")
    async with working(own_server.url, claude), working(own_server.url, claude):
        turn = await ended(own_log, await ask(own_log, "words=3 rate=0 wait=0.2"))
    assert (turn.text, (await stats(claude))["calls"], hedges("declined")) == (words(3), 1, declined)
    async with working(own_server.url, claude, **LATE):
        key = await ask(own_log, "words=4 rate=0 wait=2.5")
        await open_streams(claude, 1)
        async with working(own_server.url, claude):
            await until(lambda: hedges("declined") == declined + 1)
            turn = await ended(own_log, key)
    assert (turn.text, turn.attempt, (await stats(claude))["calls"]) == (words(4), 1, 2)


async def test_hedges_get_what_the_queue_leaves_over(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """Who has one slot left keeps it for the queue: a late turn waits as it would have, and no other for it."""
    declined = hedges("declined")
    async with two_working(own_server.url, claude, concurrency=2):
        keys = [await ask(own_log, f"words=3 rate=0 wait=2.5 tag=x{number}") for number in range(3)]
        turns = [await ended(own_log, key) for key in keys]
    assert [turn.text for turn in turns] == [words(3, f"x{number}") for number in range(3)]
    assert [turn.attempt for turn in turns] == [1, 1, 1]
    assert (await stats(claude))["calls"] == 3
    assert hedges("declined") == declined + 3


async def first_of(log: TurnLog, key: TurnKey) -> str:
    """The name of the generator that made the turn's first attempt."""
    (first,) = (await until(lambda: attempts(log, key)))[:1]
    return first.generator.rpartition("-")[0]


async def test_a_hedge_that_fails_leaves_the_turn_where_it_was(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog
) -> None:
    """It is not repeated, it is in no log, and the lease is the first generator's as before."""
    await shorten_lease(own_connection, LEASE_S)
    failed = hedges("failed")
    async with AsyncExitStack() as one, AsyncExitStack() as two:
        claudes = {"one": await one.enter_async_context(serving()), "two": await two.enter_async_context(serving())}
        async with AsyncExitStack() as both:
            for name, url in claudes.items():
                await both.enter_async_context(working(own_server.url, url, **LATE, generator=name))
            await offering(own_server.url, 2)
            key = await ask(own_log, "words=40 rate=40 wait=4")
            for url in claudes.values():
                await open_streams(url, 1)
            first = await first_of(own_log, key)
            # In the middle of the second call, its Claude goes away.
            await (two if first == "one" else one).aclose()
            await until(lambda: hedges("failed") == failed + 1)
            turn = await ended(own_log, key)
            await until(lambda: is_acknowledged(own_connection))
            assert (await stats(claudes[first]))["calls"] == 1
    assert (turn.text, turn.outcome, turn.attempt) == (words(40), "completed", 1)


async def test_a_hedge_is_one_call(own_server: NatsServer, own_log: TurnLog) -> None:
    """Refused, it is not made again: the first generator's own calls are the ones that are repeated."""
    async with serving() as one, serving() as two:
        claudes = {"one": one, "two": two}
        async with AsyncExitStack() as both:
            for name, url in claudes.items():
                await both.enter_async_context(working(own_server.url, url, **LATE, generator=name))
            await offering(own_server.url, 2)
            key = await ask(own_log, "words=3 rate=0 wait=1 fault=529x1")
            turn = await ended(own_log, key)
        first = await first_of(own_log, key)
        counted = {name: (await stats(url))["calls"] for name, url in claudes.items()}
    assert (turn.text, turn.attempt) == (words(3), 1)
    assert counted == {first: 2, "two" if first == "one" else "one": 1}


async def test_a_first_attempt_that_breaks_goes_on_as_if_there_were_no_hedge(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Its next attempt is the turn's: the hedge, still without a token, is closed, and no other is made."""
    # Of two that stall, the first to be noticed is the one that was asked first.
    async with two_working(own_server.url, claude, hedge_after_s=0.5, stall_timeout_s=1):
        key = await ask(own_log, f"words=20 rate=0 {NEVER_TOLD}")
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
        await open_streams(claude, 0)
    made = await attempts(own_log, key)
    assert [(attempt.attempt, attempt.is_hedge) for attempt in made] == [(1, False), (2, False)]
    assert len({attempt.generator for attempt in made}) == 1
    assert (turn.text, turn.outcome) == (words(20), "completed")
    assert (await stats(claude))["calls"] == 3


async def test_cancelling_closes_both_calls(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """At once, though neither has said anything yet."""
    async with two_working(own_server.url, claude):
        key = await ask(own_log, f"words=20 rate=0 {NEVER_TOLD}")
        await open_streams(claude, 2)
        await cancel(own_log, key)
        await open_streams(claude, 0)
        await until(lambda: is_acknowledged(own_connection))
    turn = await own_log.turn(key)
    assert (turn.outcome, turn.attempt, (await stats(claude))["streams_aborted"]) == ("cancelled", 1, 2)


async def test_the_log_is_away_while_both_wait(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Killed and started again under both calls: whoever stores its token first has the turn, and it ends once."""
    async with two_working(own_server.url, claude):
        key = await ask(own_log, "words=20 rate=20 wait=2")
        await called(claude, 2)
        await own_server.stop(SIGKILL)
        await own_server.start()
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert (turn.text, turn.outcome, turn.skipped) == (words(20), "completed", 0)
    assert turn.attempt <= 2
    assert (await stats(claude))["calls"] == 2


async def called(claude: str, count: int) -> None:
    """Returns when the simulated Claude has been called that often."""

    async def is_called() -> bool:
        return (await stats(claude))["calls"] == count

    await until(is_called)


class Pair:
    """Two generators that hedge, each a process, and a turn of which both wait for a token."""

    def __init__(self, log: TurnLog, claude: str, processes: dict[str, Process]) -> None:
        self._log = log
        self._claude = claude
        self._processes = processes

    async def waiting(self, line: str, **given: Any) -> tuple[TurnKey, Process, Process]:
        """The turn, the process that has its first attempt, and the one that has made the second call."""
        key = await ask(self._log, line, **given)
        await called(self._claude, 2)
        first = await first_of(self._log, key)
        (second,) = self._processes.keys() - {first}
        return key, self._processes[first], self._processes[second]


@pytest.fixture
async def pair(
    tmp_path: Path, own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> AsyncIterator[Pair]:
    await shorten_lease(own_connection, LEASE_S)
    settings = {"TAILRACE_HEDGE_AFTER_S": LATE_S, "TAILRACE_STALL_TIMEOUT_S": 20, "TAILRACE_ATTEMPTS_MAX": 2}
    processes = {
        name: generator(tmp_path, own_server.url, claude, TAILRACE_GENERATOR=name, **settings)
        for name in ("one", "two")
    }
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            for process in processes.values():
                group.create_task(stack.enter_async_context(process))
        yield Pair(own_log, claude, processes)


@pytest.mark.rule("R51")
async def test_the_late_one_is_killed_and_the_hedge_goes_on(
    own_connection: Connection, own_log: TurnLog, claude: str, pair: Pair
) -> None:
    """The lease is kept by who waits, for longer than it lasts: no third call is made, and the turn is acknowledged."""
    key, first, _ = await pair.waiting("words=20 rate=40 wait=4")
    await first.stop(SIGKILL)
    turn = await ended(own_log, key)
    await until(lambda: is_acknowledged(own_connection))
    assert (turn.text, turn.outcome, turn.attempt, turn.hedges) == (words(20), "completed", 2, 1)
    assert (await stats(claude))["calls"] == 2


@pytest.mark.rule("R51")
async def test_the_hedge_is_killed_and_the_late_one_goes_on(
    own_connection: Connection, own_log: TurnLog, claude: str, pair: Pair
) -> None:
    """It notices nothing."""
    key, _, second = await pair.waiting("words=20 rate=40 wait=4")
    await second.stop(SIGKILL)
    turn = await ended(own_log, key)
    await until(lambda: is_acknowledged(own_connection))
    assert (turn.text, turn.outcome, turn.attempt) == (words(20), "completed", 1)
    assert (await stats(claude))["calls"] == 2


async def test_both_are_killed_and_a_third_goes_on(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str, pair: Pair
) -> None:
    """Nothing is left of the hedge: it is a dead generator's turn like any other, and gets no further hedge."""
    key, *both = await pair.waiting(f"words=20 rate=0 {NEVER_TOLD}")
    for process in both:
        await process.stop(SIGKILL)
    async with two_working(own_server.url, claude):
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert (turn.text, turn.outcome, turn.attempt, turn.hedges) == (words(20), "completed", 2, 0)
    assert (await stats(claude))["calls"] == 3


@pytest.mark.rule("R51")
async def test_a_winner_that_is_killed_is_taken_over_and_its_hedge_does_not_count(
    own_connection: Connection, own_log: TurnLog, claude: str, pair: Pair
) -> None:
    """Who has lost does not keep its lease; and of two attempts that are allowed, a hedge takes none."""
    key, _, second = await pair.waiting(f"words=60 rate=30 {NEVER_TOLD_FIRST}")

    async def is_told() -> bool:
        return bool((await own_log.turn(key)).text)

    await until(is_told)
    await open_streams(claude, 1)
    await second.stop(SIGKILL)
    turn = await ended(own_log, key)
    await until(lambda: is_acknowledged(own_connection))
    assert (turn.text, turn.outcome, turn.skipped) == (words(60), "completed", 0)
    made = await attempts(own_log, key)
    assert [(attempt.mode, attempt.is_hedge) for attempt in made] == [
        ("fresh", False),
        ("fresh", True),
        ("continue", False),
    ]
    counted = await stats(claude)
    assert (counted["calls"], counted["continuations_mismatched"]) == (3, 0)


async def test_the_late_one_freezes_and_wakes_up_beside_the_winner(
    own_connection: Connection, own_log: TurnLog, claude: str, pair: Pair
) -> None:
    """No entry of its is valid, it closes its call, and it does not acknowledge what is not its own any more."""
    key, first, _ = await pair.waiting("words=200 rate=40 wait=3")
    freeze(first)

    async def is_overtaken() -> bool:
        return (await own_log.turn(key)).hedges == 1

    await until(is_overtaken)
    first.signal(SIGCONT)
    await until(lambda: first.said("turn taken by another writer"), 5)
    await open_streams(claude, 1)
    assert not await is_acknowledged(own_connection)
    turn = await ended(own_log, key)
    await until(lambda: is_acknowledged(own_connection))
    assert (turn.text, turn.outcome, turn.attempt, turn.skipped) == (words(200), "completed", 2, 0)
    assert first.said("turn ended") == []
    assert (await stats(claude))["calls"] == 2


async def test_the_hedge_freezes_and_wakes_up_after_the_end(
    own_connection: Connection, own_log: TurnLog, claude: str, pair: Pair
) -> None:
    """Nothing is added to a turn that has ended, and its call is closed."""
    key, _, second = await pair.waiting("words=10 rate=40 wait=3")
    freeze(second)
    turn = await ended(own_log, key)
    before = await own_log.replay(key)
    second.signal(SIGCONT)
    await until(lambda: second.said("turn taken by another writer"), 5)
    assert await own_log.replay(key) == before
    assert (turn.text, turn.outcome, turn.attempt) == (words(10), "completed", 1)
    await until(lambda: is_acknowledged(own_connection))


async def test_a_reader_of_a_hedged_turn_gets_one_story(
    own_server: NatsServer, own_log: TurnLog, claude: str, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """Over HTTP, from before the first token: all of the second call's answer, once, and nothing of the first's."""
    gateway = await new_gateway(own_server.url)
    async with two_working(own_server.url, claude):
        key = await ask(own_log, f"words=80 rate=200 {NEVER_TOLD_FIRST}", tenant=tenant)
        seen = readers.reader("there", key, await readers.read(gateway.client, key.turn))
        turn = await ended(own_log, key)
        history = await readers.history(own_log, key, seen)
    assert seen.told == Story(words(80), turn.usage, "completed")
    assert judge(history, (no_gap, no_repeat, one_end)).is_green


@pytest.mark.rule("R51")
async def test_what_the_loser_was_told_is_counted_once_in_the_limits(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Its prompt was paid for: the counters of the limits hold both calls, the `end` only the one that it tells."""
    counters = Counters(own_connection)
    tokens = subjects.limit(Tenant("tenant"), "tenant", "tokens", "60000-1")
    nano_usd = subjects.budget(Tenant("tenant"), "tenant", "usd_day", "2026-11-20")
    held = [Reservation(tokens, "tokens", 500), Reservation(nano_usd, "nusd", 10**9)]
    for hold in held:
        await counters.add(hold.subject, hold.amount)
    async with two_working(own_server.url, claude):
        key = await ask(own_log, f"words=20 rate=0 {NEVER_TOLD_FIRST}", holds=held)
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
        await open_streams(claude, 0)
    assert turn.end is not None
    prompt_tokens, answer_tokens = turn.end.usage.input_tokens, turn.end.usage.output_tokens
    assert (prompt_tokens > 0, answer_tokens) == (True, 20)

    async def are_counted() -> bool:
        # The loser had been told of its prompt, and of one token, as the API says of every message that begins.
        return await counters.add(tokens, 0) == 2 * prompt_tokens + answer_tokens + 1

    await until(are_counted)
    model = find_model(turn_builder.MODEL)
    assert model is not None
    loser_nano_usd = prompt_tokens * model.prices.input_nano_usd + model.prices.output_nano_usd
    assert await counters.add(nano_usd, 0) == turn.end.cost_nano_usd + loser_nano_usd


async def test_what_a_loser_used_is_added_once(connection: Connection, tenant: Tenant, key: TurnKey) -> None:
    """However often it is said."""
    subject = subjects.limit(tenant, "tenant", "tokens", "60000-1")
    request = turn_builder.request(holds=[Reservation(subject, "tokens", 500)])
    settlement = Settlement(Counters(connection), Slots(connection))
    for _ in range(3):
        await settlement.add(request, f"{key.turn}.1", Usage(input_tokens=7, output_tokens=1), 0)
    await settlement.add(request, f"{key.turn}.2", Usage(input_tokens=7), 0)
    assert await Counters(connection).add(subject, 0) == 15


class Late:
    """A generator played by hand: it has a turn, with its first attempt, and hears nothing."""

    def __init__(self, log: TurnLog, key: TurnKey, chain: Chain, hedge: Hedge) -> None:
        self._log = log
        self.key = key
        self.chain = chain
        self.hedge = hedge

    async def append(self, entry: Entry) -> None:
        self.chain = await self._log.append(self.key, self.chain, entry)


@pytest.fixture
async def gateway_connection(own_server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(as_user(own_server.url, GATEWAY), "test-gateway")
    yield connection
    await connection.close()


@pytest.fixture
async def peer(own_server: NatsServer) -> AsyncIterator[Connection]:
    """As the generators have it: what is said among them nobody else hears."""
    connection = await Connection.open(as_user(own_server.url, GENERATORS), "test-peer")
    yield connection
    await connection.close()


@pytest.fixture
async def late(own_connection: Connection, own_log: TurnLog) -> Late:
    # Nobody renews it here, and nobody is to take the turn over meanwhile.
    await shorten_lease(own_connection, 60)
    key = await ask(own_log, f"words=5 rate=0 {NEVER_TOLD_FIRST}")
    (delivery,) = await until((await Deliveries.open(own_connection, GENERATORS)).next)
    chain = (await own_log.turn(key)).chain
    chain = await own_log.append(key, chain, turn_builder.attempt(chain))
    return Late(own_log, key, chain, Hedge(key.tenant, key.turn, chain.last, delivery.lease))


@pytest.mark.rule("R51")
@pytest.mark.parametrize("first", ["a token", "another attempt"])
async def test_a_hedge_is_closed_as_soon_as_another_entry_stands(
    own_server: NatsServer, peer: Connection, own_log: TurnLog, claude: str, late: Late, first: str
) -> None:
    """Whether the late one has its token, or somebody else has taken the turn under the same number."""
    async with working(own_server.url, claude, **LATE):
        await offering(own_server.url, 1)
        assert await HedgeRpc(peer).request(late.hedge)
        await open_streams(claude, 1)
        told = turn_builder.opening()[0]
        entry = turn_builder.event(late.chain, told) if first == "a token" else turn_builder.attempt(late.chain)
        await late.append(entry)
        await open_streams(claude, 0)
        assert (await own_log.turn(late.key)).chain == late.chain
        assert (await stats(claude))["streams_aborted"] == 1


async def test_a_turn_that_is_not_late_any_more_is_not_called_for(
    own_server: NatsServer, peer: Connection, own_log: TurnLog, claude: str, late: Late
) -> None:
    """The token came while the second generator was looked for."""
    await late.append(turn_builder.event(late.chain, turn_builder.opening()[0]))
    lost = REGISTRY.get_sample_value("tailrace_generator_fences_lost_total") or 0.0
    async with working(own_server.url, claude, **LATE):
        await offering(own_server.url, 1)
        assert await HedgeRpc(peer).request(late.hedge)
        await until(lambda: REGISTRY.get_sample_value("tailrace_generator_fences_lost_total") == lost + 1)
    assert (await stats(claude))["calls"] == 0
    assert (await own_log.turn(late.key)).chain == late.chain


async def test_a_turn_is_hedged_once_by_who_is_not_going_away(
    own_server: NatsServer, gateway_connection: Connection, peer: Connection, claude: str, late: Late
) -> None:
    """Who makes the call already, or was told to stop, does not take it."""
    asking = HedgeRpc(peer)
    async with working(own_server.url, claude, **LATE, grace_s=30) as stop:
        await offering(own_server.url, 1)
        assert await asking.request(late.hedge)
        await called(claude, 1)
        assert not await asking.request(late.hedge)
        stop.set()
        services = Rpc(gateway_connection)

        async def is_draining() -> bool:
            return await services.health(GENERATORS, timeout_s=0.5) is None

        await until(is_draining)
        assert not await asking.request(msgspec.structs.replace(late.hedge, turn=TurnId("another")))
        assert (await stats(claude))["calls"] == 1


class Asked(Exception):
    """A call was made that was not to be made."""


class Unasked:
    """A backend that is not to be asked."""

    def model_id(self, model: str) -> str:
        return model

    async def answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        raise Asked(call.model)
        yield ModelEvent(events.UnknownEvent(), msgspec.Raw())

    async def close(self) -> None: ...


async def test_what_works_in_a_folder_is_not_asked_twice_at_once(
    own_connection: Connection, own_log: TurnLog, late: Late
) -> None:
    """Two of Claude Code would work on the same files, whoever's list of backends has it."""
    blobs = BlobLoader(BlobStore(own_connection), ByteSemaphore(1))
    orders = parse_backends("claude_code")
    caller = ModelCaller({"claude_code": Unasked()}, orders, Retry(tries_max=1, wait_s=0, wait_max_s=0), blobs)
    runner = TurnRunner(own_log, caller, Planner(5), name="g")
    assert await run_hedge(runner, own_log, orders, late.hedge, deadline_s=9) is None
    assert (await own_log.turn(late.key)).chain == late.chain


@pytest.mark.rule("R51")
async def test_of_a_first_token_and_a_hedge_exactly_one_is_stored(log: TurnLog, tenant: Tenant) -> None:
    """Both fenced on the late attempt, stored in the same moment, many times: the other one is refused."""
    stood = []
    for number in range(100):
        key = TurnKey(tenant, TurnId(f"turn-{number}"))
        chain = await log.append(key, START, turn_builder.request())
        late = await log.append(key, chain, turn_builder.attempt(chain))
        hedge = Attempt(prev=late.last, attempt=2, generator="g-2", backend="claude", mode="fresh", is_hedge=True)
        both: list[Entry] = [turn_builder.says(late, "The"), hedge]
        racing = (log.append(key, late, entry) for entry in (both if number % 2 else reversed(both)))
        outcomes = await asyncio.gather(*racing, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [FenceLost]
        stood.append((await log.turn(key)).hedges)
    assert set(stood) == {0, 1}


class Taking:
    """Who takes what it is given, as long as it has room."""

    def __init__(self, *, room: int) -> None:
        self.room = room
        self.taken: list[Hedge] = []

    def has_free_slot(self) -> bool:
        return self.room > 0

    def start_hedge(self, hedge: Hedge) -> bool:
        self.taken.append(hedge)
        return self.has_free_slot()


@pytest.mark.rule("R51")
async def test_a_hedge_is_offered_to_one_other_that_has_room(own_server: NatsServer, key: TurnKey) -> None:
    """Never to who asks, nor to two; nobody there, or nobody with room, is a no."""
    hedge = Hedge(key.tenant, key.turn, Seq(3), "a-lease")
    async with AsyncExitStack() as stack:
        doors = []
        for name in ("asking", "full", "one", "two"):
            connection = await Connection.open(as_user(own_server.url, GENERATORS), name)
            stack.push_async_callback(connection.close)
            doors.append((connection, HedgeRpc(connection)))
        asking = doors[0][1]
        assert not await asking.request(hedge)
        itself, full, one, two = takers = [Taking(room=room) for room in (9, 0, 9, 9)]
        for (connection, door), taker in zip(doors, takers, strict=True):
            # Who is there so far is the one that asks, and then one without room.
            assert taker in (itself, full, two) or not await asking.request(hedge)
            await door.serve(taker)
            # A request does not overtake a subscription of the same connection.
            await connection.jetstream.stream_info(STREAM)
        assert (itself.taken, full.taken) == ([], [])
        for _ in range(5):
            assert await asking.request(hedge)
        assert (itself.taken, full.taken) == ([], [])
        assert one.taken + two.taken == [hedge] * 5
        one.room = two.room = 0
        assert not await asking.request(hedge)


@pytest.mark.rule("R51")
async def test_a_lease_is_shared_by_who_was_told_of_it(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog
) -> None:
    """Either keeps it for both, and either acknowledges it; what is no lease of this consumer's is refused."""
    await shorten_lease(own_connection, 1)
    deliveries = await Deliveries.open(own_connection, GENERATORS)
    key = await ask(own_log, "words=1")
    (delivery,) = await until(deliveries.next)
    connection = await Connection.open(own_server.url, "other")
    elsewhere = await Deliveries.open(connection, GENERATORS)
    shared = elsewhere.from_lease(key, delivery.lease)
    assert (shared.key, shared.seq) == (key, delivery.seq)
    for _ in range(4):
        await shared.renew()
        # It waits for half of the lease.
        assert await deliveries.next() == []
    await shared.ack()
    await until(lambda: is_acknowledged(own_connection))
    for none in ("", "anywhere", delivery.lease.replace(GENERATORS, "webhooks"), delivery.lease.replace("TURNS", "T")):
        with pytest.raises(LogUnavailable):
            elsewhere.from_lease(key, none)
    await connection.close()
