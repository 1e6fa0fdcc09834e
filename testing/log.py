"""MemoryLog: the turn log in memory, with the product's rules for appends, reads and followers."""

import asyncio
import math
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from tailrace.proto.chain import Chain
from tailrace.proto.entries import KINDS, Entry, Event, Request, StoredEntry
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.jetstream_log import ErasedEntries
from tailrace.proto.nats.log_server import (
    FIRST_EVENTS,
    PAGE_MAX,
    Count,
    EntryPage,
    LiveFeed,
    Published,
    PublishUnclear,
)

# Entries are dated from here on, by one second for each sequence.
BEGINNING = datetime(2026, 1, 1, 12, tzinfo=UTC)
T = TypeVar("T")
TYPES: dict[str, type] = {name: kind for kind, name in KINDS.items()}


class Subscription:
    """A live feed of a turn, for entries of one type, until it is closed. `owner` is free for subclasses."""

    def __init__(self, kind: Any, owner: object = None) -> None:
        self.kind = kind
        self.owner = owner
        self.feed = LiveFeed()
        self.is_closed = False

    def add(self, stored: StoredEntry) -> None:
        if not self.is_closed:
            self.feed.add(stored)


class TurnEntries:
    """The stored entries of one turn, valid or not, and the live feeds that receive new ones."""

    def __init__(self) -> None:
        self.stored: list[StoredEntry] = []
        self.tail: Seq = BEFORE_FIRST
        """The sequence of the last entry: the fence of the next append."""
        self.watches: list[Callable[[StoredEntry], object]] = []
        """Called with each new entry."""
        self.feeds: list[Subscription] = []
        self._seqs: list[Seq] = []

    def add(self, stored: StoredEntry) -> None:
        """Adds an entry, whatever its fence, and republishes it."""
        self.stored.append(stored)
        self._seqs.append(stored.seq)
        self.tail = stored.seq
        for watch in self.watches:
            watch(stored)
        self.republish(stored)

    def republish(self, stored: StoredEntry) -> None:
        """Passes the entry to the live feeds, in the event loop's next turn."""
        for subscription in self.feeds:
            if isinstance(stored.entry, subscription.kind):
                asyncio.get_running_loop().call_soon(subscription.add, stored)

    def page(self, after: Seq, limit: int, upto: int | None = None) -> EntryPage:
        """Returns the entries after `after`, at most `limit`, among the first `upto` (None: among all)."""
        first, last = bisect_right(self._seqs, after), len(self.stored) if upto is None else upto
        end = min(first + limit, last)
        return EntryPage(self.stored[first:end], end == last, last - end)

    def first_page(self, upto: int | None = None) -> EntryPage:
        """Returns the page of `LogServer.read_first`, among the first `upto` entries (None: among all)."""
        stored = self.stored[:upto]
        requests = [one for one in stored if isinstance(one.entry, Request)][:1]
        events = [one for one in stored if isinstance(one.entry, Event)][:FIRST_EVENTS]
        following = len(stored) - len(requests) - len(events)
        return EntryPage([*requests, *events], following == 0, following)

    def lose(self, number: int) -> StoredEntry:
        """Removes the entry at an index of `stored`, as nats-server does if its bytes have changed; returns it."""
        lost = self.stored.pop(number)
        del self._seqs[number]
        self.tail = self.stored[-1].seq if self.stored else BEFORE_FIRST
        return lost

    def clear(self) -> None:
        """Removes all entries."""
        self.stored.clear()
        self._seqs.clear()
        self.tail = BEFORE_FIRST

    @asynccontextmanager
    async def subscribe(self, kind: str = ">", owner: object = None) -> AsyncIterator[LiveFeed]:
        """See LogServer.subscribe."""
        subscription = Subscription(TYPES.get(kind, object), owner)
        self.feeds.append(subscription)
        try:
            yield subscription.feed
        finally:
            subscription.is_closed = True
            self.feeds.remove(subscription)


def _outcome(publishing: asyncio.Task[Seq]) -> Seq | Exception:
    try:
        return publishing.result()
    except Exception as error:  # noqa: BLE001  # whatever it is
        return error


class UnansweredConnection(Connection):
    """A connection that is up, and on which no process answers a query."""

    is_up = True

    def __init__(self) -> None: ...

    async def request(self, *_: Any, **__: Any) -> Message:
        raise LogUnavailable("no process answers")


class MemoryLog(TurnLog):
    """The logs of all turns in memory. The fence is checked as on a single server, so there are no forks."""

    connection = UnansweredConnection()

    def __init__(self) -> None:
        self.append_errors: list[BaseException] = []
        """Each is raised by one of the next appends, which stores nothing."""
        self.damaged: dict[TurnKey, bool] = {}
        """The turns of which the log has lost entries, as they were noted."""
        self._turns: dict[TurnKey, TurnEntries] = {}
        self._newest = BEFORE_FIRST
        self._new_turns: list[tuple[Tenant, Callable[[SessionId | None], None]]] = []

    @property
    def stored(self) -> dict[TurnKey, list[StoredEntry]]:
        """The entries of each turn that has any, in the order of their first entries."""
        return {key: turn.stored for key, turn in self._turns.items() if turn.stored}

    def turn_of(self, key: TurnKey) -> TurnEntries:
        """Returns the entries of a turn, which may have none."""
        return self._turns.setdefault(key, TurnEntries())

    def store(self, key: TurnKey, entry: Entry) -> StoredEntry:
        """Stores an entry, valid or not, as another process would."""
        seq = Seq(self._newest + 1)
        stored = StoredEntry(seq, BEGINNING + timedelta(seconds=seq), entry)
        self.load(key, [stored])
        return stored

    def load(self, key: TurnKey, stored: Iterable[StoredEntry]) -> None:
        """Stores entries that have sequences and times already."""
        for one in stored:
            if not (turn := self.turn_of(key)).stored:
                # Its place in `stored` is that of its first entry, not of the first read.
                self._turns[key] = self._turns.pop(key)
            self._newest = max(self._newest, one.seq)
            turn.add(one)
            if isinstance(one.entry, Request):
                for tenant, call in self._new_turns:
                    if tenant == key.tenant:
                        call(one.entry.session)

    async def append(self, key: TurnKey, chain: Chain, entry: Entry, **options: Any) -> Chain:
        """See TurnLog.append, and `append_errors`."""
        if self.append_errors:
            raise self.append_errors.pop(0)
        return await super().append(key, chain, entry, **options)

    def publish_soon(self, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        if self.append_errors:
            return False
        task = asyncio.ensure_future(self.publish(key, entry, fence))
        task.add_done_callback(lambda task: None if task.cancelled() else done(_outcome(task)))
        return True

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        if fence != self.turn_of(key).tail:
            raise PublishUnclear("10071")
        return self.store(key, entry).seq

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        return self.turn_of(key).page(after, limit)

    async def read_first(self, key: TurnKey) -> EntryPage:
        return self.turn_of(key).first_page()

    async def last_seq(self, key: TurnKey, kind: str | None = None) -> Seq:
        wanted: Any = object if kind is None else TYPES[kind]
        found = (one.seq for one in reversed(self.turn_of(key).stored) if isinstance(one.entry, wanted))
        return next(found, BEFORE_FIRST)

    async def has_entry(self, key: TurnKey, seq: Seq) -> bool:
        return any(one.seq == seq for one in self.turn_of(key).stored)

    async def count(self, key: TurnKey) -> Count:
        stored = self.turn_of(key).stored
        is_whole = bool(stored) and isinstance(stored[0].entry, Request)
        return Count(len(stored) if is_whole else 0, self._newest)

    def is_forkless(self, key: TurnKey, request: Seq) -> bool:  # noqa: ARG002  # of any turn
        return True

    async def note_damage(self, key: TurnKey, lost: str) -> None:  # noqa: ARG002
        self.damaged[key] = True

    async def damaged_turns(self) -> list[TurnKey]:
        return list(self.damaged)

    async def find_request_at(
        self, tenant: Tenant, seq: Seq, *, is_request: bool = False
    ) -> tuple[TurnKey, Request] | None:
        for key, stored in self.stored.items():
            request = stored[0].entry if stored else None
            is_there = key.tenant == tenant and any(one.seq == seq for one in (stored[:1] if is_request else stored))
            if is_there and isinstance(request, Request):
                return key, request
        return None

    async def find_turn(self, turn: TurnId) -> TurnKey | None:
        return next((key for key in self.stored if key.turn == turn), None)

    async def purge(self, key: TurnKey) -> None:
        self.turn_of(key).clear()

    async def erase(self, key: TurnKey, deadline: float = math.inf, *, purges_rest: bool = False) -> ErasedEntries:  # noqa: ARG002
        erased = len(self.turn_of(key).stored)
        await self.purge(key)
        return ErasedEntries(erased, is_gone=True)

    async def purge_events(self, key: TurnKey) -> None:
        """Does nothing: large events are in the log itself."""

    async def forget_event(self, key: TurnKey, entry: Entry) -> None:
        """Does nothing, as `purge_events`."""

    def remember_request(self, key: TurnKey, first: Sequence[StoredEntry]) -> None:
        """Does nothing: entries are in clear."""

    async def now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self._newest)

    async def newest_seq(self) -> Seq:
        return self._newest

    @asynccontextmanager
    async def subscribe(self, key: TurnKey, kind: str = ">") -> AsyncIterator[LiveFeed]:
        async with self.turn_of(key).subscribe(kind) as feed:
            yield feed

    @asynccontextmanager
    async def new_turns(self, tenant: Tenant, call: Callable[[SessionId | None], None]) -> AsyncIterator[None]:
        self._new_turns.append(one := (tenant, call))
        try:
            yield
        finally:
            self._new_turns.remove(one)
