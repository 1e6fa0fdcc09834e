"""Record of all calls to the simulated Claude: question, begin and end of each.

A checker compares the record with the log: a call without an attempt would have cost money without a reason, and an
open call of a cancelled turn would still cost money.
"""

from collections import deque
from time import monotonic_ns

import msgspec

# About 300 bytes a call. For longer runs, read and reset the record from time to time.
CALLS_MAX = 200_000


class Call(msgspec.Struct):
    """One accepted call. Times are of the machine's monotonic clock, in nanoseconds."""

    number: int
    """From 1, over all turns, since the start or the last reset."""
    key: str
    """Conversation.key: the same for every call of one turn."""
    question: str
    """The last line of the question, at most 200 characters."""
    start: int
    """The number of the answer's deltas before this call's first one."""
    begun: int
    closed: int | None = None
    """None while the call is open."""
    over: str = "open"
    """`open`, `whole`, `aborted` (the client left before the end), or the kind of the fault that broke the call."""
    deltas: int = 0
    """Deltas sent so far."""

    def close(self, over: str) -> None:
        """Ends the call. A call that a fault has ended keeps that reason when its client then disconnects (a stall)."""
        self.closed = monotonic_ns()
        self.over = over if self.over == "open" else self.over


class Account(msgspec.Struct):
    """The calls, oldest first. `forgotten` is the number of calls that were dropped because there were too many."""

    calls: deque[Call]
    begun: int = 0

    @property
    def forgotten(self) -> int:
        return self.begun - len(self.calls)

    def begin(self, key: str, question: str, start: int) -> Call:
        """Records a call with the last line of its question, and returns it. May drop the oldest call."""
        self.begun += 1
        last_line = question.strip().rpartition("\n")[2][:200]
        self.calls.append(Call(self.begun, key, last_line, start, monotonic_ns()))
        return self.calls[-1]


class SubmittedRequest(msgspec.Struct, frozen=True):
    """One request of a message batch. An answer is paid for."""

    custom_id: str
    message_batch: str
    created: int
    """When the message batch was created, by the machine's monotonic clock, in nanoseconds."""
    over: str
    """`open`, or the type of its result."""


class AccountReport(msgspec.Struct, frozen=True):
    """The body of GET /_sim/calls."""

    calls: list[Call]
    forgotten: int
    submitted: list[SubmittedRequest] = []
