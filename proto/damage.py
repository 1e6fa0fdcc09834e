"""Continuity: finds what the log has lost of a turn (PROTOCOL R144). Pure.

nats-server silently leaves out an entry whose checksum is wrong. Every entry names its predecessor, so a later entry
shows the loss. Retention, a purge and an erasure leave no such gap: they remove the oldest entries, all, or the last.
"""

from collections.abc import Iterable

from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import BEFORE_FIRST, Seq


class Continuity:
    """The chain of a turn's stored entries, and the predecessors that they name. Add all entries of the turn in order.

    A fork leaves no gap: the entries that its entries name are stored.
    """

    def __init__(self, stored: Iterable[StoredEntry] = ()) -> None:
        self.chain: Chain = START
        self._stored = set[Seq]()
        self._named = set[Seq]()
        self.add(stored)

    def add(self, stored: Iterable[StoredEntry]) -> None:
        """Adds the next entries, valid or not."""
        for one in stored:
            self._stored.add(one.seq)
            if one.entry.prev > BEFORE_FIRST:
                self._named.add(one.entry.prev)
            self.chain = link(self.chain, one.seq, one.entry) or self.chain

    @property
    def missing(self) -> list[Seq]:
        """The sequences of the entries that another entry names and that are not stored, in order."""
        return sorted(self._named - self._stored)
