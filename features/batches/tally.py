"""BatchTally: the progress of a batch, as its runner keeps it."""

import asyncio

from tailrace.features.batches.records import EXPIRED_FAILURE
from tailrace.proto.chain import Chain
from tailrace.proto.entries import End, Progress


class BatchTally:
    """Counts a batch's ended turns, and keeps the id of its message batch. Each runner counts from zero.

    Progress is only appended once it is more than what the log holds.
    """

    def __init__(self, stored: Progress | None, of: int, *, was_begun: bool = False) -> None:
        """`was_begun`: whether the batch had a runner before."""
        self.set_stored(stored)
        self.message_batch = self._stored_id
        self.is_unclear = was_begun and self.message_batch is None
        """Whether there may be a message batch whose id is not known."""
        self._of = of
        self._done = self._failed = self._cancelled = self._expired = self._cost_nano_usd = 0
        self.changed = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """Whether all turns of the batch have ended, and the log has a progress entry that says so."""
        return self._stored == self._of == self._done + self._failed

    def add(self, end: End | None) -> None:
        """Counts a turn's end; None for a turn that was deleted."""
        is_done = end is not None and end.outcome == "completed"
        self._done += is_done
        self._failed += not is_done
        self._cancelled += end is not None and end.outcome == "cancelled"
        self._expired += end is not None and end.error is not None and end.error.code == EXPIRED_FAILURE
        self._cost_nano_usd += end.cost_nano_usd if end is not None else 0
        self.changed.set()

    def set_stored(self, stored: Progress | None) -> None:
        """Notes the last progress in the log."""
        self._stored = stored.done + stored.failed if stored else 0
        self._stored_id = stored.message_batch if stored else None

    def set_message_batch(self, message_batch: str) -> None:
        self.message_batch, self.is_unclear = message_batch, False
        self.changed.set()

    def next_progress(self, chain: Chain) -> Progress | None:
        """Returns the entry to append after `chain`; None if the log has this progress."""
        if self._done + self._failed <= self._stored and self.message_batch == self._stored_id:
            return None
        self._stored, self._stored_id = self._done + self._failed, self.message_batch
        return Progress(
            prev=chain.last,
            attempt=chain.attempt,
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
            expired=self._expired,
            of=self._of,
            cost_nano_usd=self._cost_nano_usd,
            message_batch=self.message_batch,
        )
