"""Dialects that show only the text of an answer, in the order of its blocks, and its warnings."""

from collections.abc import Callable
from typing import NamedTuple

from tailrace.gateway.clients.text_order import NO_BLOCKS, TextOrder, text_of_event
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Entry, Event, StoredEntry
from tailrace.proto.ids import Seq, TurnId, TurnKey
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


def text_dialect(
    name: str,
    render_text: Callable[[str, Seq], sse.Events],
    render_restart: Callable[[Seq], Frame],
    render_end: Callable[[str, End | TurnRecord, Seq, Warnings], Frame],
) -> Dialect:
    """Returns a dialect that renders a piece of text with its cursor, the restart of an answer, and its end.

    The end comes with text that no event has shown: all of the text of a turn from the database.
    """

    def render(state: TextState, stored: StoredEntry) -> tuple[Frame, TextState]:
        text, state = state.next(stored.entry)
        match stored.entry:
            case Attempt(mode="restart"):
                return render_restart(stored.seq), state
            case End() as end:
                return render_end(text, end, stored.seq, state.warnings(end)), state
            case _:
                return (Frame(render_text(text, stored.seq)) if text else SILENT), state

    def render_record(record: TurnRecord, _: int) -> Frame:
        return render_end(record.text, record, record.cursor, record_warnings(record))

    return Dialect(name=name, start=start_text, render=render, render_record=render_record, is_stateful=True)
