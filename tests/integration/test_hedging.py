"""Hedging: when the first token is late, a second generator calls the model, and one of the two calls is the answer.

The simulated Claude delays its answer by `wait`; with `fault=stall@0` it opens a message and sends nothing more.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any, NamedTuple, cast

import msgspec
import pytest
from nats.aio.msg import Msg
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.gateway.turns.cancel import cancel
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.generators.failover import parse_backends
from tailrace.generators.hedging import run_hedge
from tailrace.generators.turn_runner import TurnRunner
from tailrace.proto import subjects
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Reservation
from tailrace.proto.generator_health import GeneratorHealth
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, Counters, Deliveries, Hedge, HedgeRpc, Rpc, TurnLog
from tailrace.proto.nats.hedge_rpc import TAKE_TIMEOUT_S
from tailrace.proto.nats.permissions import GATEWAY
from tailrace.proto.pricing import price_calls
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, STREAM
from tailrace.proto.usage import CallUsage
from tests.harness import readers, turn_builder
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import (
    append_request,
    fences_lost,
    is_acknowledged,
    read_attempts,
    read_stats,
    running_generator,
    shorten_lease,
    wait_for_open_streams,
    words,
)
from tests.harness.own_system import OwnSystem
from tests.harness.processes import Process, as_user, generator
from tests.harness.until import until, until_equal
from tests.integration.conftest import NewGateway
from tests.promises import Story, judge, no_gap, no_repeat, one_end

pytestmark = pytest.mark.timeout(120)

LATE_S = 0.1
# A silent model is late here, and not stalled.
HEDGING: dict[str, Any] = {"hedge_after_s": LATE_S, "stall_timeout_s": 20}
LEASE_S = 0.5
FIRST_CALL_SILENT, BOTH_CALLS_SILENT = "fault=stall@0x1", "fault=stall@0x2"


def hedges(outcome: str) -> float:
    """Returns the number of hedges with that outcome in this process."""
    return REGISTRY.get_sample_value("tailrace_generator_hedges_total", {"outcome": outcome}) or 0.0


class HedgingSystem(OwnSystem):
    """The test's own system, with generators that hedge."""

    @asynccontextmanager
    async def two_generators(self, **settings: Any) -> AsyncIterator[None]:
        settings = HEDGING | settings
        async with self.running_generator(**settings), self.running_generator(**settings):
            await offering(self.server.url, 2)
            yield

    async def count_aborted(self) -> int:
        return (await read_stats(self.claude))["streams_aborted"]

    async def wait_for_calls(self, count: int) -> None:
        """Waits until the simulated Claude has been called that often."""
        await until_equal(self.calls, count)


@pytest.fixture
def own(own: OwnSystem) -> HedgingSystem:
    return HedgingSystem(**vars(own))


async def offering(nats_url: str, count: int) -> None:
    """Waits until that many generators offer to make a second call."""
    offers: set[bytes] = set()

    async def receive(offer: Msg) -> None:
        # Without a subscriber the server itself answers with an empty message.
        offers.update({offer.data} - {b""})

    async def are_all_here() -> bool:
        await connection.publish(subjects.HEDGE_OFFERS, b"", reply=inbox)
        return len(offers) == count

    connection = await Connection.open(as_user(nats_url, GENERATORS), "test")
    inbox = connection.client.new_inbox()
    try:
        await connection.subscribe(inbox, receive)
        await until(are_all_here)
    finally:
        await connection.close()


async def first_generator(log: TurnLog, key: TurnKey) -> str:
    """Returns the name of the generator that made the turn's first attempt."""
    made = await until(lambda: read_attempts(log, key))
    return made[0].generator.rpartition("-")[0]


@pytest.mark.rule("R51")
async def test_a_hedge_overtakes_a_late_first_token(
    own: HedgingSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """The loser closes its call at once, its usage counts in the limits, and a reader gets one story."""
    won, lost, counters = hedges("won"), fences_lost(), Counters(own.connection)
    tokens = subjects.limit(tenant, "tenant", "tokens", "60000-1")
    nano_usd = subjects.budget(tenant, "tenant", "usd_day", "2026-11-20")
    holds = [Reservation(tokens, "tokens", 500), Reservation(nano_usd, "nusd", 10**9)]
    for hold in holds:
        await counters.add(hold.subject, hold.amount)
    gateway = await new_gateway(own.server.url)
    async with own.two_generators():
        key = await own.append_request(f"words=80 rate=40 {FIRST_CALL_SILENT}", tenant=tenant, holds=holds)
        reading = asyncio.create_task(readers.read(gateway.client, key.turn))
        await until_equal(own.count_aborted, 1)
        running = await own.log.read_turn(key)
        assert (running.end, running.attempt) == (None, 2)
        turn = await own.wait_until_settled(key)
        seen = readers.build_reader("reader", key, await reading)
    assert (turn.text, turn.outcome, turn.skipped) == (words(80), "completed", 0)
    first, second = await own.attempts(key)
    assert (first.is_hedge, second.is_hedge, second.attempt, second.mode) == (False, True, 2, "fresh")
    assert first.generator != second.generator
    assert (await own.calls(), await own.count_aborted(), hedges("won")) == (2, 1, won + 1)
    assert fences_lost() == lost, "a lost race is no takeover"
    assert seen.received == Story(words(80), turn.usage, "completed")
    assert judge(await readers.read_history(own.log, key, seen), (no_gap, no_repeat, one_end)).is_green
    assert turn.end is not None
    prompt_tokens, answer_tokens = turn.end.usage.input_tokens, turn.end.usage.output_tokens
    assert (prompt_tokens > 0, answer_tokens) == (True, 80)
    await until_equal(lambda: counters.add(tokens, 0), 2 * prompt_tokens + answer_tokens + 1)
    loser_nano_usd = price_calls(turn_builder.MODEL, [CallUsage(prompt_tokens, 1)]).total.cost_nano_usd
    assert loser_nano_usd is not None
    assert await counters.add(nano_usd, 0) == turn.end.cost_nano_usd + loser_nano_usd


@pytest.mark.rule("R51")
async def test_a_late_first_token_that_is_stored_first_closes_the_hedge(own: HedgingSystem) -> None:
    lost = hedges("lost")
    async with own.two_generators(hedge_after_s=0.4):
        turn = await own.wait_until_settled(await own.append_request("words=30 rate=40 wait=1"))
    assert (turn.text, turn.outcome, turn.attempt) == (words(30), "completed", 1)
    assert (await own.calls(), await own.count_aborted(), hedges("lost")) == (2, 1, lost + 1)


async def test_a_first_token_in_time_is_not_hedged(own: HedgingSystem) -> None:
    """The whole answer may take longer than the limit of the first token."""
    async with own.two_generators(hedge_after_s=1):
        turn = await own.wait_for_end(await own.append_request("words=60 rate=40"))
    assert (turn.text, turn.attempt, await own.calls()) == (words(60), 1, 1)


async def test_hedging_is_off_by_default(own: HedgingSystem) -> None:
    """A generator that hedges finds no other among those that do not."""
    declined = hedges("declined")
    url, claude = own.server.url, own.claude
    async with running_generator(url, claude), running_generator(url, claude):
        turn = await own.wait_for_end(await own.append_request("words=3 rate=0 wait=0.2"))
    assert (turn.text, await own.calls(), hedges("declined")) == (words(3), 1, declined)
    async with running_generator(url, claude, **HEDGING):
        key = await own.append_request("words=4 rate=0 wait=2.5")
        await wait_for_open_streams(claude, 1)
        async with running_generator(url, claude):
            await until(lambda: hedges("declined") == declined + 1)
            turn = await own.wait_for_end(key)
    assert (turn.text, turn.attempt, await own.calls()) == (words(4), 1, 2)


async def test_a_generator_keeps_its_last_slot_for_the_queue(own: HedgingSystem) -> None:
    declined = hedges("declined")
    # Each generator has one turn, and one free slot, before the first turn is late.
    async with own.two_generators(concurrency=2, hedge_after_s=1):
        keys = [await own.append_request(f"words=3 rate=0 wait=3 tag=x{number}") for number in range(2)]
        turns = [await own.wait_for_end(key) for key in keys]
    assert [turn.text for turn in turns] == [words(3, f"x{number}") for number in range(2)]
    assert [turn.attempt for turn in turns] == [1, 1]
    assert (await own.calls(), hedges("declined")) == (2, declined + 2)


@pytest.mark.parametrize(("fault", "calls_of_first"), [("refused", 2), ("lost", 1)])
async def test_a_hedge_that_fails_is_not_repeated_and_leaves_the_turn(
    own: HedgingSystem, fault: str, calls_of_first: int
) -> None:
    """Claude refuses each generator's first call, or the second one's Claude goes away during the call."""
    await own.shorten_lease(LEASE_S)
    failed = hedges("failed")
    async with AsyncExitStack() as stack:
        claudes = {name: await stack.enter_async_context(AsyncExitStack()) for name in ("one", "two")}
        urls = {name: await claudes[name].enter_async_context(run_simulated_claude()) for name in claudes}
        async with AsyncExitStack() as generators:
            for name, url in urls.items():
                await generators.enter_async_context(running_generator(own.server.url, url, **HEDGING, generator=name))
            await offering(own.server.url, 2)
            key = await own.append_request("words=20 rate=40 wait=3" + (" fault=529x1" if fault == "refused" else ""))
            first = await first_generator(own.log, key)
            (second,) = claudes.keys() - {first}
            if fault == "lost":
                for url in urls.values():
                    await wait_for_open_streams(url, 1)
                await claudes[second].aclose()
            await until(lambda: hedges("failed") == failed + 1)
            turn = await own.wait_until_settled(key)
            assert (await read_stats(urls[first]))["calls"] == calls_of_first
            if fault == "refused":
                assert (await read_stats(urls[second]))["calls"] == 1
    assert (turn.text, turn.outcome, turn.attempt) == (words(20), "completed", 1)


async def test_a_first_attempt_that_breaks_is_followed_by_its_own_next_attempt(own: HedgingSystem) -> None:
    """The hedge has no token yet: it is closed, and there is no second hedge."""
    # Both calls stall; the one that was made first is noticed first.
    async with own.two_generators(hedge_after_s=0.5, stall_timeout_s=1):
        key = await own.append_request(f"words=20 rate=0 {BOTH_CALLS_SILENT}")
        turn = await own.wait_until_settled(key)
        await own.wait_for_open_streams(0)
    made = await own.attempts(key)
    assert [(attempt.attempt, attempt.is_hedge) for attempt in made] == [(1, False), (2, False)]
    assert len({attempt.generator for attempt in made}) == 1
    assert (turn.text, turn.outcome, await own.calls()) == (words(20), "completed", 3)


async def test_cancelling_closes_both_calls(own: HedgingSystem) -> None:
    async with own.two_generators():
        key = await own.append_request(f"words=20 rate=0 {BOTH_CALLS_SILENT}")
        await own.wait_for_open_streams(2)
        await cancel(own.log, key, "request")
        await own.wait_for_open_streams(0)
        turn = await own.wait_until_settled(key)
    assert (turn.outcome, turn.attempt, await own.count_aborted()) == ("cancelled", 1, 2)


@pytest.mark.rule("R51")
async def test_a_drain_of_the_first_generator_leaves_the_turn_to_the_hedge(own: HedgingSystem, tenant: Tenant) -> None:
    """It stores nothing and gives no lease away. The usage of its call, which is in no end, counts in the limits."""
    counters, limit = Counters(own.connection), subjects.limit(tenant, "tenant", "tokens", "60000-1")
    holds = [Reservation(limit, "tokens", 500)]
    await counters.add(limit, 500)
    async with AsyncExitStack() as generators:
        stops = {
            name: await generators.enter_async_context(own.running_generator(**HEDGING, generator=name, grace_s=0.0))
            for name in ("one", "two")
        }
        await offering(own.server.url, 2)
        key = await own.append_request("words=20 rate=40 wait=2", tenant=tenant, holds=holds)
        await own.wait_for_open_streams(2)
        stops[await first_generator(own.log, key)].set()
        turn = await own.wait_until_settled(key)
        assert turn.end is not None
        used = turn.end.usage.input_tokens + turn.end.usage.output_tokens
        prompt_and_begun = turn.end.usage.input_tokens + 1
        await until_equal(lambda: counters.add(limit, 0), used + prompt_and_begun)
    assert (turn.text, turn.outcome, turn.skipped) == (words(20), "completed", 0)
    assert [one.is_hedge for one in await own.attempts(key)] == [False, True]
    assert await own.calls() == 2
    consumer = await own.connection.jetstream.consumer_info(STREAM, GENERATORS)
    assert consumer.delivered is not None
    assert consumer.delivered.consumer_seq == 1


class Pair(NamedTuple):
    """Two generators that hedge, each a process."""

    own: HedgingSystem
    processes: dict[str, Process]

    async def start_turn(self, line: str) -> tuple[TurnKey, Process, Process]:
        """Returns a turn for which both have called the model, the process of the first attempt, and the other."""
        key = await append_request(self.own.log, line)
        await self.own.wait_for_calls(2)
        first = await first_generator(self.own.log, key)
        (second,) = self.processes.keys() - {first}
        return key, self.processes[first], self.processes[second]


@pytest.fixture
async def pair(tmp_path: Path, own: HedgingSystem) -> AsyncIterator[Pair]:
    await own.shorten_lease(LEASE_S)
    settings = {"TAILRACE_HEDGE_AFTER_S": LATE_S, "TAILRACE_STALL_TIMEOUT_S": 20, "TAILRACE_ATTEMPTS_MAX": 2}
    processes = {
        name: generator(tmp_path, own.server.url, own.claude, TAILRACE_GENERATOR=name, **settings)
        for name in ("one", "two")
    }
    async with AsyncExitStack() as stack:
        await asyncio.gather(*map(stack.enter_async_context, processes.values()))
        yield Pair(own, processes)


@pytest.mark.rule("R51")
@pytest.mark.parametrize("killed", ["first", "hedge"])
async def test_when_one_of_both_is_killed_the_other_finishes_the_turn(pair: Pair, killed: str) -> None:
    """It keeps the lease alone, for longer than the lease lasts: there is no third call."""
    key, first, second = await pair.start_turn("words=20 rate=40 wait=2")
    await (first if killed == "first" else second).stop(SIGKILL)
    turn = await pair.own.wait_until_settled(key)
    assert (turn.text, turn.outcome) == (words(20), "completed")
    assert [one.is_hedge for one in await pair.own.attempts(key)] == [False] + [True] * (killed == "first")
    assert await pair.own.calls() == 2


async def test_a_frozen_loser_that_wakes_up_writes_and_acknowledges_nothing(pair: Pair) -> None:
    key, first, _ = await pair.start_turn("words=100 rate=40 wait=3")
    freeze(first)

    async def last_is_hedge() -> bool:
        return (await pair.own.attempts(key))[-1].is_hedge

    await until(last_is_hedge)
    first.signal(SIGCONT)
    await until(lambda: first.find_lines("turn taken by another writer"))
    await wait_for_open_streams(pair.own.claude, 1)
    assert not await is_acknowledged(pair.own.connection)
    turn = await pair.own.wait_until_settled(key)
    assert (turn.text, turn.outcome, turn.attempt, turn.skipped) == (words(100), "completed", 2, 0)
    assert first.find_lines("turn ended") == []
    assert await pair.own.calls() == 2


@pytest.fixture
async def gateway_connection(own_server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(as_user(own_server.url, GATEWAY), "test-gateway")
    yield connection
    await connection.close()


@pytest.fixture
async def rpc(own_server: NatsServer) -> AsyncIterator[HedgeRpc]:
    """The requests of a generator to the others."""
    connection = await Connection.open(as_user(own_server.url, GENERATORS), "test-peer")
    yield HedgeRpc(connection)
    await connection.close()


class LateTurn:
    """A turn with a first attempt that has no token yet; the test writes its entries."""

    def __init__(self, log: TurnLog, key: TurnKey, chain: Chain, lease: str, limit: str) -> None:
        self.log = log
        self.key = key
        self.limit = limit
        """The subject of its tenant's limit on tokens."""
        self.chain = chain
        self.hedge = Hedge(key.tenant, key.turn, chain.last, lease)

    async def append(self, entry: Entry) -> None:
        self.chain = await self.log.append(self.key, self.chain, entry)

    async def first_token(self) -> None:
        await self.append(turn_builder.event(self.chain, turn_builder.opening_events()[0]))

    async def is_unchanged(self) -> bool:
        return (await self.log.read_turn(self.key)).chain == self.chain


@pytest.fixture
async def late_turn(own_connection: Connection, own_log: TurnLog) -> LateTurn:
    # The test does not renew the lease, and no generator may take the turn over.
    await shorten_lease(own_connection, 60)
    limit = subjects.limit(Tenant("tenant"), "tenant", "tokens", "60000-1")
    holds = [Reservation(limit, "tokens", 500)]
    key = await append_request(own_log, f"words=5 rate=0 {FIRST_CALL_SILENT}", holds=holds)
    (delivery,) = await until((await Deliveries.open(own_connection, GENERATORS)).next)
    chain = (await own_log.read_turn(key)).chain
    chain = await own_log.append(key, chain, turn_builder.attempt(chain))
    return LateTurn(own_log, key, chain, delivery.lease, limit)


async def wait_until_idle(connection: Connection) -> None:
    """Waits until the generator holds no turn."""

    async def is_idle() -> bool:
        report = await Rpc(connection).health(GENERATORS, timeout_s=1)
        return report is not None and msgspec.json.decode(report, type=GeneratorHealth).held == 0

    await until(is_idle)


async def is_delivered_again(connection: Connection) -> bool:
    """Returns whether a request is delivered, after a delay or at once, to a generator that starts now."""
    deliveries = await Deliveries.open(connection, GENERATORS)
    return any([await deliveries.next() for _ in range(3)])


@pytest.mark.rule("R51")
async def test_a_hedge_that_a_drain_stops_counts_its_usage_and_gives_no_lease_away(
    own: HedgingSystem, rpc: HedgeRpc, late_turn: LateTurn
) -> None:
    """The first generator still runs the turn; a third one would make a third call."""
    failed, counters = hedges("failed"), Counters(own.connection)
    async with own.running_generator(**HEDGING, grace_s=0.5) as stop:
        await offering(own.server.url, 1)
        assert await rpc.request(late_turn.hedge)
        await own.wait_for_open_streams(1)
        stop.set()

        async def is_counted() -> bool:
            # The call has begun a message.
            return await counters.add(late_turn.limit, 0) > 0

        await until(is_counted)
    assert hedges("failed") == failed + 1
    assert await late_turn.is_unchanged()
    assert not await is_delivered_again(own.connection)


async def test_a_hedge_with_an_internal_error_gives_no_lease_away(
    own: HedgingSystem,
    gateway_connection: Connection,
    rpc: HedgeRpc,
    late_turn: LateTurn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def break_off(_: AnthropicApi, call: Call) -> AsyncGenerator[ModelEvent, None]:
        raise ZeroDivisionError(call.model)
        yield

    monkeypatch.setattr(AnthropicApi, "answer", break_off)
    async with own.running_generator(**HEDGING):
        await offering(own.server.url, 1)
        assert await rpc.request(late_turn.hedge)
        await wait_until_idle(gateway_connection)
    assert await late_turn.is_unchanged()
    assert not await is_delivered_again(own.connection)


@pytest.mark.rule("R51")
async def test_a_hedge_is_closed_by_another_attempt(own: HedgingSystem, rpc: HedgeRpc, late_turn: LateTurn) -> None:
    async with own.running_generator(**HEDGING):
        await offering(own.server.url, 1)
        assert await rpc.request(late_turn.hedge)
        await own.wait_for_open_streams(1)
        await late_turn.append(turn_builder.attempt(late_turn.chain))
        await own.wait_for_open_streams(0)
        assert await late_turn.is_unchanged()
        assert await own.count_aborted() == 1


async def test_a_turn_that_has_its_first_token_is_not_hedged(
    own: HedgingSystem, gateway_connection: Connection, rpc: HedgeRpc, late_turn: LateTurn
) -> None:
    await late_turn.first_token()
    lost = fences_lost()
    async with own.running_generator(**HEDGING):
        await offering(own.server.url, 1)
        assert await rpc.request(late_turn.hedge)
        await wait_until_idle(gateway_connection)
    assert (await own.calls(), fences_lost()) == (0, lost)
    assert await late_turn.is_unchanged()


async def test_a_generator_declines_a_foreign_lease_a_second_hedge_of_a_turn_and_every_hedge_while_it_drains(
    own: HedgingSystem, gateway_connection: Connection, rpc: HedgeRpc, late_turn: LateTurn
) -> None:
    hedge, foreign = late_turn.hedge, late_turn.hedge.lease.replace(f".{GENERATORS}.", f".{PERSISTENCE}.")
    async with own.running_generator(**HEDGING, grace_s=30) as stop:
        await offering(own.server.url, 1)
        async with asyncio.timeout(TAKE_TIMEOUT_S / 2):
            assert not await rpc.request(msgspec.structs.replace(hedge, lease=foreign))
        assert await own.calls() == 0
        assert await rpc.request(hedge)
        await own.wait_for_calls(1)
        assert not await rpc.request(hedge)
        stop.set()

        async def is_draining() -> bool:
            return await Rpc(gateway_connection).health(GENERATORS, timeout_s=0.5) is None

        await until(is_draining)
        assert not await rpc.request(msgspec.structs.replace(hedge, turn=TurnId("another")))
        assert await own.calls() == 1


async def test_a_backend_that_works_in_a_folder_is_not_hedged(own: HedgingSystem, late_turn: LateTurn) -> None:
    """Two calls of Claude Code would work on the same files."""
    orders, runner = parse_backends("claude_code"), cast("TurnRunner", None)
    assert await run_hedge(runner, own.log, orders, late_turn.hedge) is None
    assert await late_turn.is_unchanged()


class SlottedWorker:
    """A worker with a number of free slots that records the hedges it starts."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.started: list[Hedge] = []

    def has_free_slot(self) -> bool:
        return self.free > 0

    def start_hedge(self, hedge: Hedge) -> bool:
        self.started.append(hedge)
        return self.has_free_slot()


@pytest.mark.rule("R51")
async def test_a_hedge_is_offered_to_one_other_generator_with_a_free_slot(own_server: NatsServer, key: TurnKey) -> None:
    hedge = Hedge(key.tenant, key.turn, Seq(3), "a-lease")
    requesting, full, one, two = workers = [SlottedWorker(free) for free in (9, 0, 9, 9)]
    async with AsyncExitStack() as stack:
        rpcs = []
        for worker in workers:
            connection = await Connection.open(as_user(own_server.url, GENERATORS), "test")
            stack.push_async_callback(connection.close)
            rpcs.append(HedgeRpc(connection))
            # The generators so far are the one that requests, and then one without a free slot.
            assert worker is two or not await rpcs[0].request(hedge)
            await rpcs[-1].serve(worker.has_free_slot, worker.start_hedge)
            # A request does not overtake a subscription of the same connection.
            await connection.jetstream.stream_info(STREAM)
        for _ in range(5):
            assert await rpcs[0].request(hedge)
        assert (requesting.started, full.started) == ([], [])
        assert one.started + two.started == [hedge] * 5
        one.free = two.free = 0
        assert not await rpcs[0].request(hedge)
