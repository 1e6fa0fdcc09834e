"""The endings of a stream, one row each: what its metric and its report say, and what follows for turn and client."""

from typing import NamedTuple

from tailrace.gateway.metrics import StreamEnd
from tailrace.gateway.streaming.reader_report import Ending

# A client that does not resume within this time has left.
RECONNECT_WINDOW_S = 15.0


class StreamEnding(NamedTuple):
    """How a stream ended."""

    metric: StreamEnd
    report: Ending
    reconnect_window_s: float | None
    """The seconds that the client has to reconnect until the turn's on_disconnect policy applies; None: the policy does
    not apply."""
    is_whole: bool = False
    """Whether all of the turn was written. If not, the client must not take the stream for a whole one."""


WHOLE = StreamEnding("whole", "ended", None, is_whole=True)
FAILED = StreamEnding("failed", "ended", None, is_whole=True)
"""The whole turn was written, and the turn had failed."""
# Many clients do not resume a stream that the gateway has broken off.
BROKEN = StreamEnding("cut", "broken", RECONNECT_WINDOW_S)
"""The turn could not be followed further, or the dialect cannot show its restart."""
AGED = StreamEnding("aged", "aged", RECONNECT_WINDOW_S)
DRAINED = StreamEnding("drained", "draining", None)
# A client whose credential has expired cannot reconnect with it.
EXPIRED = StreamEnding("expired", "expired", 0.0)
LEFT = StreamEnding("left", "disconnected", 0.0)
