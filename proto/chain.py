"""Which entries of a turn's log are valid: the one rule that every reader and writer applies. No I/O, no clock.

The server's fence keeps two writers apart, but in a replicated stream a change of leader can let a fork in (ADR 2).
Every entry therefore names its predecessor. The log is totally ordered, so whoever applies this rule from the beginning
comes to the same story: the first entry that continues the chain is part of it, everything else is skipped.
"""

import msgspec

from tailrace.proto.entries import Attempt, End, Entry, Event, Progress, Request, Unknown, Unreadable
from tailrace.proto.ids import BEFORE_FIRST, Seq


class Chain(msgspec.Struct, frozen=True):
    """A turn's chain so far: its last valid entry, the number of the attempt that holds it, whether it has ended.

    All of it can be read off the last valid entry, so that a reader may start at any.
    """

    last: Seq = BEFORE_FIRST
    attempt: int = 0
    is_ended: bool = False


START = Chain()


def link(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
    """The chain with `entry` (stored at `seq`) as its next link; None when the entry is not valid there."""
    if chain.is_ended or entry.prev != chain.last:
        return None
    is_first = chain.last == BEFORE_FIRST
    # Most entries by far are events, and every entry comes by here.
    match entry:
        case Event() | Progress() | End() | Unknown():
            is_current = entry.attempt >= chain.attempt and not is_first
            return Chain(seq, entry.attempt, isinstance(entry, End)) if is_current else None
        case Attempt():
            return Chain(seq, entry.attempt) if entry.attempt > chain.attempt and not is_first else None
        case Request():
            return Chain(seq) if is_first else None
        case Unreadable():
            return None
