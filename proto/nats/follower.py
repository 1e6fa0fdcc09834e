"""Follower: replays a turn, joins the live feed by the chain, and rereads the log when the feed may be wrong.

The feed is a hint and the log is the truth (PROTOCOL R16). The feed can lose a valid entry and deliver its rival, an
entry of a fork with the same predecessor. Whenever that may have happened, the last entry accepted from the feed is
looked up in the log.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import Counter

from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import End, StoredEntry
from tailrace.proto.errors import CursorUnknown, LogUnavailable
from tailrace.proto.feed_join import FeedJoin
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats.log_server import LiveFeed, LogServer
from tailrace.proto.nats.replay import (
    STALE_WAIT_S,
    is_stored_chain,
    is_valid,
    read_from,
    read_valid,
    require_end_not_lost,
    require_turn,
    require_whole,
)

# How long the feed may be silent before the log is read. The feed can lose a turn's last entry; no later entry would
# show that gap.
REREAD_S = 5.0

# After so many silences, and then at every SILENCES-th, the follower asks whether the log has lost the turn's end.
FIRST_SILENCES = 2
SILENCES = 10

GAPS = Counter("tailrace_feed_gaps_filled_total", "Reads of the log that filled a gap of a turn's live feed")

CURSOR_SKIPPED = "the cursor is an entry that is not valid: read the turn from its beginning"


class Follower:
    """Returns the valid entries of a turn after a cursor, in order, each once, up to its end.

    Call `first` once, then `next` until `is_ended`. `feed` must be subscribed before the follower is made. With
    `receive`, most entries of the feed are passed to it as they arrive, and `next` does not return them. This saves a
    switch to the task that waits in `next`, which took a seventh of the gateway's time.
    """

    def __init__(
        self,
        server: LogServer,
        key: TurnKey,
        after: Seq,
        feed: LiveFeed,
        receive: Callable[[list[StoredEntry]], None] | None = None,
    ) -> None:
        self._server = server
        self._key = key
        self._after = after
        self._feed = feed
        self._join = FeedJoin()
        # The number of skipped entries when the log last confirmed the chain.
        self._confirmed_skipped = 0
        # How often in a row the feed was silent, and up to which entry the log was read then.
        self._silences, self._silent_upto = 0, BEFORE_FIRST
        # Whether the log must be read again soon, even if the feed delivers nothing.
        self._must_read = False
        self._receive = receive
        self._error: Exception | None = None
        """The error of `receive` for an entry that was passed to it as it arrived. `next` raises it."""

    @property
    def is_ended(self) -> bool:
        """Whether the follower has accepted the turn's `end`: no entry comes after it."""
        return self._join.chain.is_ended

    async def first(self) -> list[StoredEntry]:
        """Returns the valid entries after the cursor that are already stored, maybe none.

        Raises TurnUnknown, LogUnavailable, and CursorUnknown when the cursor is not a valid entry of the turn.
        """
        if self._after == BEFORE_FIRST and self._feed.has_whole_turn:
            return await self.next()
        chain, page = await read_from(self._server, self._key, self._after)
        join = self._join = FeedJoin(chain)
        valid = await read_valid(self._server, self._key, join, page, is_first=self._after == BEFORE_FIRST)
        # Two signs that the cursor is an entry of a fork: entries after it were skipped (they are the valid ones), or
        # there is an end, which may be the fork's own.
        may_be_fork = self._after and (join.skipped or join.chain.is_ended)
        if may_be_fork and not await is_valid(self._server, self._key, self._after, START):
            raise CursorUnknown(CURSOR_SKIPPED)
        # The entries before a cursor were not read: the first confirmation has to start at the turn's beginning.
        join.confirmed = START if self._after else join.chain
        self._confirmed_skipped = join.skipped
        if not join.chain.is_ended:
            if join.skipped:
                await require_whole(self._server, self._key)
            elif self._key in self._server.damaged:
                await require_end_not_lost(self._server, self._key)
        return valid

    async def next(self) -> list[StoredEntry]:
        """Waits for the live feed, at most REREAD_S seconds; returns the new valid entries, maybe none.

        Raises TurnUnknown when the turn was purged, CursorUnknown when entries returned earlier belong to a fork, and
        the error of `receive`.
        """
        accept = None if self._receive is None else self._accept
        live = await self._feed.next(STALE_WAIT_S if self._must_read else REREAD_S, accept)
        if self._error is not None:
            raise self._error
        join, before = self._join, self._join.chain
        valid = [stored for stored in live if join.add_live(stored)]
        if self._must_read or join.has_gap or not live:
            missed = await self._read_page()
            GAPS.inc(bool(missed))
            valid += missed
        if not live and not valid and not self._must_read:
            # Silence may mean that the turn was purged and the feed missed it: check that it exists.
            with suppress(LogUnavailable):
                await require_turn(self._server, self._key)
                await self._require_undamaged()
        # Three signs that entries from the feed may be a fork's: silence after them, a skipped entry, and an end, after
        # which no entry would show the fork. A skipped entry may also show that the log has lost one (R144).
        has_skipped = join.skipped > self._confirmed_skipped
        may_be_fork = not live or has_skipped or join.chain.is_ended
        certain = BEFORE_FIRST if has_skipped else join.confirmed.last
        if join.chain.last > certain and may_be_fork and not await self._confirm_or_wait():
            return await self._roll_back(before)
        return valid

    async def _require_undamaged(self) -> None:
        """Raises TurnDamaged if the log has lost the turn's end, or an entry before it; asks now and then.

        Raises LogUnavailable.
        """
        self._silences = self._silences + 1 if self._join.read_upto == self._silent_upto else 1
        self._silent_upto = self._join.read_upto
        if self._silences % SILENCES == FIRST_SILENCES:
            require = require_whole if self._join.skipped else require_end_not_lost
            await require(self._server, self._key)

    def _accept(self, stored: StoredEntry) -> bool:
        """Passes an entry to `receive` if it continues the chain, and neither a read nor a confirmation is due."""
        join = self._join
        if (
            self._must_read
            or join.skipped > self._confirmed_skipped
            or self._error is not None
            or self._receive is None
            or type(stored.entry) is End
            or not join.add_next(stored)
        ):
            return False
        try:
            self._receive([stored])
        except Exception as error:  # noqa: BLE001  # nats-py would only report it, and the entry would be lost
            self._error = error
            self._feed.reset()
        return True

    async def _confirm_or_wait(self) -> bool:
        """Like `_confirm`, but never raises LogUnavailable.

        While the log is unavailable, returns True; but if the chain has an end, retries until the log answers. Raises
        TurnUnknown when the turn was purged meanwhile.
        """
        while True:
            try:
                return await self._confirm()
            except LogUnavailable:
                # A reader stops at an end and would never learn that the end is a fork's: do not return it unconfirmed.
                if not self._join.chain.is_ended:
                    return True
                with suppress(LogUnavailable):
                    await require_turn(self._server, self._key)
                await asyncio.sleep(STALE_WAIT_S)

    async def _confirm(self) -> bool:
        """Compares the chain with the log; returns whether it is valid. A valid chain is marked as confirmed.

        Raises LogUnavailable.
        """
        join = self._join
        start = None if join.skipped > self._confirmed_skipped else join.confirmed
        if not await is_stored_chain(self._server, self._key, join.chain, start):
            return False
        join.confirmed, self._confirmed_skipped = join.chain, join.skipped
        return True

    async def _roll_back(self, before: Chain) -> list[StoredEntry]:
        """Sets the chain back to `before`, the chain before this call of `next`, and drops the fork's entries after it.

        The result is an empty list. Raises CursorUnknown when `before`, which the client has received, is a fork's too.
        """
        self._join = FeedJoin(before)
        self._confirmed_skipped, self._must_read = 0, True
        if before.last > BEFORE_FIRST:
            with suppress(LogUnavailable):
                if not await is_valid(self._server, self._key, before.last, START):
                    raise CursorUnknown(CURSOR_SKIPPED)
        return []

    async def _read_page(self) -> list[StoredEntry]:
        """Returns the valid entries of the next page. Sets `_must_read`: whether another page must be read."""
        try:
            page = await self._server.read(self._key, self._join.read_upto)
        except LogUnavailable:
            # The connection logs the outage once for all followers. Readers receive heartbeats meanwhile.
            self._must_read = True
            return []
        valid = self._join.add_read(page.entries)
        self._must_read = self._join.has_gap or not page.is_last
        return valid
