"""Chain and link: decide which entries of a turn's log are valid (PROTOCOL R11). Pure.

The server's fence keeps two writers apart, but in a replicated stream a change of leader can let a fork in (ADR 2).
Therefore every entry names its predecessor. The log is totally ordered, so all readers that apply this rule from the
beginning get the same entries: the first entry that continues the chain is valid, all others are skipped.
"""

import msgspec

from tailrace.proto.entries import Attempt, End, Entry, Event, Progress, Request, Unknown, Unreadable
from tailrace.proto.ids import BEFORE_FIRST, Seq


class Chain(msgspec.Struct, frozen=True):
    """A position in a turn's chain: the sequence of the last valid entry, its attempt, and whether it is an end.

    The last valid entry determines these fields, so a reader may start at any entry.
    """

    last: Seq = BEFORE_FIRST
    attempt: int = 0
    is_ended: bool = False
    length: int | None = None
    """The number of entries in the chain; None if it does not begin with the turn's first entry."""
    first: Seq = BEFORE_FIRST
    """The sequence of the turn's request; BEFORE_FIRST if the chain does not begin with the request."""


START = Chain(length=0)


def link(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
    """Returns `chain` extended by `entry`, stored at `seq`; None when `entry` is not valid after `chain`."""
    if chain.is_ended or entry.prev != chain.last:
        return None
    is_empty = chain.last == BEFORE_FIRST
    length = None if chain.length is None else chain.length + 1
    # The most frequent kinds first: this runs for every entry.
    match entry:
        case Event() | Progress() | End() | Unknown():
            is_current = entry.attempt >= chain.attempt and not is_empty
            return Chain(seq, entry.attempt, type(entry) is End, length, chain.first) if is_current else None
        case Attempt():
            is_later = entry.attempt > chain.attempt and not is_empty
            return Chain(seq, entry.attempt, length=length, first=chain.first) if is_later else None
        case Request():
            return Chain(seq, length=length, first=seq) if is_empty else None
        case Unreadable():
            return None
