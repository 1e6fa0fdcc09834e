"""Follower: replays a turn, joins the live feed by the chain, and rereads the log when the feed may be wrong.

The feed is a hint and the log is the truth (PROTOCOL R16). Entries accepted from the feed are compared with the log
whenever the feed may have lost an entry and shown its rival.
"""

import asyncio
from contextlib import suppress

from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import Stored
from tailrace.proto.errors import CursorUnknown, LogUnavailable
from tailrace.proto.feed_join import FeedJoin
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.log_server import LiveFeed, LogServer
from tailrace.proto.nats.replay import STALE_WAIT_S, is_valid, read_chain, read_valid, require_turn
from tailrace.proto.subjects import TurnKey

# The feed can lose a turn's last entry, and nothing follows it that would show the gap.
REREAD_S = 5.0

CURSOR_SKIPPED = "the cursor is an entry that is not valid: read the turn from its beginning"


class Follower:
    """The valid entries of a turn after a cursor, in order, each once, up to its end.

    Call `first` once, then `next` until `is_ended`. `feed` must be subscribed before the follower is made.
    """

    def __init__(self, server: LogServer, key: TurnKey, after: Seq, feed: LiveFeed) -> None:
        self._server = server
        self._key = key
        self._after = after
        self._feed = feed
        self._join = FeedJoin()
        # The chain as far as the log itself has confirmed it. The feed may lose an entry and show its rival, and no
        # entry need follow.
        self._confirmed: Chain = START
        self._confirmed_skipped = 0
        self._is_behind = False

    @property
    def is_ended(self) -> bool:
        return self._join.chain.is_ended

    async def first(self) -> list[Stored]:
        """Returns the entries that are already stored, maybe none.

        Raises TurnUnknown, LogUnavailable, and CursorUnknown when the cursor is not a valid entry of the turn.
        """
        chain = await read_chain(self._server, self._key, self._after)
        join = self._join = FeedJoin(chain)
        valid = await read_valid(self._server, self._key, join, is_first=self._after == BEFORE_FIRST)
        # A fork may continue to an end of its own without a skipped entry.
        may_be_fork = self._after and (join.skipped or join.chain.is_ended)
        if may_be_fork and not await is_valid(self._server, self._key, self._after, START):
            raise CursorUnknown(CURSOR_SKIPPED)
        self._confirmed, self._confirmed_skipped = START if self._after else join.chain, join.skipped
        return valid

    async def next(self) -> list[Stored]:
        """Returns the entries that were stored since, maybe none, after a wait for the live feed.

        Raises TurnUnknown when the turn was purged, and CursorUnknown when the last entries returned were a fork's.
        """
        join, before = self._join, self._join.chain
        live = await self._feed.next(STALE_WAIT_S if self._is_behind else REREAD_S)
        valid = [stored for stored in live if join.add_live(stored)]
        for stored in valid:
            if stored.entry.prev == self._confirmed.last == stored.seq - 1:
                # Nothing is stored between the two, so there is no rival.
                self._confirmed = link(self._confirmed, stored.seq, stored.entry) or self._confirmed
        if self._is_behind or join.has_gap or not live:
            valid += await self._read_page()
        if not live and not valid and not self._is_behind:
            # Silence may mean that the turn was purged, and that the feed has lost its end.
            with suppress(LogUnavailable):
                await require_turn(self._server, self._key)
        may_be_fork = not live or join.skipped > self._confirmed_skipped or join.chain.is_ended
        if join.chain.last > self._confirmed.last and may_be_fork and not await self._is_confirmed():
            return await self._go_back(before)
        return valid

    async def _is_confirmed(self) -> bool:
        """Reads whether the chain is valid by the log. While the log cannot be read: True, but an end has to wait."""
        while True:
            try:
                return await self._confirm()
            except LogUnavailable:
                # A reader stops at an end and never learns that it was a fork's. So the log must confirm it first.
                if not self._join.chain.is_ended:
                    return True
                with suppress(LogUnavailable):
                    await require_turn(self._server, self._key)
                await asyncio.sleep(STALE_WAIT_S)

    async def _confirm(self) -> bool:
        """Reads whether the last entry of the chain is valid by the log. Raises LogUnavailable."""
        join = self._join
        if not await is_valid(self._server, self._key, join.chain.last, self._confirmed):
            return False
        self._confirmed, self._confirmed_skipped = join.chain, join.skipped
        return True

    async def _go_back(self, returned: Chain) -> list[Stored]:
        """Returns to the chain of the entries already returned, because those after it are a fork's; returns none.

        Raises CursorUnknown when the entries already returned are a fork's, too.
        """
        self._join, self._confirmed_skipped, self._is_behind = FeedJoin(returned), 0, True
        if returned.last > self._confirmed.last:
            with suppress(LogUnavailable):
                if not await self._confirm():
                    raise CursorUnknown(CURSOR_SKIPPED)
        return []

    async def _read_page(self) -> list[Stored]:
        """Returns the valid entries of the next page. Sets `_is_behind` when the log must be read again soon."""
        try:
            page = await self._server.read(self._key, self._join.read_upto)
        except LogUnavailable:
            # The connection logs this once; a thousand followers need not. Readers receive heartbeats meanwhile.
            self._is_behind = True
            return []
        valid = self._join.add_read(page.entries)
        self._is_behind = self._join.has_gap or not page.is_last
        return valid
