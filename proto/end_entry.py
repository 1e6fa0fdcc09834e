"""Builds the `end` entry of a turn from its fold. Generators and gateways use it, so both write the same numbers."""

from tailrace.proto.entries import End, Failure, Outcome
from tailrace.proto.fold import Turn, text_proof
from tailrace.proto.models import cost_nano_usd, find_model

# The failure of a turn whose request has expired in the log before an end was stored: no generator can run it.
LOST_FAILURE = Failure("internal", "the turn left the log before it ended")


def build_end(turn: Turn, outcome: Outcome, error: Failure | None = None, *, schema_valid: bool | None = None) -> End:
    """Returns the `end` entry that follows the last entry of `turn`. Usage and cost are counted for every outcome."""
    text_chars, text_sha256 = text_proof(turn.text)
    model = find_model(turn.request.model) if turn.request is not None else None
    return End(
        prev=turn.chain.last,
        attempt=turn.attempt,
        outcome=outcome,
        stop_reason=turn.stop.stop_reason,
        stop_sequence=turn.stop.stop_sequence,
        envelope=turn.envelope or None,
        usage=turn.usage,
        usage_is_estimated=turn.is_usage_estimated,
        cost_nano_usd=sum(cost_nano_usd(model, call) for call in turn.calls) if model is not None else 0,
        schema_valid=schema_valid,
        error=error,
        text_chars=text_chars,
        text_sha256=text_sha256,
    )
