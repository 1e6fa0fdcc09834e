"""The restores of the log from backups, and the cursors that they have made ambiguous (PROTOCOL R150)."""

import math
from collections.abc import Sequence

import msgspec

from tailrace.proto.ids import Seq

# A cursor is EPOCHS_AT * epoch + sequence: exact as a JavaScript number for epochs up to EPOCH_MAX.
EPOCHS_AT = 10**12
EPOCH_MAX = 9000


class Restore(msgspec.Struct, frozen=True):
    """A restore: the sequence of the last entry that the log had then, and the epoch that began."""

    epoch: int
    """From 1 on. Before the first restore, it is 0."""
    tail: Seq


class Restores:
    """All restores, oldest first."""

    def __init__(self, restores: Sequence[Restore] = ()) -> None:
        self.offset = EPOCHS_AT * restores[-1].epoch if restores else 0
        """A cursor is this number plus a sequence."""
        self._tails = [one.tail for one in restores]
        epochs = [0, *(one.epoch for one in restores)]
        self._limits = {epoch: min(self._tails[number:], default=math.inf) for number, epoch in enumerate(epochs)}

    def find(self, cursor: int) -> Seq | None:
        """Returns the sequence of the entry that a client has received with this cursor; None if a restore may have
        removed the entry."""
        if not self.offset:
            return Seq(cursor)
        epoch, seq = divmod(cursor, EPOCHS_AT)
        # An unknown epoch is of a log that was thrown away.
        return Seq(seq) if seq <= self._limits.get(epoch, -1) else None

    def find_last(self, cursor: int) -> Seq:
        """Returns the sequence of `find`, or the last one before it whose entry no restore has removed."""
        epoch, seq = divmod(cursor, EPOCHS_AT) if self.offset else (0, cursor)
        return Seq(int(min(seq, self._limits.get(epoch, 0))))

    def find_tail(self, request: Seq) -> Seq | None:
        """Returns the last entry that a turn had at a restore, or one after it; None for a turn that is newer."""
        return min((tail for tail in self._tails if tail >= request), default=None)
