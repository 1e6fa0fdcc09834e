"""Builds the `end` entry of a turn from its fold, and the fields of its log line, for generators and gateways."""

from typing import Any, TypeVar

import msgspec

from tailrace.proto.entries import End, Failure, Outcome
from tailrace.proto.fold import Turn, text_proof
from tailrace.proto.models import sum_costs
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.clock import seconds_between
from tailrace.proto.subjects import TurnKey

# The failure of a turn whose request has expired in the log before an end was stored: no generator can run it.
LOST_FAILURE = Failure("internal", "the turn left the log before it ended")

# A longer answer, of more than about 8,000 tokens, is not repeated in its `end` (PROTOCOL R110).
BLOCKS_BYTES_MAX = 32 * 1024
# A model's other fields add up over the events of an answer. An `end` that is larger than NATS' `max_payload`, of at
# least 1 MB, could not be stored, and the turn would never end.
ENVELOPE_BYTES_MAX = 256 * 1024
STOP_BYTES_MAX = 128 * 1024

V = TypeVar("V")


def build_end(turn: Turn, outcome: Outcome, error: Failure | None = None, *, schema_valid: bool | None = None) -> End:
    """Returns the `end` entry that follows the last entry of `turn`. Usage and cost are counted for every outcome."""
    text_chars, text_sha256 = text_proof(turn.text)
    blocks, length = _drop_if_long(turn.blocks, BLOCKS_BYTES_MAX), turn.chain.length
    cost_nano_usd = sum_costs(turn.request.model, turn.calls) if turn.request is not None else 0
    return End(
        prev=turn.chain.last,
        attempt=turn.attempt,
        outcome=outcome,
        stop_reason=_drop_if_long(turn.stop.stop_reason, STOP_BYTES_MAX),
        stop_sequence=_drop_if_long(turn.stop.stop_sequence, STOP_BYTES_MAX),
        envelope=_drop_if_long(turn.envelope or None, ENVELOPE_BYTES_MAX),
        usage=turn.usage,
        usage_is_estimated=turn.is_usage_estimated,
        cost_nano_usd=cost_nano_usd or 0,
        cost_is_unknown=cost_nano_usd is None,
        schema_valid=schema_valid,
        error=error,
        text_chars=text_chars,
        text_sha256=text_sha256,
        blocks=blocks,
        length=None if blocks is None or length is None else length + 1,
    )


def _drop_if_long(value: V, bytes_max: int) -> V | None:
    return value if len(msgspec.json.encode(value)) <= bytes_max else None


def end_fields(key: TurnKey, turn: Turn) -> dict[str, Any]:
    """Returns the fields of the log line about the end of a turn: ids, outcome, tokens, cost and times; no text."""
    request, end = turn.request, turn.end
    if request is None or end is None:
        return {"turn": key.turn, "tenant": key.tenant, "attempt": turn.attempt, "outcome": turn.outcome}
    return {
        "turn": key.turn,
        "tenant": key.tenant,
        "session": request.session,
        "model": request.model,
        "attempt": turn.attempt,
        "outcome": end.outcome,
        "code": end.error.code if end.error is not None else None,
        "input_tokens": end.usage.input_tokens,
        "output_tokens": end.usage.output_tokens,
        "cost_usd": end.cost_usd,
        "duration_s": seconds_between(turn.asked_at, turn.ended_at),
        "first_token_s": seconds_between(turn.asked_at, turn.first_token_at),
        **(tracing.exemplar(request.traceparent) or {}),
    }
