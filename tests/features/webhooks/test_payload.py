"""Webhook bodies, and decisions about retries."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.webhooks import payload
from tailrace.proto import events
from tailrace.proto.entries import Outcome
from tailrace.proto.records import record_from_fold
from tests.harness.turn_builder import KEY, answer_block, attempted_turn, opening_events, started_turn

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("outcome", ["completed", "cancelled", "failed"])
def test_a_webhook_has_the_turns_record_and_outcome_and_the_same_bytes_each_time(outcome: Outcome) -> None:
    """A receiver that gets it twice gets equal bytes, and can select by type."""
    log = started_turn("Light ", "scatters.")
    log.end(outcome)
    record = record_from_fold(KEY, log.turn)
    body = payload.render(record)
    assert body == payload.render(record_from_fold(KEY, log.turn))
    assert msgspec.json.decode(body) == {
        "type": f"turn.{outcome}",
        "timestamp": msgspec.to_builtins(log.turn.ended_at),
        "data": msgspec.to_builtins(record),
        "links": {"self": "/v1/turns/turn-1"},
    }


@pytest.mark.parametrize("stop_reason", ["tool_use", "end_turn"])
def test_a_webhook_names_the_required_action_only_if_the_operator_wants_it(stop_reason: str) -> None:
    log = attempted_turn(*opening_events(), events.BlockStop(0), *answer_block(1, "tool_use", "{}"))
    usage = events.UsageSoFar(output_tokens=1)
    log.store_events(events.MessageDelta(events.StopReason(stop_reason), usage))
    log.end()
    record = record_from_fold(KEY, log.turn)
    assert msgspec.json.decode(payload.render(record))["type"] == "turn.completed"
    named = msgspec.json.decode(payload.render(record, names_action=True))
    is_waiting = stop_reason == "tool_use"
    assert named["type"] == ("turn.requires_action" if is_waiting else "turn.completed")
    assert named["data"]["outcome"] == "completed"
    assert named["links"].get("calls") == ("/v1/sessions/session-1/calls" if is_waiting else None)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, "delivered"),
        (299, "delivered"),
        (300, "retry"),
        (400, "retry"),
        (410, "gone"),
        (429, "retry"),
        (500, "retry"),
        (999, "retry"),
    ],
)
def test_only_2xx_is_delivered_and_only_410_is_gone(status: int, verdict: str) -> None:
    """All other statuses are retried (Standard Webhooks): a receiver that is being deployed answers 404."""
    assert payload.classify(status) == verdict


@given(st.integers(1, 10**6), st.floats(0, 1), st.none() | st.floats(0, 1e12))
def test_a_wait_is_never_longer_than_its_maximum(tries: int, chance: float, retry_after_s: float | None) -> None:
    """Neither doubling nor Retry-After exceeds an hour plus jitter."""
    assert 0 < payload.next_wait_s(tries, 5.0, retry_after_s, chance) <= payload.WAIT_S_MAX * (1 + payload.JITTER)


def test_waits_double_and_respect_retry_after() -> None:
    """A Retry-After that is shorter than the wait is ignored."""
    assert [payload.next_wait_s(tries, 5.0, None, 0.5) for tries in (1, 2, 3, 4)] == [5, 10, 20, 40]
    assert payload.next_wait_s(1, 5.0, 60.0, 0.5) == 60
    assert payload.next_wait_s(4, 5.0, 1.0, 0.5) == 40
    assert payload.next_wait_s(1, 5.0, None, 0.0) < 5 < payload.next_wait_s(1, 5.0, None, 1.0)


def test_a_webhook_expires_with_the_age_of_its_end() -> None:
    """By the log's time. A webhook whose end could not be read does not expire."""
    assert not payload.is_expired(NOON, NOON + timedelta(seconds=60), 60)
    assert payload.is_expired(NOON, NOON + timedelta(seconds=61), 60)
    assert not payload.is_expired(None, NOON, 0)
