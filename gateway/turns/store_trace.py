"""Traces as a feature of turn submission: the entry holds the context of the request's span."""

import msgspec
from opentelemetry import trace

from tailrace.gateway.turns.submission import Feature, Submission
from tailrace.proto.runtime import tracing


def trace_feature() -> Feature[Submission]:
    """Returns the step that stores the trace in the entry, so that generators and persistence continue it."""

    async def store(submission: Submission) -> None:
        trace.get_current_span().set_attribute("tailrace.turn", submission.turn.turn)
        submission.entry = msgspec.structs.replace(submission.entry, traceparent=tracing.traceparent())

    return Feature(lambda _: tracing.is_on() or None, store)
