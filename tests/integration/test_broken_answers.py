"""Incomplete and malformed answers of the model (FAULTS F22): a faulty proxy in front of the simulated Claude."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.generators.backends.sse_decoder import EVENT_BYTES_MAX
from tailrace.proto.errors import LogMisconfigured
from tailrace.proto.fold import Turn
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.streams import PAYLOAD_BYTES_MIN
from tests.conftest import apply_streams
from tests.harness.faulty_upstream import HEAD, Break, BrokenAnswer, faulty_claude
from tests.harness.generator_in_loop import append_request, failure_code, running_generator, wait_for_end, words

WORDS = 12


def kind(event: bytes) -> str:
    data = next(line for line in event.splitlines() if line.startswith(b"data:"))
    return str(json.loads(data.removeprefix(b"data:"))["type"])


def first_half(events: list[bytes]) -> list[bytes]:
    """Returns the events up to the middle of the text."""
    return events[: len(events) // 2]


def broken_answer(events: list[bytes], *, is_reset: bool = False) -> BrokenAnswer:
    return BrokenAnswer(HEAD + b"".join(events), is_reset)


def remove_events(events: list[bytes], left_out: str) -> list[bytes]:
    return [event for event in events if kind(event) != left_out]


def spoil_delta(events: list[bytes]) -> BrokenAnswer:
    """Changes the delta in the middle of an answer into one that cannot be read."""
    deltas = [number for number, event in enumerate(events) if kind(event) == "content_block_delta"]
    middle = deltas[len(deltas) // 2]
    changed = re.sub(rb'"text":"[^"]*"', b'"text":null', events[middle])
    assert changed != events[middle]
    return broken_answer([*events[:middle], changed, *events[middle + 1 :]])


# Faults that the simulated Claude of test_worker.py cannot make; tests/unit/test_event_order.py has wrong orders.
# The next attempt continues, or begins the answer. An empty answer is requested again by the same attempt.
INCOMPLETE: dict[str, Break] = {
    "reset": lambda events: broken_answer(first_half(events), is_reset=True),
    "end within an event": lambda events: broken_answer([*first_half(events), events[len(events) // 2][:30]]),
    "unreadable delta": spoil_delta,
    "message_stop without message_delta": lambda events: broken_answer(remove_events(events, "message_delta")),
    "empty": lambda _: BrokenAnswer(HEAD),
    "no message_start": lambda events: broken_answer(events[1:]),
}
COMPLETE: dict[str, Break] = {
    "events after message_stop": lambda events: broken_answer([*events, *first_half(events)]),
    "reset after message_stop": lambda events: broken_answer(events, is_reset=True),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """A nats-server for all cases: each has ended its only turn before the next one begins."""
    folder: Path = tmp_path_factory.mktemp("nats")
    async with NatsServer(folder) as server:
        await apply_streams(server.url)
        yield server


async def run(server: NatsServer, claude: str, fault: Break, times: int = 1) -> tuple[Turn, int]:
    """Runs a turn whose first `times` answers are changed by `fault`; returns it and the number of calls."""
    connection = await Connection.open(server.url, "test")
    log = TurnLog(connection)
    async with (
        faulty_claude(claude, fault, times=times) as proxy,
        running_generator(server.url, proxy.url, stall_timeout_s=5, attempts_max=2),
    ):
        turn = await wait_for_end(log, await append_request(log, f"words={WORDS} rate=0"))
    await connection.close()
    return turn, proxy.calls


@pytest.mark.rule("F22")
@pytest.mark.parametrize("case", INCOMPLETE)
async def test_an_incomplete_answer_is_completed_by_one_more_call(
    server: NatsServer, own_claude: str, case: str
) -> None:
    turn, calls = await run(server, own_claude, INCOMPLETE[case])
    assert (turn.text, turn.outcome, turn.stop.stop_reason) == (words(WORDS), "completed", "end_turn")
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert calls == 2


@pytest.mark.rule("F22")
@pytest.mark.rule("R6")
@pytest.mark.parametrize(
    ("case", "code"),
    [("reset", "attempts_exhausted"), ("unreadable delta", "backend_unreadable"), ("empty", "backend_broken")],
)
async def test_a_turn_whose_answers_are_all_incomplete_fails(
    server: NatsServer, own_claude: str, case: str, code: str
) -> None:
    """Its text is a beginning of the answer: nothing is lost or repeated. The test above has all faults."""
    turn, calls = await run(server, own_claude, INCOMPLETE[case], times=99)
    assert failure_code(turn) == code
    assert words(WORDS).startswith(turn.text)
    assert calls > 1


@pytest.mark.rule("R6")
async def test_an_event_above_the_limit_fails_at_once(server: NatsServer, own_claude: str) -> None:
    """Another call would be paid for, and would bring the same event."""
    large = b'data: {"type":"newer","x":"' + b"x" * EVENT_BYTES_MAX + b'"}\n\n'
    turn, calls = await run(server, own_claude, lambda events: broken_answer([*first_half(events), large]), times=99)
    assert (failure_code(turn), calls) == ("backend_event_too_large", 1)


@pytest.mark.rule("R32")
@pytest.mark.rule("R120")
async def test_an_event_above_the_nats_servers_limit_is_stored_and_the_answer_goes_on(
    tmp_path: Path, own_claude: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.deploy.local.nats_server.PAYLOAD_BYTES_MAX", PAYLOAD_BYTES_MIN)
    large = b'data: {"type":"newer","x":"' + b"x" * PAYLOAD_BYTES_MIN + b'"}\n\n'
    async with NatsServer(tmp_path) as server:
        with capture_logs() as logged:
            await apply_streams(server.url)
        assert any("set it to 8MB" in line["event"] for line in logged)
        turn, calls = await run(server, own_claude, lambda events: broken_answer([*first_half(events), large]))
    assert (turn.text, turn.outcome, calls) == (words(WORDS), "completed", 2)
    monkeypatch.setattr("tailrace.deploy.local.nats_server.PAYLOAD_BYTES_MAX", PAYLOAD_BYTES_MIN - 1)
    async with NatsServer(tmp_path) as server:
        with pytest.raises(LogMisconfigured, match="max_payload"):
            await apply_streams(server.url)


async def test_an_answer_without_message_stop_is_complete(server: NatsServer, own_claude: str) -> None:
    """`message_delta` has the stop reason."""
    turn, calls = await run(
        server, own_claude, lambda events: broken_answer(remove_events(events, "message_stop")), times=99
    )
    assert (turn.text, turn.outcome, turn.stop.stop_reason) == (words(WORDS), "completed", "end_turn")
    assert calls <= 2


@pytest.mark.parametrize("case", COMPLETE)
async def test_faults_after_message_stop_are_ignored(server: NatsServer, own_claude: str, case: str) -> None:
    turn, calls = await run(server, own_claude, COMPLETE[case])
    assert (turn.text, turn.outcome, calls, turn.attempt) == (words(WORDS), "completed", 1, 1)
