"""Spans of the recorder: one for each turn that a batch writes, in the turn's trace."""

from opentelemetry.trace import Span

from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime import tracing


class RecordSpans:
    """The spans of the batch that is being recorded. Does nothing while traces are off."""

    def __init__(self, system: str) -> None:
        self._system = system
        self._spans: list[Span] = []

    def start(self, key: TurnKey, turn: Turn) -> None:
        """Starts the span of a turn whose request was traced."""
        if not tracing.is_on() or turn.request is None or turn.request.traceparent is None:
            return
        span = tracing.start("record turn", traceparent=turn.request.traceparent)
        span.set_attributes(
            {"tailrace.turn": key.turn, "tailrace.outcome": turn.outcome, "db.system.name": self._system}
        )
        self._spans.append(span)

    def end(self, error_type: str = "") -> None:
        """Ends the spans of the batch: with its commit, or with an error."""
        for span in self._spans:
            if error_type:
                tracing.fail(span, error_type)
            span.end()
        self._spans.clear()
