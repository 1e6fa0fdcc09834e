"""Conversion of folded turns to database rows and records."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.persistence.rows import build_row, micros, moment, turn_record
from tailrace.proto.entries import Failure
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, text_proof
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import TurnKey
from tests.harness.turn_builder import Handwritten, completed_turn, opening

KEY = TurnKey(Tenant("tenant-1"), TurnId("turn-1"))


def failed() -> Handwritten:
    log = Handwritten()
    log.ask(parent=TurnId("turn-0"), metadata={"user": "é"})
    log.take()
    log.hear(*opening())
    log.say("half \0 \U0001f600")
    log.end("failed", Failure("backend_failed", "it broke"))
    return log


def running() -> Handwritten:
    log = Handwritten()
    log.ask()
    return log


def unpriced() -> Handwritten:
    log = Handwritten()
    log.ask(model="claude-tomorrow-1")
    log.take()
    log.hear(*opening(input_tokens=10))
    log.end()
    return log


@pytest.mark.parametrize("log", [completed_turn("Light ", "scatters."), failed(), running(), unpriced()])
def test_a_record_is_equal_from_a_row_and_from_a_fold(log: Handwritten) -> None:
    """Database and log give the same record (promise 4)."""
    columns = msgspec.structs.asdict(build_row(KEY, log.turn))
    assert turn_record(columns) == record_from_fold(KEY, log.turn)


@pytest.mark.rule("R23")
def test_the_cost_of_a_model_without_a_price_is_null() -> None:
    """It is not 0: the calls were paid for. A turn without a call cost nothing."""
    uncalled = Handwritten()
    uncalled.ask(model="claude-tomorrow-1")
    uncalled.end("cancelled")
    found = [record_from_fold(KEY, log.turn).cost_usd for log in (unpriced(), uncalled)]
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
    """Times are integers, not floats."""
    assert moment(micros(at)) == at
