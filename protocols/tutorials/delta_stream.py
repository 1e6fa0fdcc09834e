"""The dialect `delta`: three types of event, for the fetch loops that tutorials teach; each has the `cursor`, too.

{"type":"delta","text":…}                                          a delta of the answer's text
{"type":"done"}                                                    the end; perhaps with `stop_reason` and `warnings`
{"type":"error","error":"rate_limit",…,"message":…,"retry_after":…}  the end of a turn that failed or was cancelled;
                                                                   a request that is refused gets this event, too
"""

import math
from typing import Any, Literal

import msgspec

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Frame
from tailrace.proto.entries import End, Failure
from tailrace.proto.errors import CODES
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import Warnings, warnings_field
from tailrace.protocols.common.failure import error_type, failure_of
from tailrace.protocols.common.stop_reasons import stop_reason_field
from tailrace.protocols.tutorials.cursor_field import with_cursor_field
from tailrace.protocols.tutorials.text_state import text_dialect

Word = Literal["auth_error", "rate_limit", "token_limit", "network_error", "unknown"]

# If a rate limit names no time.
RETRY_AFTER_S = 5.0
RESTARTED = Failure("backend_broken", "the answer starts again: send the request again")

_encode = msgspec.json.Encoder().encode


def _delta(text: str, seq: int | None = None) -> sse.Events:
    return _frame({"type": "delta", "text": text}, seq) if text else ()


def _restart(seq: int) -> Frame:
    return Frame(_frame(error_event(RESTARTED), seq), is_break=True)


def _end(text: str, ended: End | TurnRecord, seq: int, warnings: Warnings) -> Frame:
    last = {"type": "done", **stop_reason_field(ended), **warnings_field(warnings)}
    if ended.outcome != "completed":
        last = error_event(failure_of(ended))
    return Frame(_delta(text) + _frame(last, seq))


def error_event(failure: Failure) -> dict[str, Any]:
    """Returns the error event. `retry_after`, in seconds, is set for each `rate_limit`, and where a time is known."""
    word, after_s = word_of(failure), failure.retry_after_s
    if word == "rate_limit":
        after_s = after_s or RETRY_AFTER_S
    retry = {} if after_s is None else {"retry_after": math.ceil(after_s)}
    return {"type": "error", "error": word, "code": failure.code, "message": failure.message, **retry}


def word_of(failure: Failure) -> Word:
    """Returns one of the five words that the pages of tutorials know for a failure."""
    if failure.code == "backend_refused_key":
        return "auth_error"
    if failure.code == "backend_refused_request" and "too long" in failure.message:
        return "token_limit"
    match error_type(failure):
        case "authentication_error" | "permission_error":
            return "auth_error"
        case "rate_limit_error":
            return "rate_limit"
        case "request_too_large":
            return "token_limit"
        case _ if failure.code in CODES and CODES[failure.code].is_retryable:
            return "network_error"
        case _:
            return "unknown"


def render_refusal(code: str, message: str, retry_after_s: float | None) -> bytes:
    """Returns the body of the response to a request that is refused."""
    return sse.encode(_frame(error_event(Failure(code, message, retry_after_s))))


def _frame(event: dict[str, Any], seq: int | None = None) -> sse.Events:
    return sse.frame(_encode(event), seq=seq)


# Not self-delimited, although it has an event for the end: the tutorials' loops stop where the body stops.
DELTA = with_cursor_field(text_dialect("delta", _delta, _restart, _end))
