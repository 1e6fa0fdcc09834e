"""JetStreamLog: the LogServer that stores entries in the JetStream stream TURNS.

Its `publish` is the only function that publishes entries of a turn. It sets subject and fence together (PROTOCOL R8).
"""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from functools import lru_cache, partial
from typing import Generic, NamedTuple, TypeVar

import msgspec
import nats.errors
import structlog

from tailrace.proto import entries, subjects
from tailrace.proto.chain import START, link
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Entry, Event, Request, StoredEntry, Unreadable
from tailrace.proto.entry_encryption import EncryptionKeys, is_encrypted
from tailrace.proto.errors import EntryTooLarge, LogFull, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.client import Message, Receive, find_header
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.event_blobs import INLINE_BYTES_MAX, EventBlobs, is_stub
from tailrace.proto.nats.log_server import (
    FIRST_EVENTS,
    PAGE_MAX,
    Count,
    EntryPage,
    LiveFeed,
    Published,
    PublishUnclear,
)
from tailrace.proto.nats.pub_ack import Ack
from tailrace.proto.nats.replay import ask_twice
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.nats.tombstones import Tombstones
from tailrace.proto.subjects import STREAM

T = TypeVar("T")

logger = structlog.get_logger()

FENCE_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
# The header block of an append: the fence, and its subject.
HEADERS = f"NATS/1.0\r\n{pub_ack.FENCE}: %d\r\n{FENCE_SUBJECT}: %b\r\n\r\n".encode()

# What nats-server appends to the headers of an entry, in its order.
PLACE = re.compile(rb"\r\nNats-Subject: ([^\r]*)\r\nNats-Sequence: (\d+)\r\nNats-Time-Stamp: ([^\r]*)\r\n")

PUBLISH_TIMEOUT_S = 2.0
PURGE_TIMEOUT_S = 10.0
NOTE_TIMEOUT_S = 2.0
# Without an answer the entries are read, also from a server that does not lead the stream.
COUNT_TIMEOUT_S = 0.25


class ErasedEntries(NamedTuple):
    """The result of `erase`: how many entries can never be read again, and whether the turn has none left."""

    entries: int
    is_gone: bool


class JetStreamLog:
    """A LogServer on one NATS connection. Its methods are described in LogServer."""

    ask_recorder: Callable[[TurnKey], Awaitable[bool]] | None = None
    """Asks persistence whether the database has the turn's end; None in processes that do not ask."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._leader = Leader(connection, STREAM)
        self._reads = DirectReader(connection)
        self._keys = EncryptionKeys()
        self._event_blobs = EventBlobs(connection, self._keys)
        self._erasing = asyncio.Lock()
        self.damaged: dict[TurnKey, bool] = {}
        """The turns of which this process has found that entries are missing; whether there is nothing left to note."""

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        """See LogServer.publish. NATS receives the entry encrypted if the turn's request has a key (PROTOCOL R113).

        Raises PublishUnclear, LogFull, EntryTooLarge.
        """
        turn = subjects.entries(key)
        subject = f"{turn[:-1]}{entries.KINDS[type(entry)]}"
        if isinstance(entry, Request):
            payload = entries.encode(entry)
        else:
            if not self._keys.has_valid(turn):
                await self._read_key_to_publish(key)
            try:
                if isinstance(entry, Event) and len(entry.event) > INLINE_BYTES_MAX:
                    entry = await self._event_blobs.put(key, entry)
                payload = self._keys.encrypt(turn, subject, entries.encode(entry))
            except LogUnavailable as error:
                raise PublishUnclear(str(error)) from error
        try:
            stored = await self.connection.store(
                subject, payload, timeout_s=PUBLISH_TIMEOUT_S, fence=fence, headers={FENCE_SUBJECT: turn}
            )
        except LogUnavailable as error:
            raise PublishUnclear(str(error), is_answered=False) from error
        if stored.error is not None:
            raise _failure(stored)
        return stored.seq

    def publish_soon(self, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        """Like `publish`, but returns at once, and calls `done` later. False: nothing was sent; use `publish`."""
        turn, subject, encoded_turn, encoded_subject = _subjects(key)
        if len(entry.event) > INLINE_BYTES_MAX:
            return False
        try:
            payload = self._keys.encrypt(turn, subject, entries.encode(entry))
        except LogUnavailable:
            # The key must be read first.
            return False

        def settle(message: Message | None) -> None:
            outcome: Seq | Exception
            try:
                ack = None if message is None else pub_ack.decode(message.data)
                outcome = _failure(ack) if ack is None or ack.error is not None else ack.seq
            except Exception as error:  # noqa: BLE001  # without memory, or an answer that cannot be read
                outcome = error
            done(outcome)

        headers = HEADERS % (fence, encoded_turn)
        try:
            self.connection.client.ask_directly(encoded_subject, headers, payload, PUBLISH_TIMEOUT_S, settle)
        except (nats.errors.Error, EntryTooLarge):
            return False
        return True

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        """See LogServer.read. Raises LogUnavailable."""
        turn = subjects.entries(key)
        page = await self._reads.page(turn, Seq(after + 1), limit)
        found = self._decode_all(page.messages, turn)
        if after == BEFORE_FIRST:
            self.remember_request(key, found)
        if any(isinstance(stored.entry, Unreadable) for stored in found) and any(
            is_encrypted(message.data) for message in page.messages
        ):
            # The page does not begin with the request, which has the key.
            await self._read_key(key)
            found = self._decode_all(page.messages, turn)
        whole = await self._event_blobs.complete(key, found) if any(map(is_stub, found)) else found
        return EntryPage(whole, page.is_last and len(whole) == len(found), page.following)

    async def read_first(self, key: TurnKey) -> EntryPage:
        """See LogServer.read_first. Raises LogUnavailable.

        While the turn has waited, thousands of entries of other turns may have been stored. For a read of all kinds of
        entries, nats-server compares the subject of each of them (`firstMatching` in filestore.go): 4 ms. For a read of
        one kind, it finds the first entry in its index. Each entry that it returns waits for an append (`LoadNextMsg`),
        so they are few.
        """
        first, events = await asyncio.gather(
            self.read(key, BEFORE_FIRST, 1), self._reads.page(subjects.entry(key, "event"), Seq(1), FIRST_EVENTS)
        )
        found = self._decode_all(events.messages, subjects.entries(key))
        if any(map(is_stub, found)):
            found = await self._event_blobs.complete(key, found)
        following = first.following - len(found)
        return EntryPage([*first.entries, *found], following == 0, following)

    async def last_seq(self, key: TurnKey, kind: str | None = None) -> Seq:
        """See LogServer.last_seq. Raises LogUnavailable."""
        found = await self._leader.last(subjects.entry(key, kind) if kind else subjects.entries(key))
        return BEFORE_FIRST if found is None else found.seq

    async def has_entry(self, key: TurnKey, seq: Seq) -> bool:
        """See LogServer.has_entry. Raises LogUnavailable."""
        found = await self._leader.first(subjects.entries(key), seq)
        return found is not None and found.seq == seq

    async def find_request_at(
        self, tenant: Tenant, seq: Seq, *, is_request: bool = False
    ) -> tuple[TurnKey, Request] | None:
        """Returns the turn of the tenant's entry at `seq`, and its request; None if the stream's leader has none.

        With `is_request`, the entry must be the request, which is read once. A missing turn takes as many reads as
        another one. Raises LogUnavailable.
        """
        filter_ = subjects.requests_of_tenant(tenant) if is_request else subjects.entries_of_tenant(tenant)
        found = await self._leader.first(filter_, seq)
        key = TurnKey(tenant, TurnId(new_id()) if found is None else subjects.parse(found.subject)[0].turn)
        stored = found if is_request else await self._leader.first(subjects.entry(key, "request"), 1)
        request = None if stored is None else entries.decode("request", stored.data)
        return (key, request) if found is not None and found.seq == seq and isinstance(request, Request) else None

    async def find_turn(self, turn: TurnId) -> TurnKey | None:
        """Returns the turn with this id, of any tenant; None if the log has none.

        None only when the stream's leader has said so twice. Raises LogUnavailable.
        """
        found = await ask_twice(partial(self._leader.last, subjects.requests(turn)))
        return subjects.parse(found.subject)[0] if found is not None else None

    async def count(self, key: TurnKey) -> Count:
        """See LogServer.count. Raises LogUnavailable."""
        turn = subjects.entries(key)
        state = (await self.connection.stream_info(STREAM, subjects=turn, timeout_s=COUNT_TIMEOUT_S)).state
        # The request is the oldest entry, so while it exists no entry of the turn has expired.
        is_whole = state.subjects.get(f"{turn[:-1]}request") == 1
        return Count(sum(state.subjects.values()) if is_whole else 0, state.last_seq)

    def is_forkless(self, key: TurnKey, request: Seq) -> bool:  # noqa: ARG002  # all turns are in one stream
        """See LogServer.is_forkless."""
        after = self.connection.forkless_after
        return after is not None and request > after

    async def has_recorded_end(self, key: TurnKey) -> bool | None:
        """See LogServer.has_recorded_end."""
        return None if self.ask_recorder is None else await self.ask_recorder(key)

    async def note_damage(self, key: TurnKey, lost: str) -> None:
        """See LogServer.note_damage."""
        if self.damaged.get(key):
            return
        if await self._is_deleted(key):
            # Readers receive the end from the database until the turn is gone. There is nothing to note.
            self.damaged[key] = True
            return
        if key not in self.damaged:
            logger.error("the log has lost an entry of a turn", turn=key.turn, tenant=key.tenant, lost=lost)
        self.damaged[key] = False
        with suppress(nats.errors.Error):
            await self.connection.jetstream.publish(subjects.damage_note(key), lost.encode(), timeout=NOTE_TIMEOUT_S)
            self.damaged[key] = True

    async def _is_deleted(self, key: TurnKey) -> bool:
        """Returns whether the turn is being deleted: its end may be gone. False if NATS does not answer."""
        with suppress(LogUnavailable):
            return await Tombstones(self.connection).is_deleted(key)
        return False

    async def damaged_turns(self) -> list[TurnKey]:
        """Returns the turns that `note_damage` has noted, of all processes, in order. Raises LogUnavailable."""
        info = await self.connection.stream_info(subjects.CLAIMS_STREAM, subjects=subjects.EVERY_DAMAGE_NOTE)
        tokens = (subject.split(".")[-2:] for subject in info.state.subjects)
        return [TurnKey(Tenant(tenant), TurnId(turn)) for tenant, turn in tokens]

    async def purge(self, key: TurnKey) -> None:
        """Removes the entries of a turn. Raises LogUnavailable."""
        await self._leader.purge(subjects.entries(key), timeout_s=PURGE_TIMEOUT_S)

    async def purge_events(self, key: TurnKey) -> None:
        """Removes the large events of a turn whose entries were removed (PROTOCOL R120). Raises LogUnavailable."""
        await self._event_blobs.purge(key)

    def remember_request(self, key: TurnKey, first: Sequence[StoredEntry]) -> None:
        """Remembers whether a turn's entries are encrypted, and the key. `first`: the first entries that were found.

        If they have no valid request, `publish` asks the stream's leader.
        """
        for stored in first:
            if isinstance(stored.entry, Request) and link(START, stored.seq, stored.entry) is not None:
                self._keys.add_valid(subjects.entries(key), stored.seq, stored.entry.encryption_key)
                return

    async def forget_event(self, key: TurnKey, entry: Entry) -> None:
        """Removes the blob of an event that `publish` has stored for a turn which was purged meanwhile."""
        if isinstance(entry, Event) and len(entry.event) > INLINE_BYTES_MAX:
            await self._event_blobs.forget(key, entry)

    async def erase(self, key: TurnKey, deadline: float = math.inf, *, purges_rest: bool = False) -> ErasedEntries:
        """Overwrites the entries of a turn in nats-server's files, then removes them.

        Encrypted entries are only removed: their key is overwritten with the request. Stops at `deadline`, a time of
        the event loop's clock, but overwrites at least one entry. A later call erases the others; until then the turn
        can be read. With `purges_rest`, it overwrites the request at the deadline, and only removes the others. A purge
        leaves the bytes in the files until the block is rewritten; a deletion by sequence does not. Raises
        LogUnavailable if nothing was overwritten. If the log becomes unavailable later, `is_gone` is False.
        """
        erased = encrypted = 0
        try:
            seqs, encrypted = await self._find_erasable(key)
            # The last entry first: a writer of the turn then loses its fence, and appends no more.
            for seq in reversed(seqs):
                if erased and asyncio.get_running_loop().time() >= deadline:
                    if not purges_rest:
                        return ErasedEntries(erased, is_gone=False)
                    break
                await self._erase_entry(key, seq)
                erased += 1
            else:
                # A replica that was behind may not have returned all entries.
                while (last := await self._leader.last(subjects.entries(key))) is not None:
                    if last.subject.endswith(".request") or is_encrypted(last.data):
                        break
                    await self._erase_entry(key, last.seq)
                    erased += 1
            # The request is last: without it, the other entries would not be found. It has the key of encrypted
            # entries. A fork may have another request.
            while (request := await self._leader.first(subjects.entry(key, "request"), 1)) is not None:
                await self._erase_entry(key, request.seq)
                erased += 1
            await self.purge(key)
        except LogUnavailable:
            if not erased:
                raise
            return ErasedEntries(erased, is_gone=False)
        return ErasedEntries(erased + encrypted, is_gone=True)

    async def _find_erasable(self, key: TurnKey) -> tuple[list[Seq], int]:
        """Returns the entries of a turn that are to be overwritten besides its request, and how many are encrypted."""
        seqs, encrypted = list[Seq](), 0
        turn, after = subjects.entries(key), BEFORE_FIRST
        while messages := (await self._reads.page(turn, Seq(after + 1))).messages:
            after = _seq_of(messages[-1])
            for message in messages:
                if is_encrypted(message.data):
                    encrypted += 1
                elif not message.header(b"Nats-Subject").endswith(".request"):
                    seqs.append(_seq_of(message))
        return seqs, encrypted

    async def _erase_entry(self, key: TurnKey, seq: Seq) -> None:
        """Overwrites one entry, while no other is overwritten by this process.

        nats-server rewrites the whole block of up to 8 MB for it (docs/SIZING.md), and `up` limits its API to one
        request at a time. It prefers other requests to requests for information (jetstream_api.go,
        processJSAPIRoutedRequests): without a pause, the latter would wait for the last erasure of all processes.
        """
        async with self._erasing:
            is_deleted = await self._leader.delete(seq, erases=True)
            with suppress(LogUnavailable):
                # Answered after other processes' requests for information.
                await self.newest_seq()
        # A repeated deletion finds no entry, and a purge would hide an entry that was not overwritten.
        if not is_deleted and await self.has_entry(key, seq):
            raise LogUnavailable(f"an entry of {key.turn} could not be erased: retry")

    def subscribe(self, key: TurnKey, kind: str = ">") -> AbstractAsyncContextManager[LiveFeed]:
        """Yields the live feed of a turn, for all kinds of entries or one. A lost connection resets the feed.

        Raises LogUnavailable on entry.
        """
        feed, turn = LiveFeed(), subjects.entries(key)

        def add(_subject: bytes, headers: bytes, payload: bytes, _reply: bytes) -> None:
            if (stored := self._decode(headers, payload, turn)) is None:
                return
            if is_stub(stored) or (type(stored.entry) is Unreadable and is_encrypted(payload)):
                # The key, or the large event, is found when the log is read.
                feed.reset()
            else:
                feed.add(stored)

        return _Listening(self.connection, f"{subjects.live(key)[:-1]}{kind}", add, feed.reset, feed)

    async def now(self) -> datetime:
        """Returns the time of the server's clock, which dates the entries. Raises LogUnavailable."""
        return await self.connection.now()

    async def newest_seq(self) -> Seq:
        """Returns the sequence of the newest entry of all turns. Raises LogUnavailable."""
        return (await self.connection.stream_info(STREAM)).state.last_seq

    def new_turns(self, tenant: Tenant, call: Callable[[SessionId | None], None]) -> AbstractAsyncContextManager[None]:
        """Calls `call` with the session of each new turn of the tenant, until the context is left. A hint.

        None: any session may have new turns, because messages may be missing. Raises LogUnavailable on entry.
        """

        def notify(_subject: bytes, _headers: bytes, payload: bytes, _reply: bytes) -> None:
            with suppress(*DECODE_ERRORS):
                call(_session.decode(payload).session)

        return _Listening(self.connection, subjects.live_requests(tenant), notify, lambda: call(None), None)

    def _decode_all(self, messages: Sequence[Message], turn: str) -> list[StoredEntry]:
        return [stored for one in messages if (stored := self._decode(one.header_block, one.data, turn))]

    def _decode(self, headers: bytes, payload: bytes, turn: str) -> StoredEntry | None:
        """Returns the entry in a message that was read or republished; None if it is no entry of the filter `turn`.

        A NATS client may name a subject of the live feed as its reply subject. Such a message was not stored.
        """
        place, below = find_place(headers), turn[:-1]
        subject = place[0].decode(errors="replace")
        if not subject.startswith(below):
            return None
        kind = subject[len(below) :]
        entry = entries.decode(kind, payload)
        if type(entry) is Unreadable and is_encrypted(payload):
            entry = entries.decode(kind, self._keys.decrypt(turn, subject, payload))
        if type(entry) is Request and entry.encryption_key is not None:
            self._keys.add(turn, entry.encryption_key)
        return StoredEntry(Seq(int(place[1])), datetime.fromisoformat(place[2].decode()), entry)

    async def _read_key(self, key: TurnKey) -> None:
        """Asks the stream's leader for the turn's request, and remembers its key. A second request would be a fork's.

        Without a request, the turn was erased, and its entries stay unreadable. Raises LogUnavailable.
        """
        found = await ask_twice(partial(self._leader.first, subjects.entry(key, "request"), 1))
        request = None if found is None else entries.decode("request", found.data)
        if found is not None and request is not None:
            self.remember_request(key, [StoredEntry(found.seq, found.time, request)])

    async def _read_key_to_publish(self, key: TurnKey) -> None:
        """Like `_read_key`, but raises PublishUnclear if no leader answers."""
        try:
            await self._read_key(key)
        except LogUnavailable as error:
            raise PublishUnclear(str(error), is_answered=False) from error


def find_place(headers: bytes) -> Sequence[bytes]:
    """Returns the subject, sequence and time of an entry that was read or republished; empty values for another
    message.

    The last headers count: a writer may store headers with the same names.
    """
    found = PLACE.match(headers, headers.rfind(b"\r\nNats-Subject:"))
    if found is not None:
        return found.groups()
    return [find_header(headers, name) for name in (b"Nats-Subject", b"Nats-Sequence", b"Nats-Time-Stamp")]


class _Listening(Generic[T]):
    """Passes the messages of the live feed on `subject` to `receive`. Calls `reset` when messages may be missing.

    A class, because two generators for each turn that is read would take 1 kB more.
    """

    __slots__ = ("_connection", "_forget", "_receive", "_reset", "_result", "_subject", "_subscription")

    def __init__(
        self, connection: Connection, subject: str, receive: Receive, reset: Callable[[], None], result: T
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._receive = receive
        self._reset = reset
        self._result = result

    async def __aenter__(self) -> T:
        self._subscription = await self._connection.subscribe_directly(self._subject, self._receive)
        self._forget = self._connection.on_reconnected(self._reset)
        return self._result

    async def __aexit__(self, *_: object) -> None:
        self._forget()
        await self._connection.unsubscribe(self._subscription)


class _Session(msgspec.Struct):
    """The session of a request."""

    session: SessionId


_session = msgspec.json.Decoder(_Session)


@lru_cache(1024)
def _subjects(key: TurnKey) -> tuple[str, str, bytes, bytes]:
    """Returns the filter of a turn's entries and the subject of its events, as texts and as bytes."""
    turn, subject = subjects.entries(key), subjects.entry(key, "event")
    return turn, subject, turn.encode(), subject.encode()


def _failure(ack: Ack | None) -> PublishUnclear | LogFull:
    """Returns why an entry is not stored, or perhaps not. `ack` None: no answer came in time."""
    if ack is None or ack.error is None:
        return PublishUnclear("the log does not answer", is_answered=False)
    if ack.is_full:
        return LogFull("the log is full: wait until old turns are removed, or give the stream TURNS more bytes")
    # 10071: the fence did not match, perhaps because this entry is already stored. 10164: an earlier write is not
    # settled. Other codes come from a server without a leader. All are as unclear as no answer.
    return PublishUnclear(f"{ack.error.err_code} {ack.error.description}")


def _seq_of(message: Message) -> Seq:
    return Seq(int(message.header(b"Nats-Sequence")))
