"""Spans of a batch's inputs: each begins a trace of its own, which is linked to the batch's."""

from collections.abc import Iterator
from contextlib import contextmanager

from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime import tracing


@contextmanager
def input_span(child: TurnKey, traceparent: str | None) -> Iterator[str | None]:
    """Runs the submission of an input in a span. Yields the `traceparent` of its turn; None while traces are off.

    `traceparent` is that of the batch. Each input has its own trace, because tools cannot show a trace of thousands of
    turns. If the batch is not sampled, its inputs are not sampled either. If the block raises, the input was submitted
    before, with a span of its own, and this span is dropped.
    """
    if not tracing.is_on():
        yield None
        return
    batch = tracing.span_context(traceparent)
    is_sampled = batch is None or batch.trace_flags.sampled
    span = tracing.start("batch input", traceparent=None if is_sampled else traceparent, linked=traceparent)
    span.set_attribute("tailrace.turn", child.turn)
    yield tracing.format_context(span.get_span_context())
    span.end()
