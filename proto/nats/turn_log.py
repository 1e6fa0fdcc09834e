"""TurnLog: append to a turn, read it, follow it, purge it.

The rules are in append.py, replay.py and follower.py; the requests to JetStream are in jetstream_log.py.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime

from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, StoredEntry
from tailrace.proto.errors import LogError, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import append, replay
from tailrace.proto.nats.follower import REREAD_S, Follower
from tailrace.proto.nats.jetstream_log import JetStreamLog
from tailrace.proto.nats.log_server import PAGE_MAX, LiveFeed, PublishUnclear

# The wait after a failed read for an end. All turns of a process may wait for a leader at once.
REREAD_AFTER_ERROR_S = 1.0


class TurnLog(JetStreamLog):
    """The logs of all turns, shared by the tasks of a process. Each turn has at most one append at a time."""

    # The rules, which are functions of any LogServer.
    read_turn = replay.read_turn
    read_turn_direct = replay.read_turn_direct
    read_remains = replay.read_remains
    read_turn_upto = replay.read_turn_upto
    read_ended_turn = replay.read_ended_turn
    find_stored = replay.find_stored
    require_turn = replay.require_turn
    require_owned = replay.require_owned

    async def append(
        self,
        key: TurnKey,
        chain: Chain,
        entry: Entry,
        *,
        timeout_s: float = append.TIMEOUT_S,
        failed: PublishUnclear | None = None,
    ) -> Chain:
        """See append.append. If the turn was purged meanwhile, removes a large event that was stored for the entry."""
        try:
            return await append.append(self, key, chain, entry, timeout_s=timeout_s, failed=failed)
        except TurnUnknown:
            await self.forget_event(key, entry)
            raise

    async def read_entries(self, key: TurnKey, after: Seq = BEFORE_FIRST, limit: int = PAGE_MAX) -> list[StoredEntry]:
        """Returns the stored entries of a turn after `after`, at most `limit`, oldest first, valid or not (direct get).

        An empty list does not mean that the turn has ended, which only an End entry says, or that it is unknown, which
        one read never proves. Raises LogUnavailable.
        """
        return (await self.read(key, after, limit)).entries

    async def follow(self, key: TurnKey, after: Seq = BEFORE_FIRST) -> AsyncGenerator[list[StoredEntry], None]:
        """Yields the valid entries of a turn after `after`, in order, each once, as they are stored, up to its end.

        The first list has the entries already stored, maybe none. After the end there is no list. Raises TurnUnknown
        (later: the turn was purged), CursorUnknown when `after` is not a valid entry (later: NATS has stored a
        fork, and the last entries yielded belong to it), and LogUnavailable before the first list; after that it waits
        until the log is available again. Close the generator when done (`contextlib.aclosing`).
        """
        async with self.subscribe(key) as feed:
            follower = Follower(self, key, after, feed)
            valid = await follower.first()
            if valid or not follower.is_ended:
                yield valid
            while not follower.is_ended:
                if valid := await follower.next():
                    yield valid

    async def follow_into(
        self,
        key: TurnKey,
        after: Seq,
        receive: Callable[[list[StoredEntry]], None],
        subscription: AbstractAsyncContextManager[LiveFeed] | None = None,
    ) -> None:
        """Like `follow`, but calls `receive` with the entries, most of them as they arrive; returns at the turn's end.

        The first call has the entries already stored, maybe none. `receive` must return at once. A `subscription` that
        is older than the turn saves the first read of the log. Raises as `follow` does.
        """
        async with subscription or self.subscribe(key) as feed:
            follower = Follower(self, key, after, feed, receive)
            valid = await follower.first()
            if valid or not follower.is_ended:
                receive(valid)
            while not follower.is_ended:
                if valid := await follower.next():
                    receive(valid)

    async def has_turn(self, key: TurnKey) -> bool:
        """Returns whether the turn's `request` is stored now. Raises LogUnavailable."""
        try:
            await self.require_turn(key)
        except TurnUnknown:
            return False
        return True

    async def has_end(self, key: TurnKey) -> bool:
        """Returns whether the turn's `end` is stored now: False also after a purge, or beyond the retention.

        False is a hint: see LogServer.last_seq. Raises LogUnavailable.
        """
        return await self.last_seq(key, "end") != BEFORE_FIRST

    async def wait_for_end(self, key: TurnKey, ends: LiveFeed | None = None) -> datetime:
        """Waits until the live feed shows an `end` of the turn, or the log holds a valid one; returns its time.

        For a writer that must stop although it appends nothing. The log is read at the start, whenever the feed may
        have missed an entry, and every REREAD_S seconds, or sooner after a read that failed. With `ends`, a feed of the
        turn's ends that is subscribed already, the log is not read at the start. Raises LogUnavailable at the start;
        later, it waits until the log is available again.
        """
        wait_s = 0.0 if ends is None else REREAD_S
        async with self.subscribe(key, "end") if ends is None else nullcontext(ends) as feed:
            while True:
                if live := await feed.next(wait_s):
                    return live[-1].at
                try:
                    if await self.has_end(key) and (ended_at := (await self.read_turn(key)).ended_at) is not None:
                        return ended_at
                    wait_s = REREAD_S
                except LogError:
                    # Meanwhile the writer may pay for an answer that no reader gets.
                    wait_s = REREAD_AFTER_ERROR_S
