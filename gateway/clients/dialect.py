"""Dialects and frames: a dialect is a pure function from an entry, and a small state of its own, to a frame."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tailrace.gateway.streaming import sse
from tailrace.proto.entries import Stored
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey


class Frame(NamedTuple):
    """What a client receives for an entry: server-sent events, or bare text, or nothing.

    Frames are not serialised here, so that a stream can count, skip and prefix events. gateway/streaming writes them.
    """

    events: sse.Events = ()
    is_break: bool = False
    """Whether the connection is closed after it without an end, because the dialect has no event for what happened."""
    text: bytes = b""
    """What a dialect without events sends."""

    @property
    def data(self) -> bytes:
        """The bytes of the frame."""
        return sse.encode(self.events) + self.text


SILENT = Frame()


class Dialect(NamedTuple):
    """One way of telling a turn. Every dialect can be resumed: a frame's cursor is its entry's sequence."""

    name: str
    media_type: str
    heartbeat: bytes
    """What is sent in silence; empty where the dialect has no legal form for it."""
    is_self_delimited: bool
    """Whether a stream that ends without the turn's end can be told from one that ended; else it is broken off."""
    can_reset: bool
    """Whether it can say that the text so far does not count. If not, a new reader starts after the last restart."""
    start: Callable[[TurnKey], Any]
    """The state before the first entry."""
    render: Callable[[Any, Stored], tuple[Frame, Any]]
    render_record: Callable[[TurnRecord, int], Frame]
    """A turn that has left the log, whole, for a reader who was sent so many events of it while it was there."""
    is_stateful: bool = False
    """Whether an entry looks different by what came before it. Then a turn is rendered from its beginning."""
    sends_retry: bool = False
    """Whether each connection begins with how long its reader is to wait before it comes back (`retry:`)."""
    headers: Mapping[str, str] = {}
    render_json: Callable[[TurnRecord], bytes] | None = None
    """A completed turn as the one JSON body that a client gets who asked for no stream; None: it has no such form."""
