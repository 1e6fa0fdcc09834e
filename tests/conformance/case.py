"""Conformance cases: tests/conformance/README.md explains their format."""

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent / "cases"


class Repeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that is too long for the file."""

    text: str
    times: int


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One answer of the model, and what a reader must see."""

    about: str
    request: dict[str, Any] = {}
    """Fields of the request that the model answers."""
    repeat: dict[str, Repeat] = {}
    """In place of each name in the events, its text comes that many times."""
    events: list[dict[str, Any] | str]
    """An event as an object, or as its JSON where that must not be changed."""
    stored: dict[str, Any] = {}
    """Blocks by their index, and fields by their name, that are in an answer without a stream. The SDK ignores them."""
    raw: list[str] = []
    """Texts that JSON answers and the history have byte for byte, because JSON libraries change or refuse them."""
    message: dict[str, Any] | None
    """The message that the vendor's SDK accumulates from the events. None: the SDK cannot read them."""

    @property
    def lines(self) -> list[bytes]:
        """The JSON of each event."""
        lines = [one.encode() if isinstance(one, str) else msgspec.json.encode(one) for one in self.events]
        return [self._expand(line) for line in lines]

    @property
    def stream(self) -> bytes:
        """The body of the API's response."""
        kinds = [str(msgspec.json.decode(_odd(line))["type"]) for line in self.lines]
        pairs = zip(kinds, self.lines, strict=True)
        return b"".join(b"event: %b\ndata: %b\n\n" % (kind.encode(), line) for kind, line in pairs)

    @property
    def answerable_calls(self) -> list[str]:
        """The ids of the calls that the client answers in its next turn."""
        starts = [one["content_block"] for one in self.events if isinstance(one, dict) and "content_block" in one]
        starts += [] if isinstance(self.events[0], str) else self.events[0]["message"]["content"]
        is_end = "'stop_reason': 'tool_use'" in str(self.events)
        return [block["id"] for block in starts if block["type"] == "tool_use" and is_end]

    @property
    def accumulated(self) -> dict[str, Any]:
        """The message, with its repeated texts."""
        assert self.message is not None
        expanded: dict[str, Any] = msgspec.json.decode(self._expand(msgspec.json.encode(self.message)))
        return expanded

    @property
    def whole(self) -> dict[str, Any]:
        """The message of an answer without a stream."""
        message = self.accumulated
        content = [self.stored.get(str(index), block) for index, block in enumerate(message["content"])]
        return {**message, **{name: one for name, one in self.stored.items() if not name.isdigit()}, "content": content}

    def _expand(self, line: bytes) -> bytes:
        for name, one in self.repeat.items():
            line = line.replace(name.encode(), one.text.encode() * one.times)
        return line


def _odd(line: bytes) -> bytes:
    """Returns the head of an event, which msgspec can read."""
    return line if len(line) < 100 else b'{"type":"' + line.split(b'"')[3] + b'"}'


@cache
def read_cases() -> dict[str, Case]:
    """Returns all cases by name."""
    return {path.stem: msgspec.json.decode(path.read_bytes(), type=Case) for path in sorted(FOLDER.glob("*.json"))}
