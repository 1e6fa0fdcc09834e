"""A follower of one turn: it replays, joins the live feed by the chain, and looks again when in doubt. Pure.

The feed is a hint and the log is the truth (PROTOCOL R16). What was taken from the feed is compared with the log
whenever that may tell otherwise.
"""

from contextlib import suppress

from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import Stored
from tailrace.proto.errors import CursorUnknown, LogUnavailable
from tailrace.proto.feed_join import Join
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.replay import STALE_WAIT_S, chain_at, confirm_known, is_valid, settled
from tailrace.proto.nats.step import Hear, Now, Page, Pause, Read, Steps
from tailrace.proto.subjects import TurnKey

# The feed can lose the last entry of a turn, and then nothing follows that would show the gap.
REREAD_S = 5.0

SKIPPED = "the cursor is an entry that was skipped: read the turn from its beginning"


class Follower:
    """The valid entries of a turn after a cursor, in order, each once, up to its end: `first`, then `more` and `more`.

    Whoever takes the steps has subscribed to the live feed before the first of them.
    """

    def __init__(self, key: TurnKey, after: Seq, now: Now) -> None:
        self._key = key
        self._after = after
        self._now = now
        self._join = Join()
        # What the log itself has said. The feed may lose an entry and tell of its rival, and nothing need follow.
        self._sure: Chain = START
        self._skipped = 0
        self._is_behind = False

    @property
    def is_ended(self) -> bool:
        return self._join.chain.is_ended

    def first(self) -> Steps[list[Stored]]:
        """What is stored already, maybe nothing. Raises TurnUnknown, LogUnavailable.

        CursorUnknown, too: the cursor is no valid entry of the turn.
        """
        chain = yield from chain_at(self._key, self._after, self._now)
        join = self._join = Join(chain)
        valid = yield from settled(self._key, join, self._now, is_first=self._after == BEFORE_FIRST)
        # A fork may go on to an end of its own, and skip nothing.
        is_doubtful = self._after and (join.skipped or join.chain.is_ended)
        if is_doubtful and not (yield from is_valid(self._key, self._after, START, self._now)):
            raise CursorUnknown(SKIPPED)
        self._sure, self._skipped = START if self._after else join.chain, join.skipped
        return valid

    def more(self) -> Steps[list[Stored]]:
        """What has come since, maybe nothing. Raises TurnUnknown when the turn was purged.

        CursorUnknown: the broker has stored a fork, and what was told last was not valid.
        """
        join, key, told = self._join, self._key, self._join.chain
        heard: list[Stored] = yield Hear(STALE_WAIT_S if self._is_behind else REREAD_S)
        valid = [stored for hint in heard for stored in join.heard(hint)]
        for stored in valid:
            if stored.entry.prev == self._sure.last == stored.seq - 1:
                # Nothing is stored between the two, and so no rival.
                self._sure = link(self._sure, stored.seq, stored.entry) or self._sure
        if self._is_behind or join.has_gap or not heard:
            valid += yield from self._page()
        if not heard and not valid and not self._is_behind:
            # As silent as a model that thinks is a turn that was purged, and whose end the feed has lost.
            with suppress(LogUnavailable):
                yield from confirm_known(key)
        if join.chain.last > self._sure.last and (not heard or join.skipped > self._skipped or join.chain.is_ended):
            while True:
                try:
                    return valid if (yield from self._is_sure()) else (yield from self._taken_back(told))
                except LogUnavailable:
                    # An end cannot be taken back, and nobody asks for what follows it: the log has to say so first.
                    if not join.chain.is_ended:
                        return valid
                    with suppress(LogUnavailable):
                        yield from confirm_known(key)
                    yield Pause(STALE_WAIT_S)
        return valid

    def _is_sure(self) -> Steps[bool]:
        """Whether the last that was taken is valid, by the log. Raises LogUnavailable."""
        join = self._join
        if not (yield from is_valid(self._key, join.chain.last, self._sure, self._now)):
            return False
        self._sure, self._skipped = join.chain, join.skipped
        return True

    def _taken_back(self, told: Chain) -> Steps[list[Stored]]:
        """Nothing: what was taken after `told` is a fork's. Raises CursorUnknown when so was that."""
        self._join, self._skipped, self._is_behind = Join(told), 0, True
        if told.last > self._sure.last:
            with suppress(LogUnavailable):
                if not (yield from self._is_sure()):
                    raise CursorUnknown(SKIPPED)
        return []

    def _page(self) -> Steps[list[Stored]]:
        """The valid entries of the next page. `_is_behind`: read again soon, there is more, or may be."""
        try:
            page: Page = yield Read(self._join.read)
        except LogUnavailable:
            # The connection has said so once; its thousand turns need not. Readers get heartbeats meanwhile.
            self._is_behind = True
            return []
        valid = self._join.replayed(page.entries)
        self._is_behind = self._join.has_gap or not page.is_last
        return valid
