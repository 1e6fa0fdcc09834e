"""The state of these dialects, which show only the text of an answer, in the order of its blocks, and its warnings."""

from typing import NamedTuple

from tailrace.gateway.clients.text_order import NO_BLOCKS, TextOrder, text_of_event
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Entry, Event
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import NOTHING, TEXT_ONLY, LeftOut, Warnings, types_of, warnings_of


class TextState(NamedTuple):
    """The state of a dialect that shows only the text of an answer."""

    turn: TurnId
    order: TextOrder = NO_BLOCKS
    left_out: LeftOut = NOTHING

    def next(self, entry: Entry) -> "tuple[str, TextState]":
        """Returns the text that an entry adds to the shown answer, empty for most entries, and the state after it."""
        match entry:
            case Event(event=raw, is_hidden=False):
                event = events.decode(raw)
                text, order = text_of_event(self.order, event)
                return text, TextState(self.turn, order, self.left_out.add(event, raw, TEXT_ONLY))
            case Attempt(mode="restart"):
                return "", TextState(self.turn)
            case End():
                return self.order.rest(), self._replace(order=NO_BLOCKS)
            case _:
                return "", self

    def warnings(self, end: End) -> Warnings:
        """Returns the warnings of the answer."""
        return warnings_of(end, self.left_out.types, self.turn)


def start_text(key: TurnKey) -> TextState:
    """Returns the state before the first entry of a turn."""
    return TextState(key.turn)


def record_warnings(record: TurnRecord) -> Warnings:
    """Returns the warnings of a turn from the database, in a dialect that shows only text."""
    return warnings_of(record, types_of(record.content, TEXT_ONLY), record.turn)
