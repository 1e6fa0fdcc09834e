"""The dialect `text`: the answer's text without framing, for curl and simple fetch loops.

Plain text cannot express "error" or "discard the text so far". For both, the gateway breaks the connection off: the
body's last chunk is missing, and the client's HTTP library reports it. A cancelled turn ends the body normally.
"""

from tailrace.gateway.clients.text_order import NO_BLOCKS, TextOrder, text_of_event
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, StoredEntry
from tailrace.proto.records import TurnRecord


def render(order: TextOrder, stored: StoredEntry) -> tuple[Frame, TextOrder]:
    match stored.entry:
        case Event(event=raw, is_hidden=False):
            text, order = text_of_event(order, events.decode(raw))
            return (Frame(data=_utf8(text)) if text else SILENT), order
        case Attempt(mode="restart"):
            return Frame(is_break=True), NO_BLOCKS
        case End(outcome=outcome):
            return Frame(data=_utf8(order.rest()), is_break=outcome == "failed"), NO_BLOCKS
        case _:
            return SILENT, order


def render_record(record: TurnRecord, _: int) -> Frame:
    return Frame(data=_utf8(record.text), is_break=record.outcome not in ("completed", "cancelled"))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


TEXT = Dialect(
    name="text",
    start=lambda _: NO_BLOCKS,
    render=render,
    render_record=render_record,
    is_stateful=True,
    media_type="text/plain; charset=utf-8",
    heartbeat=b"",
)
