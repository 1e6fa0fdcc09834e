"""The variant of a dialect for hand-written loops: the cursor is a field of the JSON, and there is no `id:` line.

Such a loop splits the stream at blank lines and parses what follows `data: `. An `id:` line in the same frame is a
syntax error for the loop, and a heartbeat without a blank line after it hides the next frame. Clients that parse
server-sent events ask for them (`Accept: text/event-stream`) and receive `id:` lines to resume with.
"""

from typing import Any

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.proto.entries import StoredEntry
from tailrace.proto.records import TurnRecord


def with_cursor_field(dialect: Dialect) -> Dialect:
    """Returns `dialect`, whose events are JSON objects, with fields `cursor` instead of ids."""

    def render(state: Any, stored: StoredEntry) -> tuple[Frame, Any]:
        frame, state = dialect.render(state, stored)
        return _convert(frame), state

    def render_record(record: TurnRecord, seen: int) -> Frame:
        return _convert(dialect.render_record(record, seen))

    return dialect._replace(
        render=render,
        render_record=render_record,
        heartbeat=sse.HEARTBEAT_FRAME,
        with_ids=dialect._replace(name=f"{dialect.name}-ids"),
    )


def _convert(frame: Frame) -> Frame:
    return Frame(tuple(map(_with_field, frame.events)), frame.is_break)


def _with_field(event: sse.Event) -> sse.Event:
    if event.seq is None:
        return event
    return sse.Event(event.data.removesuffix(b"}") + b',"cursor":%d}' % event.seq, name=event.name)
