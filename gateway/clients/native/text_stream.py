"""The dialect `text`: the answer's text without framing, for curl and simple fetch loops.

Plain text cannot express "error" or "discard the text so far". For both, the gateway breaks the connection off: the
body's last chunk is missing, and the client's HTTP library reports it. A cancelled turn ends the body normally.
"""

from tailrace.gateway.clients.text_state import TextState, start_text
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto.entries import Attempt, End, StoredEntry
from tailrace.proto.records import TurnRecord


def render(state: TextState, stored: StoredEntry) -> tuple[Frame, TextState]:
    text, state = state.next(stored.entry)
    match stored.entry:
        case Attempt(mode="restart") | End(outcome="failed"):
            return Frame(data=_utf8(text), is_break=True), state
        case _:
            return (Frame(data=_utf8(text)) if text else SILENT), state


def render_record(record: TurnRecord, _: int) -> Frame:
    return Frame(data=_utf8(record.text), is_break=record.outcome not in ("completed", "cancelled"))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


TEXT = Dialect(
    name="text",
    start=start_text,
    render=render,
    render_record=render_record,
    is_stateful=True,
    media_type="text/plain; charset=utf-8",
    heartbeat=b"",
)
