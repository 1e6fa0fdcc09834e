"""Why there is no whole answer, where an entry or a record does not say it itself, and the type of it. Pure."""

from tailrace.proto import end_entry
from tailrace.proto.entries import Failure
from tailrace.proto.errors import CODES
from tailrace.proto.records import TurnRecord

CANCELLED = Failure("turn_cancelled", "the turn was cancelled")
LOST = end_entry.LOST_FAILURE


def of_record(record: TurnRecord) -> Failure:
    """Of a turn that has left the log, and was not completed."""
    return record.error or (CANCELLED if record.outcome == "cancelled" else LOST)


def type_of(failure: Failure) -> str:
    """Anthropic's error type. A code may be newer than this version."""
    return CODES[failure.code].type if failure.code in CODES else "api_error"
