"""The dialect `content`: `data: {"content":…,"cursor":…}` only, for loops that concatenate the content of every event.

It has no event for the end: a stream that stops early lacks its body's last chunk. A failure is
`data: {"error":…}`, and then the connection is broken off.
"""

import msgspec

from tailrace.gateway.clients.failure import LOST
from tailrace.gateway.clients.text_order import NO_BLOCKS, TextOrder, next_text
from tailrace.gateway.clients.tutorials.cursor_field import with_cursor_field
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto.entries import Attempt, End, StoredEntry
from tailrace.proto.records import TurnRecord

RESTARTED = "the answer starts again: send the request again"

_encode = msgspec.json.Encoder().encode


def render(order: TextOrder, stored: StoredEntry) -> tuple[Frame, TextOrder]:
    text, order = next_text(order, stored.entry)
    match stored.entry:
        case Attempt(mode="restart"):
            return Frame(_error(RESTARTED), is_break=True), order
        case End(outcome="failed", error=failure):
            return Frame(_text(text) + _error((failure or LOST).message), is_break=True), order
        case _:
            return (Frame(_text(text, stored.seq)) if text else SILENT), order


def render_record(record: TurnRecord, _: int) -> Frame:
    text = _text(record.text)
    if record.outcome in ("completed", "cancelled"):
        return Frame(text)
    return Frame(text + _error((record.error or LOST).message), is_break=True)


def _text(text: str, seq: int | None = None) -> sse.Events:
    return sse.frame(_encode({"content": text}), seq=seq) if text else ()


def _error(message: str) -> sse.Events:
    return sse.frame(_encode({"error": message}))


CONTENT = with_cursor_field(
    Dialect(name="content", start=lambda _: NO_BLOCKS, render=render, render_record=render_record, is_stateful=True)
)
