"""The stop reasons that end a whole answer, and a sentence for each other reason.

docs/claude_api.toml ("Stop reasons") says how each dialect shows them. An answer with an unknown reason is not whole:
the reason comes from a newer model. Source: Anthropic's docs, "Stop reasons".
"""

from tailrace.proto.entries import End
from tailrace.proto.records import TurnRecord

# Of an answer that a limit of Tailrace has cut, in place of a reason of the model.
OWN = ("max_cost", "budget")
# None: a turn without a model call of its own, such as a batch.
WHOLE = (None, "end_turn", "stop_sequence", "tool_use")
SENTENCES = {
    "max_tokens": "The answer was cut at its maximum length.",
    "max_cost": "The answer was cut at its maximum cost.",
    "budget": "The answer was cut because a budget of the key or its tenant is spent. Raise the limit, or wait for the "
    "next day or month (GET /v1/limits).",
    "model_context_window_exceeded": "The answer was cut because it fills the model's context window.",
    "refusal": "The model refused to answer.",
    "pause_turn": "The model has paused the answer. Send it back as the last message, or set `on_pause: continue`.",
    "compaction": "The model has summarized the conversation, and has not answered yet. Send the summary back.",
}


def is_whole(stop_reason: str | None) -> bool:
    """Returns whether a completed answer with this stop reason is whole."""
    return stop_reason in WHOLE


def has_waiting_calls(ended: End | TurnRecord) -> bool:
    """Returns whether the calls without a result have it in the next answer (common/earlier_steps.py)."""
    return ended.outcome == "completed" and ended.stop_reason in ("tool_use", "pause_turn")


def incomplete_reason(ended: End | TurnRecord) -> str | None:
    """Returns the stop reason of a completed turn whose answer is not whole; None for all other turns."""
    return None if ended.outcome != "completed" or is_whole(ended.stop_reason) else ended.stop_reason


def stop_reason_field(ended: End | TurnRecord) -> dict[str, str]:
    """Returns the field `stop_reason` of a completed turn whose answer is not whole; no field for all other turns."""
    reason = incomplete_reason(ended)
    return {} if reason is None else {"stop_reason": reason}


def explain(stop_reason: str) -> str:
    """Returns a sentence about an answer that is not whole."""
    return SENTENCES.get(stop_reason, f"The model stopped before the end of its answer ({stop_reason[:60]}).")
