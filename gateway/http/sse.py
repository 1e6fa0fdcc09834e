"""Server-sent events: an event, its bytes, the heartbeat comment and the response headers.

WHATWG HTML, "Server-sent events", section 9.2.6: a field's value ends at CR, LF or CRLF. So data is one line of JSON,
and `event` and `id` come from fixed sets.
"""

import re
from typing import NamedTuple

from tailrace.proto import odd_json

MEDIA_TYPE = "text/event-stream"

# A comment without a blank line after it. Some clients dispatch an empty event at a blank line.
HEARTBEAT = b": hb\n"
# For loops that split at blank lines, and would take HEARTBEAT and the next event for one block.
HEARTBEAT_FRAME = b": hb\n\n"

HEADERS = {
    # `no-transform` keeps proxies from compressing the stream, for which they would buffer it.
    "cache-control": "no-cache, no-store, no-transform",
    "x-accel-buffering": "no",
}

EVENT_NAME = re.compile(rb"[a-z_.]{1,64}")


class Event(NamedTuple):
    """One event. `data` is one line; `seq`, of stored entries only, is the cursor that the client sends back."""

    data: bytes
    seq: int | None = None
    name: bytes | None = None
    leading_id: bytes | None = None
    """The id in place of `seq`, as the first field: TanStack AI attaches an id to the next data line."""


Events = tuple[Event, ...]


def frame(data: bytes, *, seq: int | None = None, event: bytes | None = None) -> Events:
    """Returns a tuple with one event, so that several can be joined. A name not in EVENT_NAME's form is left out."""
    return (Event(data, seq, event if event is not None and EVENT_NAME.fullmatch(event) else None),)


def encode(events: Events, id_prefix: bytes = b"") -> bytes:
    """Returns the bytes of `events`, with `id_prefix` before each id.

    The id is the last field. By the specification an id counts when its event is complete, but fetch-event-source uses
    it as soon as it has read the line: after a cut between id and data, it resumed after an event that it had not
    dispatched.
    """
    blocks: list[bytes] = []
    for data, seq, name, leading_id in events:
        first = b"" if name is None else b"event: %b\n" % name
        if leading_id is not None:
            first = b"id: %b%b\n" % (id_prefix, leading_id)
        last = b"" if seq is None else b"id: %b%d\n" % (id_prefix, seq)
        blocks.append(b"%bdata: %b\n%b\n" % (first, odd_json.unwrap(data), last))
    return b"".join(blocks)


def retry(wait_ms: int) -> bytes:
    """Returns the field that sets a client's reconnection delay.

    Within a stream an event must follow, because some clients dispatch a block that has this field alone.
    """
    return b"retry: %d\n" % wait_ms
