"""The dialect `content`: `data: {"content":…,"cursor":…}` only, for loops that concatenate the content of every event.

It has no event for the end: a stream that stops early lacks its body's last chunk. A failure is
`data: {"error":…}`, and then the connection is broken off. If the answer is not whole, or has parts that are no text,
the last event has an empty `content`, the `stop_reason` and `warnings`.
"""

import msgspec

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Frame
from tailrace.proto.entries import End
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import Warnings, warnings_field
from tailrace.protocols.common.failure import LOST
from tailrace.protocols.common.stop_reasons import stop_reason_field
from tailrace.protocols.tutorials.cursor_field import with_cursor_field
from tailrace.protocols.tutorials.text_state import text_dialect

RESTARTED = "the answer starts again: send the request again"

_encode = msgspec.json.Encoder().encode


def _text(text: str, seq: int | None = None) -> sse.Events:
    return sse.frame(_encode({"content": text}), seq=seq) if text else ()


def _restart(_: int) -> Frame:
    return Frame(_error(RESTARTED), is_break=True)


def _end(text: str, ended: End | TurnRecord, seq: int, warnings: Warnings) -> Frame:
    """Returns the rest of the text, and an event for a failure or for warnings.

    Loops that concatenate `content` get an empty string with warnings. A turn from the database has no cursors.
    """
    cursor = seq if isinstance(ended, End) else None
    if ended.outcome == "failed":
        return Frame(_text(text) + _error((ended.error or LOST).message), is_break=True)
    if ended.outcome == "cancelled" or not warnings:
        return Frame(_text(text, cursor))
    last = {"content": "", **stop_reason_field(ended), **warnings_field(warnings)}
    return Frame(_text(text) + sse.frame(_encode(last), seq=cursor))


def _error(message: str) -> sse.Events:
    return sse.frame(_encode({"error": message}))


CONTENT = with_cursor_field(text_dialect("content", _text, _restart, _end))
