"""Overflow: the webhooks of one tenant that wait in the log because their tenant uses its share. Pure."""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator

from tailrace.proto.ids import Seq


class Overflow:
    """The sequences of the ends, in order, 8 bytes each.

    Before `known_at`, a time of the event loop's clock, there may be others, which a previous process has received.
    Until `marked_until`, a process that starts after a kill knows of them for as long as their leases are extended.
    """

    def __init__(self) -> None:
        self.known_at = 0.0
        self.marked_until = 0.0
        self._seqs = array("Q")

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[Seq]:
        return map(Seq, self._seqs)

    def __contains__(self, seq: Seq) -> bool:
        place = bisect_left(self._seqs, seq)
        return place < len(self._seqs) and self._seqs[place] == seq

    def add(self, seq: Seq) -> None:
        """Adds a webhook that is not yet in it."""
        insort(self._seqs, seq)

    @property
    def first(self) -> Seq:
        """The oldest webhook. Raises IndexError if there is none."""
        return Seq(self._seqs[0])

    def remove_first(self) -> None:
        """Removes the oldest webhook. Raises IndexError if there is none."""
        del self._seqs[0]
