"""A strict parser of server-sent events: it fails where a lenient client would guess.

WHATWG HTML section 9.2.6 defines what is legal. Tailrace sends a subset: LF only, each field once, one data line per
event, no event without data.
"""

import re
from typing import NamedTuple

LINE = re.compile(rb"(?:(retry|event|id|data): (.+)|:( .*)?)")
FIELDS = {"retry": re.compile("[0-9]+"), "event": re.compile("[a-z_.]+"), "id": re.compile("[0-9]+(-[0-9]+)?")}


RETRY = re.compile(rb"^retry: [0-9]+\n", re.MULTILINE)


class SseEvent(NamedTuple):
    """One event and its bytes, without the `retry` field, which belongs to the connection.

    `id` is the cursor after a whole entry. An event of AG-UI that is not the last one of its entry has an id `SEQ-N`.
    """

    raw: bytes
    data: str
    id: int | None = None
    event: str = ""
    retry_ms: int | None = None


class EventStream:
    """An incremental parser: `feed` returns the events that the new bytes complete."""

    def __init__(self) -> None:
        self.comments: list[bytes] = []
        self.rest = b""
        """The bytes of an incomplete event; empty at the end of a correct stream."""

    def feed(self, received: bytes) -> list[SseEvent]:
        self.rest += received
        events: list[SseEvent] = []
        while (event := self._event()) is not None:
            events.append(event)
        return events

    def _event(self) -> SseEvent | None:
        while self.rest.startswith(b":") and b"\n" in self.rest:
            # A heartbeat is a comment between two events.
            comment, _, self.rest = self.rest.partition(b"\n")
            self.comments.append(comment)
        lines, found, rest = self.rest.partition(b"\n\n")
        if not found:
            return None
        self.rest = rest
        return _parse_frame(lines + found)


def parse(body: bytes) -> list[SseEvent]:
    """Returns the events of a whole body; fails if it ends within an event."""
    stream = EventStream()
    events = stream.feed(body)
    assert stream.rest == b"", f"the stream ends within an event: {stream.rest!r}"
    return events


def without_retry(body: bytes) -> bytes:
    """Returns the body without its `retry` fields, which belong to the connection."""
    return RETRY.sub(b"", body)


def _parse_frame(raw: bytes) -> SseEvent:
    fields: dict[str, str] = {}
    for line in raw.removesuffix(b"\n\n").split(b"\n"):
        found = LINE.fullmatch(line)
        assert found is not None, f"not a field that we send: {line!r}"
        assert found[1] is not None, f"a comment within an event: {raw!r}"
        name, value = found[1].decode(), found[2].decode("utf-8")
        assert name not in fields, f"{name} twice in one event: {raw!r}"
        assert name not in FIELDS or FIELDS[name].fullmatch(value), f"not a value of {name}: {line!r}"
        assert "\r" not in value, f"a carriage return ends a line: {line!r}"
        fields[name] = value
    assert "data" in fields, f"an event without data: {raw!r}"
    return SseEvent(
        without_retry(raw),
        fields["data"],
        int(fields["id"]) if "id" in fields and "-" not in fields["id"] else None,
        fields.get("event", ""),
        int(fields["retry"]) if "retry" in fields else None,
    )
