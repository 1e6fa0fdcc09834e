"""The dialect `content`: `data: {"content":…,"cursor":…}` only, for loops that concatenate the content of every event.

It has no event for the end: a stream that stops early lacks its body's last chunk. A failure is
`data: {"error":…}`, and then the connection is broken off. If the answer is not whole, or has parts that are no text,
the last event has an empty `content`, the `stop_reason` and `warnings`.
"""

import msgspec

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto.entries import Attempt, End, StoredEntry
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import Warnings, warnings_field
from tailrace.protocols.common.failure import LOST
from tailrace.protocols.common.stop_reasons import stop_reason_field
from tailrace.protocols.tutorials.cursor_field import with_cursor_field
from tailrace.protocols.tutorials.text_state import TextState, record_warnings, start_text

RESTARTED = "the answer starts again: send the request again"

_encode = msgspec.json.Encoder().encode


def render(state: TextState, stored: StoredEntry) -> tuple[Frame, TextState]:
    text, state = state.next(stored.entry)
    match stored.entry:
        case Attempt(mode="restart"):
            return Frame(_error(RESTARTED), is_break=True), state
        case End(outcome="failed", error=failure):
            return Frame(_text(text) + _error((failure or LOST).message), is_break=True), state
        case End(outcome="completed") as end:
            ending = _end(end, state.warnings(end), stored.seq)
            return Frame(_text(text, None if ending else stored.seq) + ending), state
        case _:
            return (Frame(_text(text, stored.seq)) if text else SILENT), state


def render_record(record: TurnRecord, _: int) -> Frame:
    text = _text(record.text)
    if record.outcome == "completed":
        return Frame(text + _end(record, record_warnings(record)))
    if record.outcome == "cancelled":
        return Frame(text)
    return Frame(text + _error((record.error or LOST).message), is_break=True)


def _text(text: str, seq: int | None = None) -> sse.Events:
    return sse.frame(_encode({"content": text}), seq=seq) if text else ()


def _end(ended: End | TurnRecord, warnings: Warnings, seq: int | None = None) -> sse.Events:
    """Returns the last event of an answer that has warnings. Loops that concatenate `content` get an empty string."""
    if not warnings:
        return ()
    return sse.frame(_encode({"content": "", **stop_reason_field(ended), **warnings_field(warnings)}), seq=seq)


def _error(message: str) -> sse.Events:
    return sse.frame(_encode({"error": message}))


CONTENT = with_cursor_field(
    Dialect(name="content", start=start_text, render=render, render_record=render_record, is_stateful=True)
)
