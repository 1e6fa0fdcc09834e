"""FeedJoin: joins entries read from a turn's log with entries from its live feed. Pure.

The live feed is a hint: it misses, repeats and reorders entries (ADR 4). The log is the truth, but one read of it may
be behind. Therefore an entry from the feed is accepted only when it continues the chain. An entry that is further on
proves that one was missed: the log must then be read at least up to that entry.
"""

from collections.abc import Iterable

from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import BEFORE_FIRST


class FeedJoin:
    """One follower's view of one turn.

    `chain` is the chain of all accepted entries. The log has been read up to the sequence `read_upto`, and is known to
    have entries up to `stored_upto`. `skipped` counts stored entries that are not valid.

    `confirmed` is the part of the chain that is certainly valid. Each of its entries was read from the log, or came
    from the feed with the sequence directly after its predecessor's, so that it has no rival.
    """

    def __init__(self, chain: Chain = START, confirmed: Chain = START) -> None:
        self.chain = chain
        self.confirmed = confirmed
        self.read_upto = chain.last
        self.stored_upto = BEFORE_FIRST
        self.skipped = 0

    @property
    def has_gap(self) -> bool:
        """Whether the log must be read after `read_upto`."""
        return self.stored_upto > self.read_upto

    def add_read(self, entries: Iterable[StoredEntry]) -> list[StoredEntry]:
        """Adds entries read from the log after `read_upto`, in order and without a hole; returns the valid ones."""
        valid: list[StoredEntry] = []
        for stored in entries:
            if stored.seq <= self.read_upto:
                continue
            self.read_upto = stored.seq
            chain = link(self.chain, stored.seq, stored.entry)
            if chain is None:
                self.skipped += 1
                continue
            self.chain = chain
            valid.append(stored)
        return valid

    def add_live(self, stored: StoredEntry) -> bool:
        """Adds an entry from the live feed; returns whether it continues the chain.

        An entry that is further on is not kept: it may belong to a fork whose rival was missed. The log decides.
        """
        if stored.seq <= self.read_upto or self.chain.is_ended:
            return False
        if self.add_next(stored):
            return True
        if stored.entry.prev <= self.chain.last:
            # A fork's entry: it continues an entry that the chain has already passed. A replay would skip it, too.
            self.skipped += 1
            return False
        self.stored_upto = max(self.stored_upto, stored.seq)
        return False

    def add_next(self, stored: StoredEntry) -> bool:
        """Adds an entry from the live feed if it continues the chain; returns whether it does. Else changes nothing."""
        chain = link(self.chain, stored.seq, stored.entry) if stored.seq > self.read_upto else None
        if chain is None:
            return False
        if self.confirmed.last == self.chain.last == stored.seq - 1:
            self.confirmed = chain
        self.chain, self.read_upto = chain, stored.seq
        return True
