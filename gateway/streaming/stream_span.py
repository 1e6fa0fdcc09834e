"""The span of a stream: a part of the turn's trace, from its first to its last byte, linked to its own request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.proto.errors import LogError
from tailrace.proto.ids import Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime import tracing


@asynccontextmanager
async def stream_span(log: TurnLog, feed: TurnFeed, dialect: str, cursor: Seq) -> AsyncIterator[None]:
    """Runs the block, which sends the stream, in a span of the turn's trace."""
    with tracing.span(
        "resume stream" if cursor else "stream",
        traceparent=await _turn_traceparent(log, feed),
        linked=tracing.traceparent(),
        attributes={"tailrace.turn": feed.key.turn, "tailrace.dialect": dialect, "tailrace.cursor": cursor},
    ):
        yield


async def _turn_traceparent(log: TurnLog, feed: TurnFeed) -> str | None:
    """Returns the `traceparent` of the turn's request; None if it has none, or if the log does not answer.

    A feed that begins at a cursor does not hold the request, which is then read from the log.
    """
    if feed.request is not None:
        return feed.request.traceparent
    try:
        request = (await log.read_turn(feed.key)).request
    except LogError:
        return None
    return request.traceparent if request is not None else None
