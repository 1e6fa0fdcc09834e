"""RepeatedAnswer: holds the text with which a continuation begins stored text blocks anew (PROTOCOL R70). Pure."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from tailrace.generators.backends.model_event import ModelEvent, from_event
from tailrace.generators.continuation_filters import is_unique
from tailrace.proto import events
from tailrace.proto.entries import Block

THOUGHTS = ("thinking", "redacted_thinking")


def repeatable_texts(blocks: Sequence[Block]) -> list[str]:
    """Returns the texts after the last other block of the stored answer, which a call may begin anew."""
    texts: list[str] = []
    for block in reversed(blocks):
        if block.type != "text":
            break
        texts.insert(0, block.text)
    return texts if any(text.strip() for text in texts) else []


class RepeatedAnswer:
    """The first blocks of a call, as long as they are texts that may repeat the last stored texts.

    Their events are held until one is more than a repetition. A call that breaks off before that adds nothing. The
    texts are left out only if they are all stored texts from one block on, and unique (`is_unique`): otherwise they may
    be a refrain.
    """

    def __init__(self, stored: Sequence[str], *, is_open: bool) -> None:
        """`stored` are the texts of `repeatable_texts`.

        `is_open`: the last stored block is open, so that the call's first text goes on in it.
        """
        self._stored = list(stored)
        self._is_open = is_open
        self._is_over = not stored
        # Of the text blocks that the call has begun: the texts, the index of the last block, and the events.
        self._texts: list[str] = []
        self._last = -1
        self._held: list[ModelEvent] = []

    def filter(self, event: ModelEvent) -> tuple[list[ModelEvent], str]:
        """Adds an event of the call; returns the events to pass on now, and the text that was left out before them."""
        if self._is_over:
            return [event], ""
        match event.event:
            case events.BlockStart(index, {"type": "text"} as block) if self._may_repeat("another block"):
                self._last = index
                self._texts.append("")
                return self._add(event, str(block.get("text") or ""))
            case events.BlockDelta(index, events.TextDelta(text)) if index == self._last:
                return self._add(event, text)
            case events.BlockDelta(index) | events.BlockStop(index) if index == self._last:
                return self._add(event, "")
            case events.BlockStart(_, block) if not self._held and block.get("type") not in THOUGHTS:
                self._is_over = True
        if not self._held:
            return [event], ""
        released, left_out = self._release()
        return [*released, event], left_out

    def _add(self, event: ModelEvent, text: str) -> tuple[list[ModelEvent], str]:
        """Holds `event`, which adds `text` to the last block, or releases all events if it goes further."""
        self._held.append(event)
        self._texts[-1] += text
        return ([], "") if self._may_repeat("more of the last block") else self._release()

    def _may_repeat(self, what: Literal["another block", "more of the last block"]) -> bool:
        """Returns whether the texts, with `what` to come, can begin like the stored texts from some block on."""
        count = len(self._texts)
        if what == "another block":
            return any(self._stored[start : start + count] == self._texts for start in range(len(self._stored) - count))
        *before, last = self._texts
        return any(
            self._stored[start : start + count - 1] == before and self._stored[start + count - 1].startswith(last)
            for start in range(len(self._stored) - count + 1)
        )

    def _release(self) -> tuple[list[ModelEvent], str]:
        """Ends the filter; returns which held events to pass on, and the text that is left out."""
        self._is_over = True
        *before, last = self._texts
        repeated = self._stored[-len(self._texts) :]
        text = "".join(repeated)
        if before != repeated[:-1] or not last.startswith(repeated[-1]) or not is_unique(text):
            return self._held, ""
        rest = last.removeprefix(repeated[-1])
        start = next(event for event in self._held if _is_start(event.event, self._last))
        is_stopped = self._held[-1].event == events.BlockStop(self._last)
        if not rest and is_stopped and not self._is_open:
            return [], text
        # The last block goes on in the stored block if that is open.
        delta = [from_event(events.BlockDelta(self._last, events.TextDelta(rest)))] if rest else []
        return [_without_text(start), *delta, *self._held[-1:][: int(is_stopped)]], text


def _is_start(event: events.Event | events.UnknownEvent, index: int) -> bool:
    return isinstance(event, events.BlockStart) and event.index == index


def _without_text(event: ModelEvent) -> ModelEvent:
    """Returns the start of a text block without the text that it brings."""
    fields = msgspec.json.decode(event.raw)
    block = fields["content_block"]
    if not block.get("text"):
        return event
    raw = msgspec.Raw(msgspec.json.encode(fields | {"content_block": block | {"text": ""}}))
    return msgspec.structs.replace(event, event=events.decode(raw), raw=raw, original="")
