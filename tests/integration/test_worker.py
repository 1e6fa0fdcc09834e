"""A generator, whole: a real log, the simulated Claude over HTTP, and every way in which either lets it down.

It runs in the test's loop, as its process runs it; only its waits are short. What was paid for is counted by
the simulated Claude.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from signal import SIGKILL

import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.ports import find_free
from tailrace.deploy.simulated_claude.server import serving
from tailrace.gateway.turns.cancel import cancel
from tailrace.generators.attempt import TurnRunner
from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.generators.failover import parse_backends
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.generators.worker import Worker
from tailrace.proto import events
from tailrace.proto.entries import Attempt
from tailrace.proto.nats import BlobStore, Connection, Counters, Deliveries, Slots, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.runtime.byte_semaphore import ByteSemaphore
from tailrace.proto.subjects import GENERATORS, STREAM
from tests.harness.generator_in_loop import (
    ask,
    attempts,
    ended,
    is_acknowledged,
    modes,
    open_streams,
    shorten_lease,
    stats,
    words,
    working,
)
from tests.harness.until import until

PREFILLED, LATER = "claude-sonnet-4-5", "claude-sonnet-5-5"
FAULTS = ("cut", "stall", "eof", "garbage", "error", "429", "500", "529")

# anthropic says so of every call; the model is here for its prefill.
pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated:DeprecationWarning")


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


@pytest.mark.rule("R17")
async def test_a_turn_is_answered_and_then_acknowledged(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """One attempt, one call, the complete text, and an empty queue."""
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=50 rate=0")
        turn = await ended(own_log, key)
        assert (turn.text, turn.outcome, turn.attempt, turn.stop.stop_reason) == (words(50), "completed", 1, "end_turn")
        assert turn.usage.output_tokens == 50
        assert (await stats(claude))["calls"] == 1
        await until(lambda: is_acknowledged(own_connection))


@pytest.mark.rule("R17")
async def test_a_turn_is_not_acknowledged_while_it_runs(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """If its generator dies, another one gets it."""
    async with working(own_server.url, claude, stall_timeout_s=5):
        key = await ask(own_log, "words=3 rate=0 fault=stall@1")
        await open_streams(claude, 1)
        assert not await is_acknowledged(own_connection)
        await cancel(own_log, key)
        await until(lambda: is_acknowledged(own_connection))


async def test_the_lease_of_a_running_turn_is_renewed(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Another generator that waits for work does not get it."""
    await shorten_lease(own_connection, 1.0)
    async with working(own_server.url, claude), working(own_server.url, claude):
        key = await ask(own_log, "words=60 rate=25")
        turn = await ended(own_log, key)
    assert (turn.text, turn.attempt) == (words(60), 1)
    assert (await stats(claude))["calls"] == 1


async def test_a_redelivery_to_the_same_generator_renews_the_lease(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """A generator that was frozen longer than its lease gets its own turn again."""
    await shorten_lease(own_connection, 0.3)
    async with working(own_server.url, claude, stall_timeout_s=9):
        key = await ask(own_log, "words=40 rate=40")
        await open_streams(claude, 1)
        # The fault itself: nothing in this process moves for that long.
        time.sleep(0.7)  # noqa: ASYNC251
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
        assert (turn.text, turn.attempt) == (words(40), 1)
        assert (await stats(claude))["calls"] == 1
        info = await own_connection.jetstream.consumer_info(STREAM, GENERATORS)
        assert info.delivered is not None
        assert info.delivered.consumer_seq > 1, "nothing was delivered again"


@pytest.mark.rule("R18")
async def test_a_worker_takes_no_more_than_its_concurrency(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """A request in the queue can go to another generator; one in a busy process waits for its lease."""
    deliveries = await Deliveries.open(own_connection, GENERATORS)
    async with working(own_server.url, claude, concurrency=2, stall_timeout_s=10):
        keys = [await ask(own_log, f"words=3 rate=0 tag=x{number} fault=stall@1") for number in range(5)]
        await open_streams(claude, 2)
        backlog = await deliveries.backlog()
        assert (backlog.leased, backlog.waiting) == (2, 3)
        for number, key in enumerate(keys):
            await cancel(own_log, key)
            await open_streams(claude, min(2, len(keys) - number - 1))
        assert (await stats(claude))["calls"] == 5


@pytest.mark.rule("F2")
async def test_an_ended_turn_is_only_acknowledged(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Cancelled before a claim, or killed before the acknowledgement: no call, no entry."""
    key = await ask(own_log, "words=3")
    await cancel(own_log, key)
    before = await own_log.replay(key)
    async with working(own_server.url, claude):
        await until(lambda: is_acknowledged(own_connection))
    assert await own_log.replay(key) == before
    assert (await stats(claude))["calls"] == 0


async def test_a_turn_fails_at_its_deadline_and_keeps_its_text(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """The call is closed, and no generator takes the turn again."""
    async with working(own_server.url, claude, deadline_s=0.5):
        key = await ask(own_log, "words=900 rate=40")
        turn = await ended(own_log, key)
        assert turn.error is not None
        assert (turn.outcome, turn.error.code, turn.attempt) == ("failed", "deadline_exceeded", 1)
        assert turn.text
        assert words(900).startswith(turn.text)
        await open_streams(claude, 0)
        assert (await stats(claude))["streams_aborted"] == 1
        await until(lambda: is_acknowledged(own_connection))


@pytest.mark.rule("F20")
@pytest.mark.parametrize(("fault", "calls"), [("429x2", 3), ("529x1", 2), ("500x3", 4)])
async def test_a_call_that_fails_before_its_first_event_is_repeated(
    own_server: NatsServer, own_log: TurnLog, claude: str, fault: str, calls: int
) -> None:
    """Within the same attempt."""
    async with working(own_server.url, claude):
        key = await ask(own_log, f"words=9 rate=0 fault={fault} retry_after=0")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt) == (words(9), "completed", 1)
    assert (await stats(claude))["calls"] == calls


@pytest.mark.rule("F20")
async def test_retry_after_is_the_least_wait(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """However short the back-off is."""
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=9 rate=0 fault=429x1 retry_after=0.4")
        turn = await ended(own_log, key)
    assert turn.asked_at is not None
    assert turn.ended_at is not None
    assert turn.text == words(9)
    assert (turn.ended_at - turn.asked_at).total_seconds() >= 0.4


@pytest.mark.rule("F20")
@pytest.mark.parametrize(("fault", "code"), [("429x9", "backend_rate_limited"), ("529x9", "backend_overloaded")])
async def test_calls_of_an_attempt_are_limited(
    own_server: NatsServer, own_log: TurnLog, claude: str, fault: str, code: str
) -> None:
    """After `call_tries_max` calls the turn fails with the model's error."""
    async with working(own_server.url, claude, call_tries_max=3):
        key = await ask(own_log, f"words=9 rate=0 fault={fault} retry_after=0")
        turn = await ended(own_log, key)
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.attempt, turn.text) == ("failed", code, 1, "")
    assert (await stats(claude))["calls"] == 3


async def test_an_unreachable_model_is_called_again(own_server: NatsServer, own_log: TurnLog) -> None:
    """Connection refused until a server listens: still the first attempt."""
    [port] = find_free(1)
    async with working(own_server.url, f"http://127.0.0.1:{port}", call_tries_max=99, call_wait_max_s=0.1):
        key = await ask(own_log, "words=9 rate=0")
        await until(lambda: attempts(own_log, key))
        async with serving(port=port):
            turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt) == (words(9), "completed", 1)


@pytest.mark.rule("F20")
@pytest.mark.rule("F21")
@pytest.mark.parametrize("model", [PREFILLED, LATER])
@pytest.mark.parametrize("fault", FAULTS)
async def test_an_answer_that_breaks_off_is_continued(
    own_server: NatsServer, own_log: TurnLog, claude: str, fault: str, model: str
) -> None:
    """After any failure: one more attempt, one more call, and the uninterrupted text."""
    async with working(own_server.url, claude):
        key = await ask(own_log, f"words=40 rate=0 fault={fault}@17", model=model)
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt) == (words(40), "completed", 2)
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert await modes(own_log, key) == ["fresh", "continue"]
    counted = await stats(claude)
    assert (counted["calls"], counted["continuations"], counted["continuations_mismatched"]) == (2, 1, 0)


async def test_a_call_answered_with_html_is_repeated(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """A proxy's login page with status 200 is a failed call, not an empty answer."""
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=9 rate=0 fault=htmlx1")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt) == (words(9), "completed", 1)


async def test_attempts_are_limited(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """An answer that always breaks off ends with its text so far and the last reason."""
    async with working(own_server.url, claude, attempts_max=3):
        key = await ask(own_log, "words=90 rate=0 fault=cut@5x9")
        turn = await ended(own_log, key)
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.attempt) == ("failed", "attempts_exhausted", 3)
    assert "broke off" in turn.error.message
    assert turn.text == words(15)
    assert (await stats(claude))["calls"] == 3


@pytest.mark.rule("F23")
@pytest.mark.parametrize(("status", "code"), [(401, "backend_refused_key"), (400, "backend_refused_request")])
async def test_a_permanent_error_fails_the_turn_at_once(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, status: int, code: str
) -> None:
    """A wrong key or request: one call, one attempt, the API's message."""
    async with refusing(status) as (url, calls), working(own_server.url, url):
        key = await ask(own_log, "words=9")
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.error.message, turn.attempt) == ("failed", code, "no", 1)
    assert len(calls) == 1


@asynccontextmanager
async def refusing(status: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that refuses every call, and the calls: the simulated Claude does not count what costs nothing."""
    calls: list[bytes] = []
    body = b'{"type":"error","error":{"type":"x","message":"no"}}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            calls.append(await reader.readuntil(b"\r\n\r\n"))
            head = (
                b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            )
            writer.write(head % (status, len(body)) + body)
            await writer.drain()
            await reader.read()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", calls


@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
@pytest.mark.parametrize("line", ["words=9 wait=30", "words=9 fault=stall@3", "words=9000 rate=20"])
async def test_a_cancel_closes_the_call_within_a_second(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str, line: str
) -> None:
    """Before the first word, during a silence, and during a stream."""
    async with working(own_server.url, claude, stall_timeout_s=30):
        key = await ask(own_log, line)
        await open_streams(claude, 1)
        async with asyncio.timeout(1):
            await cancel(own_log, key)
            await open_streams(claude, 0)
        assert (await stats(claude))["streams_aborted"] == 1
        assert (await own_log.turn(key)).outcome == "cancelled"
        # Sooner than the lease would have brought it back.
        await until(lambda: is_acknowledged(own_connection), deadline_s=2)


async def test_on_interrupt_restart_replaces_the_partial_answer(
    own_server: NatsServer, own_log: TurnLog, claude: str
) -> None:
    """The complete answer is stored once."""
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=40 rate=0 fault=cut@17x1", on_interrupt="restart")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome) == (words(40), "completed")
    assert len(turn.blocks) == 1
    assert await modes(own_log, key) == ["fresh", "restart"]


async def test_a_turn_that_asked_for_it_fails_and_keeps_its_text(
    own_server: NatsServer, own_log: TurnLog, claude: str
) -> None:
    """`on_interrupt: fail`: no second call."""
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=40 rate=0 fault=cut@17", on_interrupt="fail")
        turn = await ended(own_log, key)
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.text) == ("failed", "interrupted", words(17))
    assert (await stats(claude))["calls"] == 1


@pytest.mark.parametrize("line", ["words=5 thinking=9 fault=cut@4x1", "words=5 tool=look fault=cut@6x1"])
async def test_half_a_thought_and_half_a_tool_call_restart(
    own_server: NatsServer, own_log: TurnLog, claude: str, line: str
) -> None:
    """No model takes those up in the middle: the answer begins anew, and is whole."""
    async with working(own_server.url, claude):
        broken = await ended(own_log, await ask(own_log, f"rate=0 {line}"))
        key = await ask(own_log, f"rate=0 {line.partition(' fault')[0]}")
        whole = await ended(own_log, key)
    assert broken.blocks == whole.blocks
    assert (broken.mode, broken.attempt, whole.mode, whole.attempt) == ("restart", 2, "fresh", 1)


@pytest.mark.rule("F4")
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_at_sigterm_a_running_turn_may_finish_and_none_begins(
    own_server: NatsServer, own_log: TurnLog, claude: str, concurrency: int
) -> None:
    """Within its grace a generator finishes what it has; what a last pull still brings it leaves to others."""
    async with working(own_server.url, claude, concurrency=concurrency, grace_s=10) as stop:
        running = await ask(own_log, "words=60 rate=40")
        await open_streams(claude, 1)
        stop.set()
        late = await ask(own_log, "words=3")
        finished = await ended(own_log, running)
        assert await attempts(own_log, late) == []
        async with working(own_server.url, claude):
            answered = await ended(own_log, late)
    assert (finished.text, finished.attempt) == (words(60), 1)
    assert (answered.text, answered.attempt) == (words(3), 1)
    assert answered.generator != finished.generator


@pytest.mark.rule("F4")
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_after_the_grace_period_a_turn_is_released_to_another_generator(
    own_server: NatsServer, own_log: TurnLog, claude: str, concurrency: int
) -> None:
    """Within about a second, not after its lease; also when all slots were taken."""
    async with working(own_server.url, claude, grace_s=0.1, concurrency=concurrency) as stop:
        key = await ask(own_log, "words=80 rate=40")
        await open_streams(claude, 1)
        async with working(own_server.url, claude):
            stop.set()
            turn = await ended(own_log, key)
    assert (turn.text, turn.outcome) == (words(80), "completed")
    assert await modes(own_log, key) == ["fresh", "continue"]
    entries = await own_log.replay(key)
    [taken] = [stored for stored in entries if isinstance(stored.entry, Attempt) and stored.entry.attempt == 2]
    before = next(stored for stored in entries if stored.seq == taken.entry.prev)
    assert (taken.at - before.at).total_seconds() < 1.5
    assert (await stats(claude))["calls"] == 2


@pytest.mark.rule("F10")
async def test_a_turn_survives_a_restart_of_nats_server(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """Events wait during the restart, and the answer continues."""
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=60 rate=60")
        # Begun before the death: a follower waits for the log to come back, a new one would be refused.
        ending = asyncio.create_task(ended(own_log, key))
        await open_streams(claude, 1)
        await own_server.stop(SIGKILL)
        await own_server.start()
        turn = await ending
    assert (turn.text, turn.outcome, turn.skipped) == (words(60), "completed", 0)
    assert (await stats(claude))["calls"] <= 2


class Broken:
    """A backend with a mistake of ours in it."""

    def model_id(self, model: str) -> str:
        return model

    async def answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        raise ZeroDivisionError(call.model)
        yield ModelEvent(events.UnknownEvent(), msgspec.Raw())

    async def close(self) -> None: ...


@pytest.mark.rule("F27")
async def test_a_turn_that_raises_in_every_generator_ends(own_connection: Connection, own_log: TurnLog) -> None:
    """Attempts with an internal error count, so the turn fails after the last one; the generator lives on."""
    blobs = BlobLoader(BlobStore(own_connection), ByteSemaphore(1))
    retry = Retry(tries_max=1, wait_s=0, wait_max_s=0)
    caller = ModelCaller({"broken": Broken()}, parse_backends("broken"), retry, blobs)
    runner = TurnRunner(own_log, caller, Planner(2), name="g")
    deliveries = await Deliveries.open(own_connection, GENERATORS)
    settlement = Settlement(Counters(own_connection), Slots(own_connection))
    worker = Worker(own_log, deliveries, runner, settlement.settle, concurrency=1, deadline_s=9, grace_s=0)
    running = asyncio.create_task(worker.run(asyncio.Event()))
    key = await ask(own_log, "words=3")
    turn = await ended(own_log, key)
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.attempt) == ("failed", "attempts_exhausted", 2)
    await until(lambda: is_acknowledged(own_connection))
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
