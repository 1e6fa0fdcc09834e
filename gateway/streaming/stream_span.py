"""The span of a stream: a part of the turn's trace, from its first to its last byte, linked to its own request."""

from contextlib import AbstractContextManager, nullcontext

from opentelemetry.trace import Span

from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.proto.errors import LogError
from tailrace.proto.ids import Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime import tracing
from tailrace.proto.subjects import TurnKey

NO_SPAN = nullcontext()


async def turn_traceparent(log: TurnLog, feed: TurnFeed) -> str | None:
    """Returns the `traceparent` of the turn's request; None if it has none, or if the log does not answer.

    A feed that begins at a cursor does not hold the request, which is then read from the log.
    """
    if not tracing.is_on():
        return None
    if feed.request is not None:
        return feed.request.traceparent
    try:
        request = (await log.read_turn(feed.key)).request
    except LogError:
        return None
    return request.traceparent if request is not None else None


def stream_span(
    key: TurnKey, dialect: str, cursor: Seq, traceparent: str | None
) -> AbstractContextManager[Span | None]:
    """Returns the context in which a stream runs: a span of the turn's trace, or None while traces are off."""
    if not tracing.is_on():
        return NO_SPAN
    return tracing.span(
        "resume stream" if cursor else "stream",
        traceparent=traceparent,
        linked=tracing.traceparent(),
        attributes={"tailrace.turn": key.turn, "tailrace.dialect": dialect, "tailrace.cursor": cursor},
    )
