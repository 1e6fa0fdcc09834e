"""A strict reader of event streams: fails on whatever a lenient client would guess about. It knows nothing of turns.

WHATWG HTML, "Server-sent events", section 9.2.6 says what is legal; of that we send less: LF only, each field once, one
line of data, and no event without data.
"""

import re
from typing import NamedTuple

LINE = re.compile(rb"(?:(retry|event|id|data): (.+)|:( .*)?)")
FIELDS = {"retry": re.compile("[0-9]+"), "event": re.compile("[a-z_.]+"), "id": re.compile("[0-9]+")}


RETRY = re.compile(rb"^retry: [0-9]+\n", re.MULTILINE)


class Sent(NamedTuple):
    """One event, and the bytes that it came as: without a `retry`, which is not the turn's but the connection's."""

    raw: bytes
    data: str
    id: int | None = None
    event: str = ""
    retry_ms: int | None = None


class EventStream:
    """Takes the bytes of a body as they come; gives the events that are complete."""

    def __init__(self) -> None:
        self.comments: list[bytes] = []
        self.rest = b""
        """What came of an event that is not complete; empty at the end of a good stream."""

    def feed(self, received: bytes) -> list[Sent]:
        self.rest += received
        events: list[Sent] = []
        while (event := self._event()) is not None:
            events.append(event)
        return events

    def _event(self) -> Sent | None:
        while self.rest.startswith(b":") and b"\n" in self.rest:
            # A heartbeat stands between two events and ends neither.
            comment, _, self.rest = self.rest.partition(b"\n")
            self.comments.append(comment)
        lines, found, rest = self.rest.partition(b"\n\n")
        if not found:
            return None
        self.rest = rest
        return _sent(lines + found)


def parse(body: bytes) -> list[Sent]:
    """The events of a whole body; fails when it ends within one."""
    stream = EventStream()
    events = stream.feed(body)
    assert stream.rest == b"", f"the stream ends within an event: {stream.rest!r}"
    return events


def turns_own(body: bytes) -> bytes:
    """The body of any connection without what it says of coming back, which is its own."""
    return RETRY.sub(b"", body)


def _sent(raw: bytes) -> Sent:
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
    return Sent(
        turns_own(raw),
        fields["data"],
        int(fields["id"]) if "id" in fields else None,
        fields.get("event", ""),
        int(fields["retry"]) if "retry" in fields else None,
    )
