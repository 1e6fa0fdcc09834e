"""The dialect `html`: named events whose data is escaped HTML, for pages that insert it as it is, such as htmx's.

event: delta    a delta of the answer's text
event: reset    discard the text so far: an HTML comment, with which a page replaces it
event: failed   why the answer failed; `done` follows
event: warning  a sentence: the answer is not whole, or has parts that are no text; `done` follows
event: done     the end: completed, incomplete, cancelled or failed

`done` is always the last event, because htmx's `sse-close` names one event: without it, htmx would connect again, and
append the answer again. Data is never empty, because an EventSource does not dispatch an event without data.
"""

import html

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Frame
from tailrace.proto.entries import End
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import Warnings
from tailrace.protocols.common.failure import LOST
from tailrace.protocols.common.stop_reasons import incomplete_reason
from tailrace.protocols.tutorials.text_state import text_dialect

NOTHING = b"<!---->"
# A line break would end the data line; a character reference is one in the page.
LINE_BREAKS = {ord("\n"): "&#10;", ord("\r"): "&#13;"}


def _delta(text: str, seq: int | None = None) -> sse.Events:
    return sse.frame(_escape(text), seq=seq, event=b"delta") if text else ()


def _reset(seq: int | None = None) -> Frame:
    return Frame(sse.frame(NOTHING, seq=seq, event=b"reset"))


def _end(text: str, ended: End | TurnRecord, seq: int, warnings: Warnings) -> Frame:
    """Returns the end. A turn from the database begins with a reset: the reader may have a part of the text."""
    reset = _reset().events if isinstance(ended, TurnRecord) else ()
    if ended.outcome == "failed":
        before = sse.frame(_escape((ended.error or LOST).message), event=b"failed")
    else:
        before = tuple(event for one in warnings for event in sse.frame(_escape(one["message"]), event=b"warning"))
    outcome = ended.outcome if incomplete_reason(ended) is None else "incomplete"
    return Frame(reset + _delta(text) + before + sse.frame(outcome.encode(), seq=seq, event=b"done"))


def _escape(text: str) -> bytes:
    # A lone surrogate in a model's JSON escapes has no UTF-8.
    return html.escape(text).translate(LINE_BREAKS).encode("utf-8", "replace")


HTML = text_dialect("html", _delta, _reset, _end)._replace(is_self_delimited=True, can_reset=True)
