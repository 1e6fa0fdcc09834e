"""The simulated Claude's own account of its calls: for what question, when each began and closed. Decides nothing.

A checker holds it against the log: a call that no attempt explains was paid for by nobody's wish, and one that is
still open after its turn was cancelled is still being paid for.
"""

from collections import deque
from time import monotonic_ns

import msgspec

# At some 300 bytes a call. Who wants to judge a longer run takes the account and resets it on the way.
CALLS_MAX = 200_000


class Call(msgspec.Struct):
    """One call that was taken; times are of the machine's monotonic clock, in nanoseconds."""

    number: int
    """From 1, over all turns, since the start or the last reset."""
    key: str
    """Conversation.key: the same for every call of one turn."""
    question: str
    """The last line that was asked, at most 200 characters of it."""
    start: int
    """The place in the whole answer, in deltas, where this call goes on."""
    begun: int
    closed: int | None = None
    """None while it is open."""
    over: str = "open"
    """`open`, `whole`, `aborted` (the client left before the end), or the kind of fault that broke it."""
    deltas: int = 0
    """How many it has sent."""

    def close(self, over: str) -> None:
        """A call that a fault has broken stays one, also when its client leaves: a stall is left by everybody."""
        self.closed = monotonic_ns()
        self.over = over if self.over == "open" else self.over


class Account(msgspec.Struct):
    """The calls, oldest first. `forgotten` are those that were too many to be kept."""

    calls: deque[Call] = msgspec.field(default_factory=lambda: deque[Call](maxlen=CALLS_MAX))
    begun: int = 0

    @property
    def forgotten(self) -> int:
        return self.begun - len(self.calls)

    def begin(self, key: str, question: str, start: int) -> Call:
        self.begun += 1
        last_line = question.strip().rpartition("\n")[2][:200]
        self.calls.append(Call(self.begun, key, last_line, start, monotonic_ns()))
        return self.calls[-1]


class AccountReport(msgspec.Struct, frozen=True):
    """What GET /_sim/calls answers."""

    calls: list[Call]
    forgotten: int
