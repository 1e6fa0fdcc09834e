"""A generator with a real log and the simulated Claude: leases, retries, continuations, cancels and stops.

It runs in the test's event loop as its process would, with short waits. The simulated Claude counts the calls.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partialmethod
from signal import SIGKILL
from typing import Any, NamedTuple, cast

import pytest

from tailrace.deploy.local.ports import find_free
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.gateway.turns.cancel import cancel
from tailrace.generators import worker
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.model_event import Put
from tailrace.generators.turn_runner import TurnRunner
from tailrace.generators.worker import Worker
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Attempt, Entry, Event
from tailrace.proto.errors import EntryTooLarge, FenceLost
from tailrace.proto.fold import EMPTY_TURN, Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Deliveries, Delivery, TurnLog
from tailrace.proto.nats.leases import Mark, consumer_backlog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import GENERATORS, STREAM
from tests.harness import turn_builder
from tests.harness.generator_in_loop import failure_code, fences_lost, is_acknowledged, read_stats, words
from tests.harness.own_system import OwnSystem
from tests.harness.until import until, until_equal

PREFILLED = "claude-sonnet-4-5"
CONTINUED = ("fresh", "continue")

# The anthropic package warns at every call of this model, which is here because it continues by prefill.
pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated:DeprecationWarning")


async def test_a_generator_without_features_answers_and_continues_a_broken_answer(own: OwnSystem) -> None:
    async with own.running_generator(features=()):
        turn = await own.answer("words=9 rate=0 fault=cut@4x1")
    assert (turn.text, turn.outcome, turn.attempt) == (words(9), "completed", 2)


@pytest.mark.rule("R17")
async def test_a_turn_is_acknowledged_after_its_end_and_not_before(own: OwnSystem) -> None:
    """If its generator dies meanwhile, another one gets it."""
    async with own.running_generator():
        turn = await own.answer("words=50 rate=0")
        assert (turn.text, turn.outcome, turn.attempt, turn.stop.stop_reason) == (words(50), "completed", 1, "end_turn")
        assert (turn.usage.output_tokens, await own.calls()) == (50, 1)
        await own.wait_until_acknowledged()
        key = await own.append_request("words=3 rate=0 fault=stall@1")
        await own.wait_for_open_streams(1)
        assert not await is_acknowledged(own.connection)
        await cancel(own.log, ScopedKey.whole(key), "request")
        await own.wait_until_acknowledged()


async def test_the_lease_of_a_running_turn_is_renewed(own: OwnSystem) -> None:
    """Another idle generator does not get the turn."""
    await own.shorten_lease(0.5)
    async with own.running_generator(), own.running_generator():
        turn = await own.answer("words=60 rate=50")
    assert (turn.text, turn.attempt, await own.calls()) == (words(60), 1, 1)


async def test_deltas_within_the_interval_become_one_entry(own: OwnSystem) -> None:
    """TAILRACE_DELTA_INTERVAL_S: the log and the readers have fewer events, and the same text."""
    async with own.running_generator(delta_interval_s=1.0):
        key = await own.append_request("words=40 rate=100")
        assert (await own.wait_for_end(key)).text == words(40)
    assert len(await own.log.read_entries(ScopedKey.whole(key))) < 20


async def test_a_turn_delivered_again_to_its_own_generator_continues(own: OwnSystem) -> None:
    """A generator that was frozen longer than its lease gets the turn again: the same attempt goes on."""
    await own.shorten_lease(0.3)
    async with own.running_generator():
        key = await own.append_request("words=40 rate=40")
        await own.wait_for_open_streams(1)
        # The fault: nothing in this process runs for that long.
        time.sleep(0.7)  # noqa: ASYNC251
        turn = await own.wait_for_end(key)
        await own.wait_until_acknowledged()
    assert (turn.text, turn.attempt, await own.calls()) == (words(40), 1, 1)
    info = await own.connection.jetstream.consumer_info(STREAM, GENERATORS)
    assert info.delivered is not None
    assert info.delivered.consumer_seq > 1, "nothing was delivered again"


@pytest.mark.rule("R100")
async def test_a_draining_generator_finishes_its_turns_until_a_second_signal(own: OwnSystem) -> None:
    """It takes no new turn; another generator takes the queue, and what is handed over."""
    async with own.running_generator(grace_s=600) as stop:
        key = await own.append_request("words=4000 rate=50")
        await own.wait_for_open_streams(1)
        stop.signal()
        async with own.running_generator():
            assert (await own.answer("words=3 rate=0")).attempt == 1
            assert await own.modes(key) == ["fresh"]
            stop.signal()
            await until_equal(lambda: own.modes(key), [*CONTINUED])
            await cancel(own.log, ScopedKey.whole(key), "request")


async def test_a_turn_that_another_writer_continues_counts_as_a_lost_fence(own: OwnSystem) -> None:
    """A turn that a client cancels does not."""
    lost = fences_lost()
    async with own.running_generator():
        cancelled = await own.append_request("words=4000 rate=20")
        await own.wait_for_open_streams(1)
        await cancel(own.log, ScopedKey.whole(cancelled), "request")
        await own.wait_until_acknowledged()
        assert fences_lost() == lost
        continued = await own.append_request("words=4000 rate=20")
        await own.wait_for_open_streams(1)

        async def is_continued() -> bool:
            chain = (await own.log.read_turn(ScopedKey.whole(continued))).chain
            with suppress(FenceLost):
                await own.log.append(continued, chain, turn_builder.attempt(chain, "continue"))
                return True
            return False

        await until(is_continued)
        await until(lambda: fences_lost() == lost + 1)


def is_kept(session: str) -> bool:
    """Returns whether a fold of a turn of `session` is in memory."""
    requests = [one.request for one in gc.get_objects() if isinstance(one, Turn)]
    return any(request.session == session for request in requests if request is not None)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """A turn that has run for a minute is an old object: a collection of those may come only after 20,000 turns."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_a_cancelled_turn_is_freed_without_a_garbage_collection(own: OwnSystem) -> None:
    async with own.running_generator():
        key = await own.append_request("words=4000 rate=20", session="cancelled")
        await own.wait_for_open_streams(1)
        assert is_kept("cancelled")
        await cancel(own.log, ScopedKey.whole(key), "request")
        await own.wait_until_acknowledged()
        await until(lambda: not is_kept("cancelled"), deadline_s=2)


@pytest.mark.usefixtures("no_collection")
async def test_a_turn_that_an_outage_interrupts_is_freed_without_a_garbage_collection(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TurnLog, "append", partialmethod(TurnLog.append, timeout_s=0.1))
    async with own.running_generator():
        await own.append_request("words=4000 rate=20", session="interrupted")
        await own.wait_for_open_streams(1)
        await own.server.stop(SIGKILL)
        await own.wait_for_open_streams(0)
        await until(lambda: not is_kept("interrupted"), deadline_s=2)


async def break_off(_: AnthropicApi, call: Call, put: Put) -> None:
    raise ZeroDivisionError(call.model)


@pytest.mark.usefixtures("no_collection")
async def test_a_turn_that_raises_in_its_generator_is_freed_without_a_garbage_collection(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnthropicApi, "stream", break_off)
    async with own.running_generator(attempts_max=1):
        await own.append_request("words=3", session="broken")
        await own.wait_until_acknowledged()
        await until(lambda: not is_kept("broken"), deadline_s=2)


@pytest.mark.usefixtures("no_collection")
async def test_a_turn_whose_calls_fail_is_freed_without_a_garbage_collection(own: OwnSystem) -> None:
    async with own.running_generator(attempts_max=1):
        await own.append_request("fault=500", session="refused")
        await own.wait_until_acknowledged()
        await until(lambda: not is_kept("refused"), deadline_s=2)


@pytest.mark.usefixtures("no_collection")
async def test_a_turn_with_an_event_that_cannot_be_stored_is_freed_without_a_garbage_collection(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = TurnLog.append

    async def refuse(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        if not isinstance(entry, Event):
            return await append(self, key, chain, entry)
        await own.wait_for_open_streams(1)
        raise EntryTooLarge("9 bytes exceed the limit")

    monkeypatch.setattr(TurnLog, "publish_soon", lambda *_: False)
    monkeypatch.setattr(TurnLog, "append", refuse)
    async with own.running_generator():
        key = await own.append_request("words=4000 rate=20", session="large")
        await own.wait_until_acknowledged()
        assert failure_code(await own.log.read_turn(ScopedKey.whole(key))) == "entry_too_large"
        await until(lambda: not is_kept("large"), deadline_s=2)


class Overtaken:
    """A runner whose turns all have another writer."""

    async def run(self, key: TurnKey, *_: object) -> Turn:
        raise FenceLost(f"another writer has {key.turn}")


async def overtaken_worker(own: OwnSystem, settle: Callable[[TurnKey, Turn], Awaitable[None]]) -> Worker:
    deliveries, runner = await Deliveries.open(own.connection, GENERATORS), cast("TurnRunner", Overtaken())
    return Worker(own.log, deliveries, runner, settle, concurrency=1, grace_s=1)


async def test_a_turn_with_another_writer_is_settled_once_it_has_ended(own: OwnSystem) -> None:
    await own.shorten_lease(0.3)
    stop, lost = asyncio.Event(), fences_lost()
    settled: list[str] = []

    async def settle(_: TurnKey, turn: Turn) -> None:
        settled.append(turn.outcome)

    running = asyncio.create_task((await overtaken_worker(own, settle)).run(stop))
    key = await own.append_request("words=3")
    await until(lambda: fences_lost() > lost)
    await cancel(own.log, ScopedKey.whole(key), "request")
    await own.wait_until_acknowledged()
    stop.set()
    await running
    assert settled == ["cancelled"]


async def test_an_error_while_a_lost_turn_is_settled_does_not_stop_the_worker(own: OwnSystem) -> None:
    """The turn is delivered again when its lease expires, and settled then."""
    await own.shorten_lease(0.3)
    stop, outcomes = asyncio.Event(), list[str]()

    async def settle(_: TurnKey, turn: Turn) -> None:
        outcomes.append(turn.outcome)
        if len(outcomes) == 1:
            raise ZeroDivisionError

    await cancel(own.log, ScopedKey.whole(await own.append_request("words=3")), "request")
    running = asyncio.create_task((await overtaken_worker(own, settle)).run(stop))
    await until(lambda: running.done() or len(outcomes) == 2)
    await own.wait_until_acknowledged()
    stop.set()
    await running
    assert outcomes == ["cancelled", "cancelled"]


@pytest.mark.rule("R18")
async def test_a_worker_fetches_at_once_what_it_can_start_and_no_more(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request in the queue can go to another generator; one in a busy process waits for its lease."""
    fetched: list[int] = []
    fetch = Deliveries.next

    async def fetch_and_count(deliveries: Deliveries, most: int, mark: Mark) -> list[Delivery]:
        found = await fetch(deliveries, most, mark)
        fetched.append(len(found))
        return found

    monkeypatch.setattr(Deliveries, "next", fetch_and_count)
    deliveries = await Deliveries.open(own.connection, GENERATORS)
    keys = [await own.append_request(f"words=3 rate=0 tag=x{number} fault=stall@1") for number in range(5)]
    async with own.running_generator(concurrency=2, tenant_share=1):
        await own.wait_for_open_streams(2)
        assert fetched == [2]
        backlog = await deliveries.backlog()
        assert (backlog.leased, backlog.waiting) == (2, 3)
        for number, key in enumerate(keys):
            await cancel(own.log, ScopedKey.whole(key), "request")
            await own.wait_for_open_streams(min(2, len(keys) - number - 1))
    assert await own.calls() == 5


@pytest.mark.rule("R106")
@pytest.mark.parametrize("begun", [False, True], ids=["it has waited", "another generator has begun it"])
async def test_a_request_that_is_delivered_again_is_read_only_if_it_has_an_attempt(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    """For each read of a turn that has waited long, nats-server compares the subjects of thousands of entries."""
    reads, read_turn = list[TurnKey](), TurnLog.read_turn

    async def read_and_count(self: TurnLog, key: ScopedKey, known: Turn = EMPTY_TURN) -> Turn:
        reads.append(key.plain)
        return await read_turn(self, key, known)

    key = await own.append_request("words=2 rate=0")
    deliveries = await Deliveries.open(own.connection, GENERATORS)
    (delivery,) = await until(deliveries.next)
    if begun:
        attempt = Attempt(prev=delivery.seq, attempt=1, generator="g1", backend="claude", mode="fresh")
        await own.log.append(key, (await own.log.read_turn(ScopedKey.whole(key))).chain, attempt)
    await delivery.release()
    monkeypatch.setattr(TurnLog, "read_turn", read_and_count)
    async with own.running_generator():
        await own.wait_until_acknowledged()
    assert reads == ([key] if begun else [])
    turn = await own.wait_for_end(key)
    assert (turn.text, turn.attempt) == (words(2), 2 if begun else 1)
    assert [one.generator == "g1" for one in await own.attempts(key)] == ([True, False] if begun else [False])


@pytest.mark.rule("R18")
async def test_a_waiting_turn_keeps_its_lease_and_is_given_back_in_time(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not delivered again while it waits, although its lease is longer than its renewals are apart."""
    monkeypatch.setattr(worker, "WAITING_LEASE_S", 0.6)
    await own.shorten_lease(0.2)
    async with own.running_generator(concurrency=2, tenant_share=0.5):
        keys = [await own.append_request("words=30 rate=20") for _ in range(2)]
        turns = [await own.wait_for_end(key) for key in keys]
        deliveries = await consumer_backlog(own.connection, GENERATORS)
        await own.wait_until_acknowledged()
    assert {(turn.outcome, turn.attempt) for turn in turns} == {("completed", 1)}
    assert deliveries.number == 2


@pytest.mark.rule("R18")
async def test_the_lease_of_a_turn_is_renewed_at_its_start(own: OwnSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the second one, which has waited: if its generator were then killed, its readers would wait four times as
    long.
    """
    renewed, renew = list[TurnKey](), Delivery.renew

    async def note_renewal(delivery: Delivery) -> None:
        renewed.append(delivery.key)
        await renew(delivery)

    monkeypatch.setattr(Delivery, "renew", note_renewal)
    await own.shorten_lease(3600)
    async with own.running_generator(concurrency=2, tenant_share=0.5):
        keys = [await own.append_request("words=2 rate=20") for _ in range(2)]
        for key in keys:
            await own.wait_until_settled(key)
    assert renewed == keys


class Case(NamedTuple):
    """A turn, and how it ends."""

    line: str
    text: str
    calls: int
    modes: tuple[str, ...] = ("fresh",)
    error: str | None = None
    settings: dict[str, Any] | None = None
    request: dict[str, Any] | None = None


STALLED_SOON = {"stall_timeout_s": 0.3}
CASES = {
    "429 twice": Case("words=9 rate=0 fault=429x2 retry_after=0", words(9), 3),
    # A proxy's login page with status 200 is a failed call, not an empty answer.
    "HTML": Case("words=9 rate=0 fault=htmlx1", words(9), 2),
    "429 always": Case(
        "words=9 fault=429x9 retry_after=0", "", 3, error="backend_rate_limited", settings={"call_tries_max": 3}
    ),
    **{
        f"{fault} in the middle": Case(
            f"words=40 rate=0 fault={fault}@17", words(40), 2, CONTINUED, settings=STALLED_SOON
        )
        # Each other fault has one of their codes: test_claude_backend.py.
        for fault in ("cut", "stall", "garbage")
    },
    "cut, by prefill": Case("words=40 rate=0 fault=cut@17", words(40), 2, CONTINUED, request={"model": PREFILLED}),
    "cut always, and restarted": Case(
        "words=90 rate=0 fault=cut@5x9",
        words(5),
        4,
        ("fresh", "restart", "restart", "restart"),
        error="attempts_exhausted",
        settings={"attempts_max": 3},
        request={"on_interrupt": "restart"},
    ),
    "cut often, each time further": Case(
        "words=90 rate=0 fault=cut@5x9", words(90), 10, ("fresh", *["continue"] * 9), settings={"attempts_max": 2}
    ),
    "on_interrupt: restart": Case(
        "words=40 rate=0 fault=cut@17x1",
        words(40),
        2,
        ("fresh", "restart"),
        request={"on_interrupt": "restart"},
    ),
    "on_interrupt: fail": Case(
        "words=40 rate=0 fault=cut@17", words(17), 1, error="interrupted", request={"on_interrupt": "fail"}
    ),
    "a refused request": Case("bad", "", 0, error="backend_refused_request"),
    "a refused key": Case("words=9", "", 0, error="backend_refused_key", settings={"anthropic_api_key": "bad-key"}),
}


@pytest.mark.rule("F20")
@pytest.mark.rule("F21")
@pytest.mark.rule("F23")
@pytest.mark.parametrize("name", CASES)
async def test_a_failing_call_is_repeated_continued_or_fails_the_turn(own: OwnSystem, name: str) -> None:
    """Before its first event it is repeated, after it the next attempt continues it, up to the limits."""
    case = CASES[name]
    async with own.running_generator(**case.settings or {}):
        key = await own.append_request(case.line, **case.request or {})
        turn = await own.wait_for_end(key)
        await own.wait_until_acknowledged()
    assert turn.outcome == ("failed" if case.error else "completed")
    assert (turn.error.code if turn.error else None) == case.error
    assert (turn.text, tuple(await own.modes(key)), len(turn.blocks)) == (
        case.text,
        case.modes,
        bool(case.text),
    )
    counted = await read_stats(own.claude)
    # The simulated Claude does not count calls that cost nothing.
    assert (counted["calls"], counted["continuations_mismatched"]) == (case.calls, 0)
    assert counted["continuations"] == case.modes.count("continue")


async def test_an_unreachable_model_is_called_again(own: OwnSystem) -> None:
    """Connection refused until a server listens: still the first attempt."""
    [port] = find_free(1)
    async with own.running_generator(claude_url=f"http://127.0.0.1:{port}", call_tries_max=99, call_wait_max_s=0.1):
        key = await own.append_request("words=9 rate=0")
        await until(lambda: own.attempts(key))
        async with run_simulated_claude(port=port):
            turn = await own.wait_for_end(key)
    assert (turn.text, turn.outcome, turn.attempt) == (words(9), "completed", 1)


async def test_a_turn_fails_at_its_deadline_and_keeps_its_text(own: OwnSystem) -> None:
    """The call is closed, and no generator takes the turn again."""
    async with own.running_generator(deadline_s=0.5):
        turn = await own.answer("words=900 rate=40")
        await own.wait_for_open_streams(0)
        await own.wait_until_acknowledged()
    assert (failure_code(turn), turn.attempt) == ("deadline_exceeded", 1)
    assert turn.text
    assert words(900).startswith(turn.text)
    assert (await read_stats(own.claude))["streams_aborted"] == 1


@pytest.mark.rule("F4")
async def test_at_sigterm_a_running_turn_may_finish_and_no_turn_begins(own: OwnSystem) -> None:
    """A request that a last pull still delivers goes to another generator."""
    async with own.running_generator(concurrency=8, grace_s=10) as stop:
        running = await own.append_request("words=60 rate=80")
        await own.wait_for_open_streams(1)
        stop.set()
        late = await own.append_request("words=3")
        finished = await own.wait_for_end(running)
        assert await own.attempts(late) == []
        async with own.running_generator():
            answered = await own.wait_for_end(late)
    assert (finished.text, finished.attempt) == (words(60), 1)
    assert (answered.text, answered.attempt) == (words(3), 1)
    (first,), (second,) = await own.attempts(running), await own.attempts(late)
    assert first.generator != second.generator


@pytest.mark.rule("F4")
async def test_after_the_grace_period_another_generator_continues_at_once(own: OwnSystem) -> None:
    """It does not wait for the lease, also when all slots were taken."""
    async with own.running_generator(grace_s=0.1, concurrency=1) as stop:
        key = await own.append_request("words=80 rate=80")
        await own.wait_for_open_streams(1)
        async with own.running_generator():
            stop.set()
            turn = await own.wait_for_end(key)
    assert (turn.text, turn.outcome) == (words(80), "completed")
    assert await own.modes(key) == ["fresh", "continue"]
    entries = await own.log.read_entries(ScopedKey.whole(key))
    [second] = [stored for stored in entries if isinstance(stored.entry, Attempt) and stored.entry.attempt == 2]
    before = next(stored for stored in entries if stored.seq == second.entry.prev)
    assert (second.at - before.at).total_seconds() < 1.5
    assert await own.calls() == 2


@pytest.mark.rule("F27")
async def test_a_turn_that_raises_in_every_generator_ends(own: OwnSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts with an internal error count, so the turn fails after the last one; the generator continues."""
    with monkeypatch.context() as patched:
        patched.setattr(AnthropicApi, "stream", break_off)
        async with own.running_generator(attempts_max=2):
            turn = await own.wait_until_settled(await own.append_request("words=3"))
            patched.undo()
            assert (await own.answer("words=2 rate=0")).outcome == "completed"
    assert (failure_code(turn), turn.attempt) == ("attempts_exhausted", 2)
