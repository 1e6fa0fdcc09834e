"""LogServer: the protocol between the turn log's rules (append, replay, follower) and the server that stores entries.

`JetStreamLog` implements it with JetStream. The schedule simulator implements it with a model that loses, repeats,
delays and forks (tests/schedules/server.py). Time is the event loop's: `loop.time()` and `asyncio.sleep`.
"""

import asyncio
from collections.abc import Callable, Container
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from tailrace.proto.entries import End, Entry, Request, StoredEntry
from tailrace.proto.ids import Seq, TurnKey

# The most entries that one read returns.
PAGE_MAX = 512
# Normally these are message_start, content_block_start and the first delta.
FIRST_EVENTS = 3


class PublishUnclear(Exception):
    """A publish has neither succeeded nor failed for certain: the entry may be stored.

    `is_answered`: a leader of the stream has answered. False: no answer came, and the stream may have no leader.
    """

    def __init__(self, message: str = "", *, is_answered: bool = True) -> None:
        super().__init__(message)
        self.is_answered = is_answered


Published = Callable[[Seq | Exception], None]
"""Is called with the sequence of a published entry, or with PublishUnclear or LogFull."""


class EntryPage(NamedTuple):
    """The entries of one read, oldest first, valid or not; `is_last`: none followed at the time of the read."""

    entries: list[StoredEntry]
    is_last: bool
    following: int = 0
    """How many entries followed, if the server counts them."""


class Count(NamedTuple):
    """The number of stored entries of a turn, valid or not. The number includes all entries up to the sequence
    `upto`."""

    entries: int
    upto: Seq


class LiveFeed:
    """The republished entries of one turn that have arrived and were not taken yet. A hint: it may miss entries."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entries: list[StoredEntry] = []
        self._may_have_missed = False
        self._waiting: asyncio.Future[None] | None = None
        """Ends the wait of the call of `next`."""
        self._accept: Callable[[StoredEntry], bool] | None = None
        """The `accept` of the call of `next` that waits."""
        self._silent_since = 0.0

    def add(self, stored: StoredEntry) -> None:
        """Adds an entry that has arrived: to `accept` of the waiting `next`, or else to the result of `next`."""
        if self._accept is not None and self._accept(stored):
            self._silent_since = self._loop.time()
            return
        self._entries.append(stored)
        self._wake()

    @property
    def has_whole_turn(self) -> bool:
        """Whether the entries that have arrived begin with the request: the subscription is older than the turn."""
        return bool(self._entries) and isinstance(self._entries[0].entry, Request)

    def reset(self) -> None:
        """Drops what has arrived, because entries may be missing: `next` then returns an empty list at once."""
        self._entries.clear()
        self._may_have_missed = True
        self._wake()

    async def next(self, timeout_s: float, accept: Callable[[StoredEntry], bool] | None = None) -> list[StoredEntry]:
        """Returns the entries that have arrived; an empty list after `timeout_s` without any, and after `reset`.

        An empty list means "read the log". An end is left to the next call, so that the entries before it do not wait
        until the log confirms the end. While this call waits, `accept` is called with each entry that arrives; an entry
        for which it returns True is not returned.
        """
        if not self._entries and not self._may_have_missed:
            self._silent_since = self._loop.time()
            self._timer = self._loop.call_later(timeout_s, self._end_after_silence, timeout_s)
            self._accept, self._waiting = accept, self._loop.create_future()
            try:
                await self._waiting
            finally:
                # `accept` may refer to this feed. Such a cycle would keep the turn in memory until a garbage
                # collection.
                self._accept = self._waiting = None
                self._timer.cancel()
        arrived: list[StoredEntry] = []
        if self._may_have_missed:
            # The next call returns the entries that have arrived since.
            self._may_have_missed = False
        else:
            before_end = next((i for i, stored in enumerate(self._entries) if isinstance(stored.entry, End)), 0)
            count = before_end or len(self._entries)
            arrived, self._entries = self._entries[:count], self._entries[count:]
        return arrived

    def _wake(self) -> None:
        # The entries that arrive from now on follow this one: they are not accepted before it.
        self._accept = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _end_after_silence(self, timeout_s: float) -> None:
        """Ends the wait if nothing has arrived for `timeout_s`; otherwise schedules itself again."""
        ends_at = self._silent_since + timeout_s
        if self._loop.time() >= ends_at:
            self._wake()
        else:
            self._timer = self._loop.call_at(ends_at, self._end_after_silence, timeout_s)


class LogServer(Protocol):
    """The server that stores the logs of all turns."""

    @property
    def damaged(self) -> Container[TurnKey]:
        """The turns of which this process knows that the log has lost entries."""
        ...

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        """Stores `entry` if `fence` is the sequence of the turn's last entry; returns the new entry's sequence.

        Raises PublishUnclear when the entry may be stored or not, LogFull, EntryTooLarge.
        """
        ...

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        """Returns the entries after `after`, at most `limit`, decrypted. The server that answers may be behind (R14).

        Raises LogUnavailable.
        """
        ...

    async def read_first(self, key: TurnKey) -> EntryPage:
        """Returns the turn's `request` and its first events, at most FIRST_EVENTS, and counts all other entries.

        The server may be behind, as for `read`. Raises LogUnavailable.
        """
        ...

    async def last_seq(self, key: TurnKey, kind: str | None = None) -> Seq:
        """Returns the sequence of the turn's last entry (of `kind`) from the stream's leader; BEFORE_FIRST: none.

        A leader that was frozen and has just woken up may answer from the past. Raises LogUnavailable.
        """
        ...

    async def has_entry(self, key: TurnKey, seq: Seq) -> bool:
        """Asks the stream's leader whether the turn has an entry at `seq`. May be as old as `last_seq`.

        Raises LogUnavailable.
        """
        ...

    async def count(self, key: TurnKey) -> Count:
        """Asks the stream's leader how many entries the turn has; 0 if some were removed. Raises LogUnavailable.

        A leader that was frozen and has just woken up may answer from the past: see `upto`.
        """
        ...

    def is_forkless(self, key: TurnKey, request: Seq) -> bool:
        """Returns whether the log has no fork of the turn whose request is at `request` (PROTOCOL R80).

        True if the log is known to have had one replica since before that request. A single server checks the fence as
        it stores. False means that it is not known.
        """
        ...

    async def has_recorded_end(self, key: TurnKey) -> bool | None:
        """Asks persistence whether the database has the turn's end; None in a process that does not ask.

        False also if persistence does not answer.
        """
        ...

    async def note_damage(self, key: TurnKey, lost: str) -> None:
        """Logs and notes, once, that the log has lost entries of the turn (PROTOCOL R144). Raises nothing."""
        ...

    async def purge(self, key: TurnKey) -> None:
        """Removes all entries of a turn. Raises LogUnavailable; some entries may then be gone."""
        ...

    def subscribe(self, key: TurnKey, kind: str = ">") -> AbstractAsyncContextManager[LiveFeed]:
        """Subscribes to the turn's live feed (entries of `kind`; default: all) until the context is left.

        Raises LogUnavailable on entry.
        """
        ...
