"""Builds the `end` entry of a turn from its fold, and the fields of its log line, for generators and gateways."""

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.entries import End, Failure, Outcome
from tailrace.proto.fold import Turn, text_proof
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.models import find_model
from tailrace.proto.pricing import answering_model, find_billed_model, price_list
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.clock import seconds_between
from tailrace.proto.usage import CallUsage, Usage, read_count

# The failure of a turn whose request has expired in the log before an end was stored: no generator can run it.
LOST_FAILURE = Failure("internal", "the turn left the log before it ended")

# A longer answer, of more than about 8,000 tokens, is not repeated in its `end` (PROTOCOL R110).
BLOCKS_BYTES_MAX = 32 * 1024
# A model's other fields add up over the events of an answer. An `end` that is larger than NATS' `max_payload`, of at
# least 1 MB, could not be stored, and the turn would never end.
ENVELOPE_BYTES_MAX = 256 * 1024
STOP_BYTES_MAX = 128 * 1024

V = TypeVar("V")


def build_end(
    turn: Turn,
    outcome: Outcome,
    error: Failure | None = None,
    *,
    schema_valid: bool | None = None,
    cause: str | None = None,
    by: str | None = None,
    successor: TurnId | None = None,
) -> End:
    """Returns the `end` entry that follows the last entry of `turn`. Usage and cost are counted for every outcome.

    `cause` and `by` say why a turn is cancelled, and which credential did it; `successor` is the turn that steers it.
    """
    text_chars, text_sha256 = text_proof(turn.text)
    blocks, length = _drop_if_long(turn.blocks, BLOCKS_BYTES_MAX), turn.chain.length
    bill = turn.bill
    total = bill.total
    usage = Usage(*total.counts)
    requested = turn.request.model if turn.request is not None else ""
    model = find_model(requested)
    own_model = requested if model is None else model.id
    return End(
        prev=turn.chain.last,
        attempt=turn.attempt,
        outcome=outcome,
        stop_reason=_drop_if_long(turn.stop.stop_reason, STOP_BYTES_MAX),
        stop_sequence=_drop_if_long(turn.stop.stop_sequence, STOP_BYTES_MAX),
        envelope=_drop_if_long(_reported_envelope(turn, usage) or None, ENVELOPE_BYTES_MAX),
        usage=usage,
        usage_is_estimated=turn.is_usage_estimated,
        cost_nano_usd=total.cost_nano_usd,
        cost_is_unknown=total.cost_is_unknown,
        by_model=None if bill.by_model.keys() <= {own_model} else dict(bill.by_model),
        answered_by=other_answering_model(turn),
        price_date=price_list().date if turn.request is not None else None,
        schema_valid=schema_valid,
        error=error,
        text_chars=text_chars,
        text_sha256=text_sha256,
        blocks=blocks,
        length=None if blocks is None or length is None else length + 1,
        cause=cause,
        by=by,
        prefixes=turn.prefixes,
        successor=successor,
    )


def other_answering_model(turn: Turn) -> str | None:
    """Returns the model that answered, if the API has reported another model than the request's."""
    reported = [call for call in turn.calls if call != CallUsage()]
    name = answering_model(reported[-1]) if reported else None
    if turn.request is None or name is None or name == turn.request.model:
        return None
    model = find_billed_model(name)
    return None if model is not None and model == find_model(turn.request.model) else name


def _reported_envelope(turn: Turn, billed: Usage) -> dict[str, Any]:
    """Returns the envelope, with the usage that the model has reported, where it differs from what is billed.

    The counts, also of server tools and cache lifetimes, are sums over all calls. `iterations` has the steps of
    all calls. Other fields are from the last call that reported them.
    """
    calls = [call for call in turn.calls if call != CallUsage()]
    fields: dict[str, Any] = {}
    if (top := sum(calls, start=Usage())) != billed:
        fields = msgspec.structs.asdict(top)
    if len(calls) > 1:
        steps = [step for call in calls if isinstance(call.iterations, list) for step in call.iterations]
        fields |= {"iterations": steps} if steps else {}
        for name in ("server_tool_use", "cache_creation"):
            fields |= {name: counts} if (counts := _sum_counts(getattr(call, name) for call in calls)) else {}
    usage = turn.envelope.get("usage", {}) | fields
    return turn.envelope | ({"usage": usage} if usage and not is_deeper(fields, LEVELS_MAX - 3) else {})


def _sum_counts(counted: Iterable[object]) -> dict[str, int]:
    """Returns the sum of the counts of each name in several objects."""
    total: dict[str, int] = {}
    for counts in counted:
        for name, value in counts.items() if isinstance(counts, dict) else ():
            total[name] = total.get(name, 0) + read_count(value)
    return total


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
        **({"answered_by": end.answered_by} if end.answered_by is not None else {}),
        "attempt": turn.attempt,
        "outcome": end.outcome,
        "code": end.error.code if end.error is not None else None,
        **({"cause": end.cause} if end.cause is not None else {}),
        "input_tokens": end.usage.input_tokens,
        "output_tokens": end.usage.output_tokens,
        "cost_usd": end.cost_usd,
        "duration_s": seconds_between(turn.asked_at, turn.ended_at),
        "first_token_s": seconds_between(turn.asked_at, turn.first_token_at),
        **(tracing.exemplar(request.traceparent) or {}),
    }
