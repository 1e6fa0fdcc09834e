"""The dialect `text`: the answer's text without framing, for curl and simple fetch loops.

Plain text cannot express "error" or "discard the text so far". For both, the gateway breaks the connection off: the
body's last chunk is missing, and the client's HTTP library reports it. A cancelled turn ends the body normally.
"""

from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Entry, Event, StoredEntry
from tailrace.proto.records import TurnRecord

BREAK = Frame(is_break=True)


def render(state: None, stored: StoredEntry) -> tuple[Frame, None]:
    match stored.entry:
        case Attempt(mode="restart") | End(outcome="failed"):
            return BREAK, state
        case entry:
            text = text_of(entry)
            return (Frame(data=_utf8(text)) if text else SILENT), state


def text_of(entry: Entry) -> str:
    """Returns the text that an entry adds to the visible answer; empty for most entries."""
    match entry:
        case Event(event=raw, is_hidden=False):
            event = events.decode(raw)
        case _:
            return ""
    match event:
        case events.BlockDelta(_, events.TextDelta(text)) | events.BlockStart(_, {"type": "text", "text": str(text)}):
            return text
        case _:
            return ""


def render_record(record: TurnRecord, _: int) -> Frame:
    return Frame(data=_utf8(record.text), is_break=record.outcome not in ("completed", "cancelled"))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


TEXT = Dialect(
    name="text",
    start=lambda _: None,
    render=render,
    render_record=render_record,
    media_type="text/plain; charset=utf-8",
    heartbeat=b"",
)
