"""Server-sent events as bytes: frames, comments, headers. Knows nothing of turns, and of sockets only Starlette's.

WHATWG HTML, "Server-sent events", section 9.2.6: a field's value ends at CR, LF or CRLF, so data is one line of
JSON, and `event` and `id` come from fixed sets.
"""

import re

MEDIA_TYPE = "text/event-stream"

# A comment that ends no event. Some clients dispatch an empty one at a blank line.
HEARTBEAT = b": hb\n"

HEADERS = {
    # `no-transform` keeps proxies from compressing, and so from holding back, what is written.
    "cache-control": "no-cache, no-store, no-transform",
    "x-accel-buffering": "no",
}

EVENT_NAME = re.compile(rb"[a-z_.]{1,64}")


def count_of(events: bytes) -> int:
    """A blank line ends an event and is nowhere else: data is one line of JSON, and a heartbeat ends no event."""
    return events.count(b"\n\n")


def without_first(events: bytes, count: int) -> tuple[bytes, int]:
    """Whole `events` without the first `count` of them, and how many of those are still to come."""
    there = count_of(events)
    if there <= count:
        return b"", count - there
    return events.split(b"\n\n", count)[count], 0


def retry(wait_ms: int) -> bytes:
    """How long a reader waits before it comes back. It goes before an event: alone, some clients take it for one."""
    return b"retry: %d\n" % wait_ms


def frame(data: bytes, *, seq: int | None = None, event: bytes | None = None) -> bytes:
    """One event. `data` is one line; `seq`, only of what is stored, is what a reader comes back with.

    The id stands last. To the specification it counts once the event is whole, but fetch-event-source takes it as soon
    as it has read its line: cut between the two, it came back for what is after an event that it had never shown.
    """
    lines = []
    if event is not None and EVENT_NAME.fullmatch(event):
        lines.append(b"event: %s\n" % event)
    lines.append(b"data: %s\n" % data)
    if seq is not None:
        lines.append(b"id: %d\n" % seq)
    return b"".join((*lines, b"\n"))
