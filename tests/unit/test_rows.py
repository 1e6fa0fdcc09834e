"""Conversion of folded turns to database rows and records."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.persistence.rows import build_row, micros, moment, turn_record
from tailrace.proto.end_entry import BLOCKS_BYTES_MAX, build_end
from tailrace.proto.entries import End, Event, Failure, Prefix, StoredEntry, encode
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, fold, fold_first_and_end, text_proof
from tailrace.proto.ids import Seq, TurnId
from tailrace.proto.nats.streams import PAYLOAD_BYTES_MIN
from tailrace.proto.records import TurnRecord, record_from_fold
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import (
    KEY,
    NOON,
    Handwritten,
    attempted_turn,
    completed_turn,
    opening_events,
    raw,
    started_turn,
)


def failed_row() -> Handwritten:
    log = started_turn("half \0 \U0001f600", parent=TurnId("turn-0"), metadata={"user": "é"})
    log.end("failed", Failure("backend_failed", "it broke"))
    return log


def running_row() -> Handwritten:
    log = Handwritten()
    log.store_request()
    return log


def unpriced_row() -> Handwritten:
    log = attempted_turn(*opening_events(10, "claude-tomorrow-1"), model="claude-tomorrow-1")
    log.end()
    return log


@pytest.mark.parametrize("log", [completed_turn("Light ", "scatters."), failed_row(), running_row(), unpriced_row()])
def test_a_record_is_equal_from_a_row_and_from_a_fold(log: Handwritten) -> None:
    columns = msgspec.structs.asdict(build_row(KEY, log.turn))
    assert turn_record(columns) == record_from_fold(KEY, log.turn)


def test_a_record_names_the_project_the_user_the_first_token_and_the_schema() -> None:
    log = started_turn("Light", project="physics", user="alice")
    log.store(build_end(log.turn, "completed", schema_valid=True))
    record = turn_record(msgspec.structs.asdict(build_row(KEY, log.turn)))
    assert (record.project, record.user, record.schema_valid) == ("physics", "alice", True)
    assert record.first_token_at == log.turn.first_token_at is not None


@pytest.mark.rule("R110")
@given(logs(has_forks=False, entries_max=12), st.integers(1, 16))
def test_a_row_is_equal_from_the_first_entries_and_the_end(log: MadeUp, first: int) -> None:
    """An end repeats all that a row needs of the entries between, or says that it does not."""
    entries = [one for one in log.valid if not isinstance(one.entry, End)]
    turn = fold(entries)
    end = StoredEntry(Seq(turn.tail + 1), NOON, build_end(turn, "completed"))
    events = [one for one in entries if isinstance(one.entry, Event)]
    short = fold_first_and_end([*entries[:1], *events[:first]], end)
    assert short is not None or first < len(events) or turn.first_token_at is None
    if short is not None:
        assert build_row(KEY, short) == build_row(KEY, fold([*entries, end]))


@pytest.mark.rule("R5")
def test_an_end_has_space_in_the_smallest_payload_whatever_the_model_sends() -> None:
    """Fields of many events add up. A turn whose `end` cannot be stored would never end, not even cancelled."""
    log = started_turn("Blue." * 6000)
    for number in range(3):
        long = {f"field_{number}": "x" * 900_000}
        delta = {"stop_reason": "y" * 900_000, "stop_sequence": "z" * 900_000, **long}
        sent = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 1, **long}, **long}
        log.store(Event(prev=log.chain.last, attempt=log.chain.attempt, event=raw(sent)))
    assert len(encode(build_end(log.turn, "cancelled"))) < PAYLOAD_BYTES_MIN


def test_a_long_answer_is_not_repeated_in_its_end() -> None:
    log = completed_turn("long " * BLOCKS_BYTES_MAX)
    assert isinstance(end := log.stored[-1].entry, End)
    assert (end.blocks, end.length) == (None, None)
    assert len(encode(end)) < 1024


@pytest.mark.parametrize(
    ("first_token_s", "ended_s", "durations"),
    [(0.25, 4, (0.25, 4)), (None, 4, (None, 4)), (0.25, None, (0.25, None)), (-0.5, -1, (0, 0))],
)
def test_a_record_has_the_seconds_since_its_request(
    first_token_s: float | None, ended_s: float | None, durations: tuple[float | None, float | None]
) -> None:
    """Of a clock that was set back, 0."""
    record = record_from_fold(KEY, running_row().turn)
    first, end = [None if one is None else record.asked_at + timedelta(seconds=one) for one in (first_token_s, ended_s)]
    record = msgspec.structs.replace(record, first_token_at=first, ended_at=end)
    assert (record.first_token_s, record.duration_s) == durations
    assert msgspec.json.decode(msgspec.json.encode(record), type=TurnRecord) == record


@pytest.mark.rule("R23")
def test_the_cost_of_a_model_without_a_price_is_null() -> None:
    """It is not 0: the calls were paid for. A turn without a call cost nothing."""
    uncalled = Handwritten()
    uncalled.store_request(model="claude-tomorrow-1")
    uncalled.end("cancelled")
    found = [record_from_fold(KEY, log.turn).cost_usd for log in (unpriced_row(), uncalled)]
    assert found == [None, 0]


def test_a_row_has_length_and_hash_of_the_text_from_the_end() -> None:
    """An audit can verify the stored text."""
    made = build_row(KEY, completed_turn("Light ", "scatters.").turn)
    assert (made.text_chars, made.text_sha256) == text_proof("Light scatters.")


def test_a_turn_without_a_request_has_no_row() -> None:
    with pytest.raises(TurnUnknown):
        build_row(KEY, EMPTY_TURN)


@given(st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001  # hypothesis adds UTC
def test_a_time_keeps_its_microseconds(at: datetime) -> None:
    assert moment(micros(at)) == at


@pytest.mark.rule("R140")
def test_details_are_stored_together_and_need_no_column() -> None:
    prefix = Prefix(
        system="s", tools="t", messages="m", thinking="b", block=1, bytes=9, unchanged=3, changed=("tools",)
    )
    log = started_turn("Light")
    log.store(msgspec.structs.replace(build_end(log.turn, "completed"), prefixes=[prefix]))
    row = msgspec.structs.asdict(build_row(KEY, msgspec.structs.replace(log.turn, prefixes=[prefix])))
    assert turn_record(row).prefixes == [prefix]
    assert turn_record(row | {"details": "{}"}).prefixes == []
    of_newer_version = msgspec.json.encode(msgspec.json.decode(row["details"]) | {"reference": "A 1"}).decode()
    assert turn_record(row | {"details": of_newer_version}).prefixes == [prefix]
