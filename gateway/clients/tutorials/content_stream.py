"""The dialect `content`: `data: {"content":…,"cursor":…}` only, for loops that concatenate the content of every event.

It has no event for the end: a stream that stops early lacks its body's last chunk. A failure is
`data: {"error":…}`, and then the connection is broken off.
"""

import msgspec

from tailrace.gateway.clients.failure import LOST
from tailrace.gateway.clients.native.text_stream import text_of
from tailrace.gateway.clients.tutorials.cursor_field import with_cursor_field
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto.entries import Attempt, End, StoredEntry
from tailrace.proto.records import TurnRecord

RESTARTED = "the answer starts again: send the request again"

_encode = msgspec.json.Encoder().encode


def render(state: None, stored: StoredEntry) -> tuple[Frame, None]:
    match stored.entry:
        case Attempt(mode="restart"):
            return Frame(_error(RESTARTED), is_break=True), state
        case End(outcome="failed", error=failure):
            return Frame(_error((failure or LOST).message), is_break=True), state
        case entry:
            text = text_of(entry)
            return (Frame(sse.frame(_encode({"content": text}), seq=stored.seq)) if text else SILENT), state


def render_record(record: TurnRecord, _: int) -> Frame:
    text = sse.frame(_encode({"content": record.text})) if record.text else ()
    if record.outcome in ("completed", "cancelled"):
        return Frame(text)
    return Frame(text + _error((record.error or LOST).message), is_break=True)


def _error(message: str) -> sse.Events:
    return sse.frame(_encode({"error": message}))


CONTENT = with_cursor_field(Dialect(name="content", start=lambda _: None, render=render, render_record=render_record))
