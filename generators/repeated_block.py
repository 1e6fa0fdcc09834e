"""RepeatedBlock: holds the text block with which a continuation begins a stored block anew (PROTOCOL R70). Pure."""

from typing import Any

import msgspec

from tailrace.generators.backends.model_event import ModelEvent, from_event
from tailrace.generators.continuation_filters import RestartFilter
from tailrace.proto import events

THOUGHTS = ("thinking", "redacted_thinking")


class RepeatedBlock:
    """The first block of a call, as long as it is a text that may be the last stored one again.

    Start, text and stop are held until an event comes that goes further. A call that breaks off before adds nothing.
    """

    def __init__(self, restart: RestartFilter, *, is_open: bool) -> None:
        """`is_open`: the stored block is open, so that the call's first text goes on in it."""
        self._restart = restart
        self._is_open = is_open
        self._is_over = not restart.is_active
        self._index: int | None = None
        self._held: list[ModelEvent] = []

    def filter(self, event: ModelEvent) -> tuple[list[ModelEvent], str]:
        """Adds an event of the call; returns the events to pass on now, and the text that was left out before them."""
        if self._is_over:
            return [event], ""
        match event.event:
            case events.BlockStart(index, {"type": "text"} as block) if self._index is None:
                self._index = index
                text = str(block.get("text") or "")
                self._held = [_without_text(event, block) if text else event]
                return self._add(text)
            case events.BlockDelta(index, events.TextDelta(text)) if index == self._index:
                return self._add(text)
            case events.BlockStop(index) if index == self._index:
                self._held.append(event)
                return [], ""
            case events.BlockStart(_, block) if self._index is None and block.get("type") not in THOUGHTS:
                self._is_over = True
        if self._index is None:
            return [event], ""
        text, left_out = self._restart.flush()
        return [*self._release(text, left_out), event], left_out

    def _add(self, text: str) -> tuple[list[ModelEvent], str]:
        text, left_out = self._restart.filter(text)
        return (self._release(text, left_out), left_out) if text else ([], "")

    def _release(self, text: str, left_out: str) -> list[ModelEvent]:
        """Returns the events of the block with `text`; none if it is all of a stored, closed one."""
        self._is_over = True
        start, *stop = self._held
        if left_out and not text and stop and not self._is_open:
            return []
        assert isinstance(start.event, events.BlockStart)  # noqa: S101  # as `filter` has stored it
        delta = [from_event(events.BlockDelta(start.event.index, events.TextDelta(text)))] if text else []
        return [start, *delta, *stop]


def _without_text(event: ModelEvent, block: dict[str, Any]) -> ModelEvent:
    """Returns the start of a text block without the text that it brings."""
    fields = msgspec.json.decode(event.raw) | {"content_block": block | {"text": ""}}
    raw = msgspec.Raw(msgspec.json.encode(fields))
    return msgspec.structs.replace(event, event=events.decode(raw), raw=raw, original="")
