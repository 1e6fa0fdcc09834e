"""The interface of a dialect: a pure function from an entry and a small state to the bytes of one client format."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http import sse
from tailrace.proto import events
from tailrace.proto.entries import Event, StoredEntry
from tailrace.proto.ids import TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord

# Stands for the number of events that a reader with an `id:` has: more than any entry has, and less than 10 digits.
SOME_EVENTS = 1_000_000


class Frame(msgspec.Struct, frozen=True):
    """The output for one entry: server-sent events, plain text, or nothing.

    A stream can count, skip and prefix the events; all readers of a dialect share the bytes.
    """

    events: sse.Events = ()
    is_break: bool = False
    """Whether the gateway breaks the connection off after the frame, as the dialect has no event for the entry. A
    break never looks like the end of the turn."""
    data: bytes = b""
    """The bytes of the frame. A dialect sets them only in a frame without events."""

    def __post_init__(self) -> None:
        if self.events:
            msgspec.structs.force_setattr(self, "data", sse.encode(self.events))


SILENT = Frame()


class Dialect(NamedTuple):
    """The rendering of turns for one kind of client. Every dialect can be resumed after any entry."""

    name: str
    start: Callable[[TurnKey], Any]
    """Returns the state before the first entry."""
    render: Callable[[Any, StoredEntry], tuple[Frame, Any]]
    """Returns the frame of an entry, and the state after it."""
    render_record: Callable[[TurnRecord, int], Frame]
    """Returns the frame of a whole turn that has left the log. It is never `running`: without an end, it has failed.
    The number: how many of its events the reader has; from SOME_EVENTS on, the reader has a part of the turn, and ids
    of an entry's events below this number. The frame then replaces that part."""
    render_json: Callable[[TurnRecord], bytes] | None = None
    """Returns a completed turn as one JSON body, for a request without streaming; None where there is no such body."""
    variant: str = ""
    """A name for the values, besides the turn, that this dialect renders. A feed renders each name and variant once."""
    media_type: str = sse.MEDIA_TYPE
    heartbeat: bytes = sse.HEARTBEAT
    """Sent when a stream is silent; empty where the dialect has no legal form for it."""
    headers: Mapping[str, str] = {}
    is_self_delimited: bool = False
    """Whether clients can tell a body that stops before the turn's end from a whole one. If not, the gateway breaks
    the connection off instead of ending the body."""
    can_reset: bool = False
    """Whether an event says "discard the text so far". If not, a new reader starts after the last restart."""
    is_stateful: bool = False
    """Whether the frame of an entry depends on earlier entries, so that a turn is always rendered from its start."""
    sends_retry: bool = False
    """Whether each connection begins with a `retry:` line, the time after which the client reconnects."""
    goes_on: bool = False
    """Whether a stream goes on with the successor of a steered turn, from its request on."""
    with_history: Callable[[HistoryClient, ScopedKey, TurnRecord], Awaitable["Dialect"]] | None = None
    """Returns the variant that replaces what a reader has of a turn, if that needs the conversation before the turn."""
    with_ids: "Dialect | None" = None
    """The variant with `id:` lines, for clients that accept server-sent events; None: all clients get this one."""

    def comment_on(self, stored: StoredEntry) -> Frame:
        """Returns the comment for an entry that the dialect renders as nothing (PROTOCOL R135): the wait for a model.

        Clients ignore comments, and developers see them.
        """
        match stored.entry:
            case Event(event=raw, is_hidden=True) if self.heartbeat and (wait := events.decode_wait(raw)) is not None:
                # A comment ends like the heartbeat of the dialect.
                blank = b"\n" if self.heartbeat == sse.HEARTBEAT_FRAME else b""
                text = " ".join(f"waiting for the model: {wait.obstacle}".split())
                return Frame(data=b": %s\n" % text.encode() + blank)
            case _:
                return SILENT


def select_variant(dialect: Dialect, accept: str) -> Dialect:
    """Returns the variant of `dialect` for a client with this `Accept` header.

    EventSource, fetch-event-source and the SSE libraries of Python send `text/event-stream`; `fetch` sends `*/*`.
    """
    return dialect.with_ids if dialect.with_ids is not None and sse.MEDIA_TYPE in accept else dialect


class Dialects(dict[str, Dialect]):
    """Dialects by name, in the order in which an error lists them."""
