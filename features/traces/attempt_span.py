"""Spans of attempts: children of the turn's request, each linked to the attempt before it."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.util.types import AttributeValue

from tailrace.generators.plan import MakeAttempt
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime import tracing


@contextmanager
def attempt_span(key: TurnKey, turn: Turn, action: MakeAttempt) -> Iterator[str | None]:
    """Runs an attempt in a span. Yields the `traceparent` that the attempt's entry stores; None while traces are off.

    The attempt after a takeover or a failover thus links to the attempt that it continues.
    """
    if not tracing.is_on():
        yield None
        return
    assert turn.request is not None  # noqa: S101
    attributes: dict[str, AttributeValue] = {
        "tailrace.turn": key.turn,
        "tailrace.attempt": action.attempt,
        "tailrace.mode": action.mode,
    }
    with tracing.span(
        f"attempt {action.mode}",
        traceparent=turn.request.traceparent,
        linked=turn.attempt_traceparent,
        attributes=attributes,
    ):
        yield tracing.traceparent()
