"""ReaderReport: what a gateway knows about one stream of a turn, open or closed."""

from datetime import datetime
from typing import Literal

import msgspec

from tailrace.proto.ids import Seq

Ending = Literal["open", "ended", "disconnected", "aged", "draining", "expired", "broken", "failed", "lost"]
"""How a stream is or was closed.

`ended`: the reader was sent all of the turn. All others are cuts: `disconnected` by the client, `aged` at
TAILRACE_STREAM_LIFE_S, `draining` by a gateway that stops, `expired` with its credential, `broken` because the turn
could not be followed further, or at a restart that the client's format cannot show, `failed` by an error. `lost`: its
gateway has ended, and its report with it; a timeline infers this stream from the one that resumed it.
"""


class ReaderReport(msgspec.Struct, frozen=True, kw_only=True):
    """`written` is the cursor of the last entry that was written to the connection; `cursor` is where it began."""

    dialect: str
    """The dialect of the stream."""
    opened_at: datetime
    """When the stream began."""
    cursor: Seq
    """The cursor at which the stream began."""
    written: Seq
    """The cursor of the last entry that was written to the connection."""
    closed_at: datetime | None
    """When the stream ended; null while it is open."""
    ending: Ending
    """Why the stream ended."""


class GatewayReaders(msgspec.Struct, frozen=True):
    """The streams of one turn that a gateway remembers, oldest first; `since`: the oldest time it remembers."""

    since: datetime
    readers: list[ReaderReport]
    knows: tuple[str, ...] = ()
    """The settings of tenants and the formats of tickets that the gateway applies. Older versions report fewer."""
