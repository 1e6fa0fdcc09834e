"""The dialect `delta`: three kinds of data, for the fetch loops that tutorials teach. It has no word for anything else.

{"type":"delta","text":…}                                          more of the answer
{"type":"done"}                                                    the end
{"type":"error","error":"rate_limit",…,"message":…,"retry_after":…}  the end of a turn that failed
"""

import math
from typing import Any

import msgspec

from tailrace.gateway.clients.dialect import SILENT, Dialect, Frame
from tailrace.gateway.clients.failure import CANCELLED, of_record, type_of
from tailrace.gateway.clients.native.text import said
from tailrace.gateway.streaming import sse
from tailrace.proto.entries import Attempt, End, Failure, Stored
from tailrace.proto.records import TurnRecord

BEGUN_ANEW = Failure("backend_broken", "the answer begins anew: ask again")

_encode = msgspec.json.Encoder().encode


def render(state: None, stored: Stored) -> tuple[Frame, None]:
    match stored.entry:
        case Attempt(mode="restart"):
            return Frame(_frame(error(BEGUN_ANEW), stored.seq), is_break=True), state
        case End(outcome="completed"):
            return Frame(_frame({"type": "done"}, stored.seq)), state
        case End(error=failure):
            return Frame(_frame(error(failure or CANCELLED), stored.seq)), state
        case entry:
            text = said(entry)
            return (Frame(_frame({"type": "delta", "text": text}, stored.seq)) if text else SILENT), state


def render_record(record: TurnRecord, _: int) -> Frame:
    text = _frame({"type": "delta", "text": record.text}) if record.text else ()
    if record.outcome == "completed":
        return Frame(text + _frame({"type": "done"}, record.cursor))
    return Frame(text + _frame(error(of_record(record)), record.cursor))


def error(failure: Failure) -> dict[str, Any]:
    """A failure in a word and a sentence, and in how many seconds to ask again, where the model has said so."""
    again = {} if failure.retry_after_s is None else {"retry_after": math.ceil(failure.retry_after_s)}
    return {"type": "error", "error": type_of(failure).removesuffix("_error"), "message": failure.message, **again}


def _frame(shown: dict[str, Any], seq: int | None = None) -> sse.Events:
    return sse.frame(_encode(shown), seq=seq)


DELTA = Dialect(
    name="delta",
    media_type=sse.MEDIA_TYPE,
    heartbeat=sse.HEARTBEAT,
    # There is a word for the end, and the tutorials' loops do not wait for it: they end where the body does.
    is_self_delimited=False,
    can_reset=False,
    start=lambda _: None,
    render=render,
    render_record=render_record,
)
