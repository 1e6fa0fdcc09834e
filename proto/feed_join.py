"""Joins what is read from a turn's log with what the live feed says of it. Pure: it is told, it tells what to read.

The live feed is a hint: it misses, repeats and reorders (ADR 4). The log is the truth, but one read of it may be
behind. So an entry from the feed is taken only when it continues the chain; one that is further on proves that
something was missed, and then the log has to be read until it reaches at least there.
"""

from collections.abc import Iterable

from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import Stored
from tailrace.proto.ids import BEFORE_FIRST


class Join:
    """One turn as one follower sees it.

    `chain` is where its story stands; `read` the sequence up to which it knows the log; `behind` the highest sequence
    that is known to be stored and not yet settled. `skipped` counts what is stored and not valid.
    """

    def __init__(self, chain: Chain = START) -> None:
        self.chain = chain
        self.read = chain.last
        self.behind = BEFORE_FIRST
        self.skipped = 0

    @property
    def has_gap(self) -> bool:
        """The log has to be read again after `read`."""
        return self.behind > self.read

    def replayed(self, entries: Iterable[Stored]) -> list[Stored]:
        """Entries read from the log after `read`, in its order and without a hole; the valid ones come back."""
        return [stored for stored in entries if self._settle(stored)]

    def heard(self, stored: Stored) -> list[Stored]:
        """An entry from the live feed; it comes back when it continues the chain.

        One that came too early is not kept: it may be a fork's, whose rival is what was missed. The log says which.
        """
        if stored.seq <= self.read or self.chain.is_ended:
            return []
        chain = link(self.chain, stored.seq, stored.entry)
        if chain is not None:
            self.chain, self.read = chain, stored.seq
            return [stored]
        if stored.entry.prev <= self.chain.last:
            # A fork's: it continues what the chain has already passed. A replay would skip it too.
            self.skipped += 1
            return []
        self.behind = max(self.behind, stored.seq)
        return []

    def _settle(self, stored: Stored) -> bool:
        if stored.seq <= self.read:
            return False
        self.read = stored.seq
        chain = link(self.chain, stored.seq, stored.entry)
        if chain is None:
            self.skipped += 1
            return False
        self.chain = chain
        return True
