"""The failure to report for a turn without a whole answer, and Anthropic's error type for it."""

from tailrace.proto import end_entry
from tailrace.proto.entries import End, Failure
from tailrace.proto.errors import CODES
from tailrace.proto.records import TurnRecord

CANCELLED = Failure("turn_cancelled", "the turn was cancelled")
LOST = end_entry.LOST_FAILURE


def failure_of(ended: TurnRecord | End) -> Failure:
    """Returns why a turn was not completed: its error, that it was cancelled, or that it left the log before its
    end."""
    return ended.error or (CANCELLED if ended.outcome == "cancelled" else LOST)


def error_type(failure: Failure) -> str:
    """Returns Anthropic's error type, `api_error` for a code that a newer version has stored."""
    return CODES[failure.code].type if failure.code in CODES else "api_error"
