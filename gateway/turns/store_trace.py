"""Stores the trace context of the request's span in the request entry."""

import msgspec
from opentelemetry import trace

from tailrace.proto.entries import Request
from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime import tracing


def with_trace(key: TurnKey, entry: Request) -> Request:
    """Returns the entry with the context of the current span, which gets the turn's id. Called if traces are on."""
    trace.get_current_span().set_attribute("tailrace.turn", key.turn)
    return msgspec.structs.replace(entry, traceparent=tracing.traceparent())
