"""The failure to report for a turn without a whole answer, and Anthropic's error type for it."""

from typing import Literal

from tailrace.proto import end_entry
from tailrace.proto.entries import End, Failure
from tailrace.proto.errors import CODES
from tailrace.proto.records import TurnRecord

CANCELLED = Failure("turn_cancelled", "the turn was cancelled")
LOST = end_entry.LOST_FAILURE

Word = Literal["auth_error", "rate_limit", "token_limit", "network_error", "unknown"]


def failure_of(ended: TurnRecord | End, cancelled: Failure = CANCELLED) -> Failure:
    """Returns why a turn was not completed: its error, `cancelled`, or that it left the log before it ended."""
    return ended.error or (cancelled if ended.outcome == "cancelled" else LOST)


def error_type(failure: Failure) -> str:
    """Returns Anthropic's error type, `api_error` for a code that a newer version has stored."""
    return CODES[failure.code].type if failure.code in CODES else "api_error"


def word_of(failure: Failure) -> Word:
    """Returns one of the five words that the tutorials' pages know for a failure."""
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
