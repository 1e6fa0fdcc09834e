"""The dialect `text`: the bare text, for curl and a plain fetch loop.

Bare text has no way to say "error" or "forget that": there the connection is broken off, which a client sees, since the
body's last chunk is missing. A turn that was cancelled has ended, and its text with it.
"""

from tailrace.gateway.clients.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Entry, Event, Stored
from tailrace.proto.records import TurnRecord

BROKEN_OFF = Frame(is_break=True)


def render(state: None, stored: Stored) -> tuple[Frame, None]:
    match stored.entry:
        case Attempt(mode="restart") | End(outcome="failed"):
            return BROKEN_OFF, state
        case entry:
            text = said(entry)
            return (Frame(text=_utf8(text)) if text else SILENT), state


def said(entry: Entry) -> str:
    """What an entry adds to the text that a reader sees; mostly nothing."""
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
    return Frame(text=_utf8(record.text), is_break=record.outcome not in ("completed", "cancelled"))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


TEXT = Dialect(
    name="text",
    media_type="text/plain; charset=utf-8",
    heartbeat=b"",
    is_self_delimited=False,
    can_reset=False,
    start=lambda _: None,
    render=render,
    render_record=render_record,
)
