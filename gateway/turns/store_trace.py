"""Stores the trace context of the request's span in the request entry, as a feature of turn submission."""

import msgspec
from opentelemetry import trace

from tailrace.gateway.turns.submission import Feature, Submission
from tailrace.proto.entries import Request
from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime import tracing


def trace_features() -> tuple[Feature[Submission], ...]:
    """Returns the step that stores the trace in the entry, which other processes continue; none if traces are off."""

    async def store(submission: Submission) -> None:
        submission.entry = with_trace(submission.turn, submission.entry)

    return (Feature(store),) if tracing.is_on() else ()


def with_trace(key: TurnKey, entry: Request) -> Request:
    """Returns the entry with the context of the current span, which gets the turn's id; unchanged if traces are off."""
    if not tracing.is_on():
        return entry
    trace.get_current_span().set_attribute("tailrace.turn", key.turn)
    return msgspec.structs.replace(entry, traceparent=tracing.traceparent())
