"""The timeline of `tailrace turn`: its steps, and whether a reader was sent the whole turn."""

import random
from datetime import timedelta
from typing import Any, get_args

import msgspec
import pytest

from tailrace.deploy.cli.turn import render
from tailrace.features.timeline.timeline import CANCEL_CAUSES, Timeline, build, read
from tailrace.gateway.streaming.reader_report import Ending, GatewayReaders, ReaderReport
from tailrace.proto import events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import CancelCause, Event, Failure, Mode, StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.testing import MemoryLog
from tests.harness.turn_builder import KEY, NOON, Handwritten, attempt, completed_turn, started_turn

LATE = Failure("deadline_exceeded", "the answer was not finished in time")


def seconds(stored: list[StoredEntry], *at: float) -> list[StoredEntry]:
    return [msgspec.structs.replace(one, at=NOON + timedelta(seconds=s)) for one, s in zip(stored, at, strict=True)]


def reader(ending: Ending, written: int, cursor: int = BEFORE_FIRST) -> ReaderReport:
    return ReaderReport(
        dialect="tailrace",
        opened_at=NOON,
        cursor=Seq(cursor),
        written=Seq(written),
        closed_at=None if ending == "open" else NOON + timedelta(seconds=3),
        ending=ending,
    )


def test_a_takeover_is_two_attempts_and_a_pause() -> None:
    log = started_turn("secret")
    log.store_attempt("continue")
    log.store_texts("word")
    log.end("cancelled")
    stored = seconds(log.stored, 0, 0.5, 0.6, 0.6, 1, 3.5, 3.6, 4)
    found = build(KEY, stored, [])
    assert [(one.attempt, one.mode, one.events) for one in found.attempts] == [(1, "fresh", 3), (2, "continue", 1)]
    assert [(pause.at, pause.seconds) for pause in found.pauses] == [(NOON + timedelta(seconds=1), 2.5)]
    assert found.first_token_at == NOON + timedelta(seconds=1)
    assert [(one.ms, one.chars) for one in found.writes] == [
        *((0, 0), (500, 0), (600, 0), (600, 0), (1000, 6)),
        *((3500, 0), (3600, 4), (4000, 0)),
    ]
    assert found.end is not None
    assert found.end.outcome == "cancelled"
    text = render(found) + msgspec.json.encode(found).decode()
    assert "+1.000  First token" in text
    assert not any(word in text for word in ("secret", "word", "blue"))


@pytest.mark.parametrize(
    ("readers", "delivered"),
    [
        ([reader("disconnected", 4), reader("ended", 8, 4)], "yes: 1 of 2 streams"),
        ([reader("disconnected", 8)], "yes: 1 of 1 streams"),
        ([reader("aged", 3), reader("open", 5, 3)], "in progress: 1 streams are open"),
        ([reader("disconnected", 4)], "not completely: every stream was cut, the furthest after 4 of 8 entries"),
        ([], "no stream was opened"),
    ],
)
def test_delivery_follows_from_the_entries_that_readers_were_sent(readers: list[ReaderReport], delivered: str) -> None:
    stored = completed_turn("a").stored
    assert stored[-1].seq == len(stored) == 8
    found = build(KEY, stored, [GatewayReaders(NOON - timedelta(hours=1), readers)])
    assert found.delivered.startswith(delivered)
    assert f"delivered  {delivered}" in render(found)


@pytest.mark.parametrize(
    ("started_s", "cursor", "lost"),
    [
        (3.5, 4, [("lost", 4), ("ended", 8)]),  # no known gateway has sent entry 4, and a gateway has started since
        (-9, 4, [("ended", 8)]),  # no gateway has started since: a page read the text so far, then the rest
        (0.5, 4, [("ended", 8)]),  # entry 4 is newer than the gateway
        (3.5, BEFORE_FIRST, [("ended", 8)]),
    ],
)
def test_a_reader_of_a_killed_gateway_is_inferred_from_the_one_that_resumed(
    started_s: float, cursor: int, lost: list[tuple[str, int]]
) -> None:
    stored = seconds(completed_turn("a").stored, *range(8))
    at = {name: NOON + timedelta(seconds=s) for name, s in (("opened_at", 4), ("closed_at", 8))}
    resumed = msgspec.structs.replace(reader("ended", 8, cursor), **at)
    since = NOON + timedelta(seconds=started_s)
    found = build(KEY, stored, [GatewayReaders(since - timedelta(hours=1), []), GatewayReaders(since, [resumed])])
    assert [(one.report.ending, one.sent) for one in found.readers] == lost
    assert ("A reader lost its gateway, which had sent 4 of 8 entries" in render(found)) == (len(lost) > 1)


@pytest.mark.parametrize("seed", range(20))
def test_lost_readers_are_those_whose_cursor_no_closed_stream_has_sent(seed: int) -> None:
    """A stream sends the entries after its cursor, up to the last one that was written to it."""
    draw = random.Random(seed)
    known = []
    for _ in range(40):
        cursor, opened = draw.randrange(8), draw.randrange(20)
        written = draw.randrange(cursor, 9)
        times = {"opened_at": NOON + timedelta(seconds=opened), "closed_at": NOON + timedelta(seconds=opened + 3)}
        known.append(msgspec.structs.replace(reader(draw.choice(["disconnected", "open"]), written, cursor), **times))
    known = [one if one.ending != "open" else msgspec.structs.replace(one, closed_at=None) for one in known]
    expected = [
        one.cursor
        for one in known
        if one.cursor
        and not any(
            other.closed_at and other.closed_at <= one.opened_at and other.cursor < one.cursor <= other.written
            for other in known
        )
    ]
    stored = seconds(completed_turn("a").stored, *range(8))
    found = build(KEY, stored, [GatewayReaders(NOON + timedelta(hours=1), known)])
    assert sorted(one.report.written for one in found.readers if one.report.ending == "lost") == sorted(expected)


def test_delivery_is_unknown_if_no_gateway_remembers_the_streams() -> None:
    """A gateway that has restarted since, or none that answers."""
    stored = completed_turn("a").stored
    assert build(KEY, stored, []).delivered == "unknown: no gateway answered"
    restarted = GatewayReaders(NOON + timedelta(hours=1), [])
    assert build(KEY, stored, [restarted]).delivered.startswith("unknown: the gateways remember streams since")


def attempt_after(log: Handwritten, mode: Mode, generator: str = "generator-1", **given: Any) -> None:
    log.store(msgspec.structs.replace(attempt(log.chain, mode), generator=generator, **given))


def handover(log: Handwritten) -> None:
    log.store(Event(prev=log.chain.last, attempt=log.chain.attempt, event=events.HANDOVER, is_hidden=True))


@pytest.mark.rule("R135")
def test_a_wait_for_the_model_is_a_step_with_its_reason() -> None:
    """It is no event of the attempt."""
    log = started_turn("a")
    wait = events.encode_wait("no such host")
    log.store(Event(prev=log.chain.last, attempt=log.chain.attempt, event=wait, is_hidden=True))
    found = build(KEY, log.stored, [])
    assert [one.reason for one in found.waits] == ["no such host"]
    assert found.attempts[0].events == 3
    assert "Waiting for the model: no such host" in render(found)


@pytest.mark.parametrize(
    ("is_handed_over", "mode", "given", "cause", "words"),
    [
        (False, "continue", {"generator": "generator-2"}, "takeover", "Takeover: generator-1 gave no reason (killed,"),
        (
            True,
            "continue",
            {"generator": "generator-2"},
            "handover",
            "Handover: generator-1 was stopped. Attempt 2",
        ),
        (False, "continue", {}, "redelivery", "Repeated: generator-1 was interrupted (without NATS, or an error"),
        (
            False,
            "continue",
            {"cause": "backend_failed"},
            "backend_failed",
            "The call failed (backend_failed). ",
        ),
        (False, "continue", {"cause": "pause_turn"}, "pause_turn", "The model paused (pause_turn). Attempt 2 by "),
        (
            *(False, "restart", {"misfit": "secret: not a number"}, "schema"),
            "Correction: the answer does not fit its schema. Attempt 2 by generator-1, claude, restarts the answer",
        ),
        (
            *(False, "restart", {"cause": "backend_failed", "reason": "tool_use"}, "backend_failed"),
            "with a reset for its readers, because a block of type tool_use cannot be continued",
        ),
        (
            *(True, "restart", {"generator": "generator-2", "reason": "on_interrupt"}, "handover"),
            "with a reset for its readers, as on_interrupt says",
        ),
        (False, "restart", {"reason": "schema"}, "redelivery", "because the JSON of a schema has to be written in one"),
    ],
)
def test_each_later_attempt_says_why_it_was_made(
    is_handed_over: bool, mode: Mode, given: dict[str, Any], cause: str, words: str
) -> None:
    log = started_turn("secret")
    if is_handed_over:
        handover(log)
    attempt_after(log, mode, **given)
    found = build(KEY, log.stored, [])
    first, second = found.attempts
    assert (first.cause, first.is_handed_over, first.events) == (None, is_handed_over, 3)
    assert (second.cause, second.reason) == (cause, given.get("reason"))
    assert words in render(found)
    assert "secret" not in render(found) + msgspec.json.encode(found).decode()


@pytest.mark.rule("R22")
@pytest.mark.parametrize(
    ("end", "words"),
    [
        *(({"outcome": "cancelled", "cause": cause}, f"Cancelled ({cause}): ") for cause in get_args(CancelCause)),
        (
            {"outcome": "cancelled", "cause": "request", "by": "key_1"},
            "Cancelled (request): a client has cancelled it, with the credential key_1",
        ),
        ({"outcome": "cancelled", "cause": "cosmic_rays"}, "Cancelled (cosmic_rays): by a newer version"),
        ({"outcome": "cancelled"}, "Cancelled\n"),
        (
            {"outcome": "failed", "error": Failure("backend_refused_request", "the model:\n  no")},
            "Failed (backend_refused_request): the model: no",
        ),
        ({"outcome": "failed", "error": LATE}, "Failed (deadline_exceeded): the answer was not finished in time"),
        ({"outcome": "completed", "stop_reason": "end_turn"}, "Completed (end_turn)"),
        (
            {"outcome": "completed", "stop_reason": "budget"},
            "Completed (budget): a budget of the key or its tenant had no further step left",
        ),
        ({"outcome": "completed", "stop_reason": "max_cost"}, "Completed (max_cost): the answer may cost 0.05 $"),
    ],
)
def test_the_end_says_why_and_by_whom(end: dict[str, Any], words: str) -> None:
    log = started_turn("a", max_cost_nano_usd=50_000_000)
    log.store(msgspec.structs.replace(build_end(log.turn, "completed"), **end))
    found = build(KEY, log.stored, [])
    assert words in render(found)
    assert found.end is not None
    error = end.get("error")
    assert (found.end.cause, found.end.by) == (end.get("cause"), end.get("by"))
    assert (found.end.code, found.end.message) == ((error.code, error.message) if error else (None, None))


def test_every_cause_of_a_cancellation_has_words() -> None:
    assert set(CANCEL_CAUSES) == set(get_args(CancelCause))


class LeftTurn:
    """The database's answer for a completed turn that has left the log."""

    async def query(self, *_: object) -> TurnRecord:
        return record_from_fold(KEY, fold(completed_turn("a").stored))


async def read_left_turn(*readers: ReaderReport) -> Timeline:
    async def ask_gateways() -> list[bytes]:
        return [msgspec.json.encode(GatewayReaders(NOON - timedelta(hours=1), list(readers)))]

    left: Any = LeftTurn()
    return await read(MemoryLog(), left, ScopedKey.whole(KEY), ask_gateways)


@pytest.mark.parametrize(
    ("readers", "delivered"),
    [
        ([reader("disconnected", 4), reader("ended", 8, 4)], "yes: 1 of 2 streams were sent all entries up to the end"),
        ([reader("disconnected", 8)], "yes: 1 of 1 streams were sent all entries up to the end"),
        ([reader("disconnected", 4)], "not completely: every stream was cut"),
        ([], "no stream was opened; the answer may have been read as one response, without a stream"),
    ],
)
async def test_delivery_of_a_turn_that_has_left_the_log_follows_from_its_last_cursor(
    readers: list[ReaderReport], delivered: str
) -> None:
    found = await read_left_turn(*readers)
    assert found.delivered == delivered
    assert "0 of 0" not in render(found)
