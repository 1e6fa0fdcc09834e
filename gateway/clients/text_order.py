"""Orders the text of content blocks that are open at the same time, for dialects whose text has no block index.

The answer's text is the text of its blocks in the order of the blocks (PROTOCOL R24). Claude's API may send deltas of
several open blocks in turn. The text of a later block is then held back until all earlier blocks have stopped.
"""

from typing import Any, NamedTuple

from tailrace.gateway.clients.growing_text import GrowingText
from tailrace.proto import events

NO_TEXT = GrowingText()


class _OpenText(NamedTuple):
    """A block that has not been shown to its end. `held`: its text that was not shown."""

    block: int
    held: GrowingText = NO_TEXT
    is_stopped: bool = False


class TextOrder(NamedTuple):
    """The blocks of one type that are not shown to their end, in order. The first block's text is shown at once."""

    waiting: tuple[_OpenText, ...] = ()

    def start(self, index: int, text: str) -> "tuple[str, TextOrder]":
        """Begins a block with `text`. Returns the text that is shown now, and the order after it."""
        return TextOrder((*self.waiting, _OpenText(index))).add(index, text)

    def add(self, index: int, text: str) -> "tuple[str, TextOrder]":
        """Adds text to a block. Returns the text that is shown now, and the order after it."""
        if not text or not self.waiting or self.waiting[0].block == index:
            return text, self
        if all(one.block != index for one in self.waiting):
            # A block whose start is not in the log has no place in the order.
            return text, self
        held = (one._replace(held=one.held.plus(text)) if one.block == index else one for one in self.waiting)
        return "", TextOrder(tuple(held))

    def stop(self, index: int) -> "tuple[str, TextOrder]":
        """Ends a block. Returns the text of later blocks that it held back, and the order after it."""
        waiting = [one._replace(is_stopped=one.is_stopped or one.block == index) for one in self.waiting]
        shown = ""
        while waiting and waiting[0].is_stopped:
            del waiting[0]
            if waiting:
                shown += waiting[0].held.text()
                waiting[0] = waiting[0]._replace(held=NO_TEXT)
        return shown, TextOrder(tuple(waiting))

    def rest(self) -> str:
        """Returns the text that is still held back. The end of a turn shows it."""
        return "".join(one.held.text() for one in self.waiting)


NO_BLOCKS = TextOrder()


def text_of_event(
    order: TextOrder, event: events.Event | events.UnknownEvent, kind: str = "text"
) -> tuple[str, TextOrder]:
    """Returns the text that an event adds to the blocks of type `kind` (or `thinking`), and the order after it."""
    match event:
        case events.BlockStart(index, {"type": str(found)} as block) if found == kind:
            return order.start(index, started_text(block))
        case events.BlockDelta(index, events.TextDelta(text)) if kind == "text":
            return order.add(index, text)
        case events.BlockDelta(index, events.ThinkingDelta(text)) if kind == "thinking":
            return order.add(index, text)
        case events.BlockStop(index):
            return order.stop(index)
        case _:
            return "", order


def started_text(block: dict[str, Any]) -> str:
    """Returns the text or the thinking that the start of a block has already; empty for most."""
    text = block.get("text" if block.get("type") == "text" else "thinking")
    return text if isinstance(text, str) else ""
