"""TurnLog: append to a turn, read it, follow it, purge it.

The rules are in append.py, replay.py and follower.py; the requests to JetStream are in jetstream_log.py.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from typing import TypeVar

from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Request, StoredEntry
from tailrace.proto.errors import LogError, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import append, replay
from tailrace.proto.nats.follower import REREAD_S, Follower
from tailrace.proto.nats.jetstream_log import JetStreamLog
from tailrace.proto.nats.log_server import PAGE_MAX, LiveFeed, PublishUnclear
from tailrace.proto.ownership import Scope, ScopedKey, may_use, owner_of
from tailrace.proto.restores import Restores

T = TypeVar("T")

# The wait after a failed read for an end. All turns of a process may wait for a leader at once.
REREAD_AFTER_ERROR_S = 1.0


class TurnLog(JetStreamLog):
    """The logs of all turns, shared by the tasks of a process. Each turn has at most one append at a time."""

    restores = Restores()
    """The restores of the log, which a gateway reads at its start."""
    # Hints about a turn without its content: functions of any LogServer.
    find_stored = replay.find_stored
    require_turn = replay.require_turn

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

    # Each read of a turn's content takes a scope, and raises TurnUnknown for a turn that the scope does not show.

    async def read_turn(self, key: ScopedKey, known: Turn = EMPTY_TURN) -> Turn:
        """See replay.read_turn."""
        return await replay.read_turn(self, await self._open(key), known)

    async def read_turn_direct(self, key: ScopedKey, known: Turn = EMPTY_TURN) -> Turn:
        """See replay.read_turn_direct."""
        return await replay.read_turn_direct(self, await self._open(key), known)

    async def read_remains(self, key: ScopedKey) -> Turn:
        """See replay.read_remains."""
        return await replay.read_remains(self, await self._open(key))

    async def read_turn_upto(self, key: ScopedKey, seq: Seq, enough: int | None = None) -> Turn:
        """See replay.read_turn_upto."""
        return await replay.read_turn_upto(self, await self._open(key), seq, enough)

    async def read_ended_turn(self, key: ScopedKey, end: StoredEntry) -> Turn:
        """See replay.read_ended_turn."""
        return await replay.read_ended_turn(self, await self._open(key), end)

    async def read_entries(self, key: ScopedKey, after: Seq = BEFORE_FIRST, limit: int = PAGE_MAX) -> list[StoredEntry]:
        """Returns the stored entries of a turn after `after`, at most `limit`, oldest first, valid or not (direct get).

        An empty list does not mean that the turn has ended, which only an End entry says, or that it is unknown, which
        one read never proves. It is also the result for a turn that the scope does not show. Raises LogUnavailable.
        """
        try:
            plain = await self._open(key)
        except TurnUnknown:
            return []
        return (await self.read(plain, after, limit)).entries

    async def follow(self, key: ScopedKey, after: Seq = BEFORE_FIRST) -> AsyncGenerator[list[StoredEntry], None]:
        """Yields the valid entries of a turn after `after`, in order, each once, as they are stored, up to its end.

        The first list has the entries already stored, maybe none. After the end there is no list. Raises TurnUnknown
        (later: the turn was purged), CursorUnknown when `after` is not a valid entry (later: NATS has stored a
        fork, and the last entries yielded belong to it), and LogUnavailable before the first list; after that it waits
        until the log is available again. Close the generator when done (`contextlib.aclosing`).
        """
        plain = await self._open(key)
        async with self.subscribe(plain) as feed:
            follower = Follower(self, plain, after, feed)
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

        Without a scope: for a feed that several readers share, each of which has called `require_owned`.

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

    async def has_turn(self, key: ScopedKey) -> bool:
        """Returns whether the turn's `request` is stored now, and the scope shows the turn. Raises LogUnavailable."""
        try:
            await self.require_turn(await self._open(key))
        except TurnUnknown:
            return False
        return True

    async def find_turn_at(
        self,
        scope: Scope,
        seq: Seq,
        match: Callable[[ScopedKey, Request], Awaitable[T | None]],
        *,
        is_request: bool = False,
    ) -> T | None:
        """Returns what `match` returns for the turn of the entry at `seq`; None if the scope shows no such turn.

        With `is_request`, the entry must be the turn's request: for many sequences, since a request may have megabytes.

        A sequence is a number that a client can guess (PROTOCOL R147). `match` compares the turn with the session, turn
        or body that the request names, and returns None for another one. Both another one and a missing turn are looked
        up twice, and take the same time. Raises LogUnavailable.
        """

        async def find() -> T | None:
            found = await self.find_request_at(scope.tenant, seq, is_request=is_request)
            if found is None or not may_use(scope, owner_of(found[1])):
                return None
            return await match(ScopedKey(scope, found[0].turn), found[1])

        return await replay.ask_twice(find)

    async def require_owned(self, key: ScopedKey) -> None:
        """Raises TurnUnknown if the log has no such turn, or the scope does not show it; LogUnavailable."""
        plain = key.plain
        # A read that is behind finds nothing, which proves nothing.
        while not (found := (await self.read(plain, BEFORE_FIRST, 1)).entries):
            await self.require_turn(plain)
        if not key.scope.is_whole_tenant:
            request = found[0].entry
            if not isinstance(request, Request) or not may_use(key.scope, owner_of(request)):
                raise TurnUnknown(f"the log has no turn {key.turn}")

    async def _open(self, key: ScopedKey) -> TurnKey:
        """Returns the name of the turn, for the reads of LogServer. Raises as `require_owned` for a private user."""
        if not key.scope.is_whole_tenant:
            await self.require_owned(key)
        return key.plain

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
                    if await self.has_end(key) and (ended_at := (await replay.read_turn(self, key)).ended_at):
                        return ended_at
                    wait_s = REREAD_S
                except LogError:
                    # Meanwhile the writer may pay for an answer that no reader gets.
                    wait_s = REREAD_AFTER_ERROR_S
