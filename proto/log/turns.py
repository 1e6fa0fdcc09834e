"""The turn log: append behind the fence, replay what is stored, follow what is being written. It decides nothing else.

Three rules of DESIGN section 2 live here: every append sets subject and fence together; after an unclear outcome the
tail is read, and one read never proves that something is not there; the live feed is a hint and the log is the truth.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime

import msgspec
from nats.aio.msg import Msg

from proto import entries, subjects
from proto.chain import START, Chain, link
from proto.entries import Entry, Stored
from proto.errors import CursorUnknown, FenceLost, LogFull, LogUnavailable, TurnUnknown
from proto.fold import NOBODY, Turn, fold
from proto.ids import NOTHING, Seq
from proto.join import Join
from proto.log import ack
from proto.log.connection import Connection
from proto.log.reads import BATCH, Reads
from proto.subjects import STREAM, TurnKey

FENCE = "Nats-Expected-Last-Subject-Sequence"
FENCE_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"

PUBLISH_TIMEOUT_S = 2.0
APPEND_TIMEOUT_S = 30.0
PURGE_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 5.0
# The measured lag of a follower's read after an acknowledgement was at most 3.4 ms.
STALE_WAIT_S = 0.01
STALE_MAX_S = 5.0
UNCLEAR_WAIT_S = 0.05
# The feed can lose the last entry of a turn, and then nothing follows that would show the gap.
REREAD_S = 5.0

SKIPPED = "the cursor is an entry that was skipped: read the turn from its beginning"


class _Unclear(Exception):
    """The append may or may not stand."""


class TurnLog:
    """The door to the log of every turn. Safe to share in a process; one append at a time for each turn."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reads = Reads(connection)

    async def append(self, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float = APPEND_TIMEOUT_S) -> Chain:
        """Stores `entry` as the next link of `chain` and returns the chain with it, exactly once (PROTOCOL R8 to R14).

        `entry.prev` must be `chain.last`. A lost acknowledgement is told from a lost fence by reading the tail.
        Raises FenceLost when another writer has continued the turn, TurnUnknown when it was purged, LogFull when the
        stream's limit is reached, LogUnavailable when it is still unclear after `timeout_s` seconds (the entry may then
        stand), EntryTooLarge.
        """
        subject, payload = subjects.entry(key, entries.kind_of(entry)), entries.encode(entry)
        _linked(chain, Seq(chain.last + 1), entry)
        fence = chain.last
        deadline = _now() + timeout_s
        while True:
            try:
                return _linked(chain, await self._publish(key, subject, payload, fence), entry)
            except (_Unclear, LogFull) as error:
                unclear: Exception = error
            try:
                stands, fence = await self._tail(key, chain, entry, fence)
            except LogUnavailable as error:
                stands, unclear = None, error
            if stands is not None:
                return stands
            if isinstance(unclear, LogFull):
                raise unclear
            if _now() >= deadline:
                raise LogUnavailable(f"the log did not take an entry of {key.turn}: {unclear}") from unclear
            await asyncio.sleep(UNCLEAR_WAIT_S)

    async def replay(self, key: TurnKey, after: Seq = NOTHING, limit: int = BATCH) -> list[Stored]:
        """The stored entries of a turn after `after`, oldest first, valid or not, at most `limit`.

        An empty list means "nothing yet", not "ended" and not "unknown": only an End entry says the one, and one read
        never proves the other. Raises LogUnavailable.
        """
        page = await self._reads.page(subjects.entries(key), Seq(after + 1), limit)
        return [_stored(message) for message in page.messages]

    async def turn(self, key: TurnKey, so_far: Turn = NOBODY) -> Turn:
        """`so_far` and all that is stored after it, folded. Raises TurnUnknown when the log has none of it."""
        turn = so_far
        deadline = _now() + READ_TIMEOUT_S
        while True:
            page = await self._reads.page(subjects.entries(key), Seq(turn.tail + 1))
            turn = fold((_stored(message) for message in page.messages), turn)
            if not page.is_last:
                continue
            if turn.request is not None:
                return turn
            await self._confirm_known(key)
            if _now() >= deadline:
                raise TurnUnknown(f"the log has no request of {key.turn} that can be read")
            await asyncio.sleep(STALE_WAIT_S)

    async def turn_upto(self, key: TurnKey, reached: Seq) -> Turn:
        """The fold, with the entry `reached` in it, which was delivered: one read alone may be behind (PROTOCOL R14).

        Raises TurnUnknown, LogUnavailable when no server can give it.
        """
        turn = await self.turn(key)
        try:
            async with asyncio.timeout(STALE_MAX_S):
                while turn.tail < reached:
                    await asyncio.sleep(STALE_WAIT_S)
                    turn = await self.turn(key, turn)
        except TimeoutError as error:
            raise LogUnavailable(f"{key.turn} was delivered further than it can be read") from error
        return turn

    async def follow(self, key: TurnKey, after: Seq = NOTHING) -> AsyncGenerator[list[Stored], None]:
        """The valid entries of a turn after `after`, in order, each once, as they are stored, up to its end.

        The first list is what was stored already (it may be empty); it comes once that is known. After the end there
        is none. Raises TurnUnknown, CursorUnknown when `after` is not a valid entry of the turn, and LogUnavailable
        until the first list; after that it waits for the log to come back. CursorUnknown may also come later: then the
        broker has stored a fork, and what was told last was not valid. TurnUnknown, too: then the turn was purged.
        Close it when done (`contextlib.aclosing`).
        """
        feed = _Feed()
        subscription = await self._connection.subscribe(subjects.live(key), feed.heard)
        forget = self._connection.on_reconnected(feed.doubt)
        try:
            join = Join(await self._chain_at(key, after))
            valid = await self._read(key, join, is_first=after == NOTHING)
            if after and join.skipped and not await self._is_valid(key, after, START):
                raise CursorUnknown(SKIPPED)
            if valid or not join.chain.is_ended:
                yield valid
            # What the log itself has said. The feed may lose an entry and tell of its rival, and nothing need follow.
            sure, skipped, is_behind = START if after else join.chain, join.skipped, False
            while not join.chain.is_ended:
                heard = await feed.next(STALE_WAIT_S if is_behind else REREAD_S)
                valid = [stored for hint in heard for stored in join.heard(hint)]
                if is_behind or join.has_gap or not heard:
                    more, is_behind = await self._more(key, join)
                    valid += more
                if not heard and not valid and not is_behind:
                    # As silent as a model that thinks is a turn that was purged, and whose end the feed has lost.
                    with suppress(LogUnavailable):
                        await self._confirm_known(key)
                if join.chain.last > sure.last and (not heard or join.skipped > skipped):
                    with suppress(LogUnavailable):
                        if not await self._is_valid(key, join.chain.last, sure):
                            raise CursorUnknown(SKIPPED)
                        sure, skipped = join.chain, join.skipped
                if valid:
                    yield valid
        finally:
            forget()
            await self._connection.unsubscribe(subscription)

    async def purge(self, key: TurnKey) -> None:
        """Removes all that is stored of a turn; who has just been writing it is refused (PROTOCOL R35).

        Nothing of it need be there. Raises LogUnavailable; some of it may then be gone.
        """
        query = msgspec.json.encode({"filter": subjects.entries(key)})
        reply = await self._connection.request(f"$JS.API.STREAM.PURGE.{STREAM}", query, timeout_s=PURGE_TIMEOUT_S)
        if (error := ack.decode(reply.data).error) is not None:
            raise LogUnavailable(f"{key.turn} could not be purged: {error.description}")

    async def is_known(self, key: TurnKey) -> bool:
        """Whether the `request` of a turn is stored now. Raises LogUnavailable."""
        return await self._has(key, "request")

    async def has_end(self, key: TurnKey) -> bool:
        """Whether the `end` of a turn is stored now. Of one that has ended: not, once it was purged, or grew too old.

        Raises LogUnavailable.
        """
        return await self._has(key, "end")

    async def until_ended(self, key: TurnKey) -> None:
        """Returns when an `end` of the turn is heard of: a hint, which may be missed. For who writes and must stop."""
        heard = asyncio.Event()

        async def hear(_: Msg) -> None:
            heard.set()

        subscription = await self._connection.subscribe(subjects.live_end(key), hear)
        try:
            await heard.wait()
        finally:
            await self._connection.unsubscribe(subscription)

    async def _publish(self, key: TurnKey, subject: str, payload: bytes, fence: Seq) -> Seq:
        headers = {FENCE: str(fence), FENCE_SUBJECT: subjects.entries(key)}
        try:
            reply = await self._connection.request(subject, payload, timeout_s=PUBLISH_TIMEOUT_S, headers=headers)
        except LogUnavailable as error:
            raise _Unclear(str(error)) from error
        stored = ack.decode(reply.data)
        if stored.error is None:
            return stored.seq
        if stored.error.err_code in ack.FULL_CODES:
            raise LogFull("the log is full: old turns leave it after its retention, or give the stream more bytes")
        # 10071, the fence did not hold, perhaps over this very entry. 10164, an earlier write is not settled yet. The
        # others are a server without a leader or in the middle of something: as unclear as no answer.
        raise _Unclear(f"{stored.error.err_code} {stored.error.description}")

    async def _tail(self, key: TurnKey, chain: Chain, entry: Entry, fence: Seq) -> tuple[Chain | None, Seq]:
        """After an unclear append: the chain with it if it stands, else None and the fence to try again with."""
        last = fence
        for stored in await self.replay(key, chain.last):
            linked = link(chain, stored.seq, stored.entry)
            if linked is not None and entries.encode(stored.entry) == entries.encode(entry):
                return linked, fence
            if linked is not None:
                raise FenceLost(f"{key.turn} was continued by another writer after {chain.last}")
            last = max(last, stored.seq)
        if chain.last and last == fence:
            # Nothing follows, which one read does not prove. If the turn was purged, nothing ever will.
            await self._confirm_known(key)
        # Two rivals are stored. The one that is skipped is nobody's predecessor, but the server's fence counts it.
        if last > fence and chain.last and not await self._is_valid(key, chain.last, START):
            raise FenceLost(f"{key.turn} has another writer, whose entry stands instead of {chain.last}")
        return None, last

    async def _read(self, key: TurnKey, join: Join, *, is_first: bool = False) -> list[Stored]:
        """The valid entries that `join` does not know yet, up to the last. Raises LogUnavailable; then join is void."""
        valid: list[Stored] = []
        deadline = _now() + READ_TIMEOUT_S
        while True:
            page = await self._reads.page(subjects.entries(key), Seq(join.read + 1))
            valid += join.replayed(map(_stored, page.messages))
            if is_first and join.chain.last == NOTHING:
                await self._confirm_known(key)
            elif page.is_last and not join.has_gap:
                return valid
            if page.is_last:
                # Known to be stored and not seen: the server that answered is behind.
                if _now() >= deadline:
                    raise LogUnavailable(f"{key.turn} is stored further than it can be read")
                await asyncio.sleep(STALE_WAIT_S)

    async def _more(self, key: TurnKey, join: Join) -> tuple[list[Stored], bool]:
        """The valid entries of the next page, and whether to read again soon: there is more, or may be."""
        try:
            page = await self._reads.page(subjects.entries(key), Seq(join.read + 1))
        except LogUnavailable:
            # The connection has said so once; its thousand turns need not. Readers get heartbeats meanwhile.
            return [], True
        valid = join.replayed(map(_stored, page.messages))
        return valid, join.has_gap or not page.is_last

    async def _is_valid(self, key: TurnKey, seq: Seq, sure: Chain) -> bool:
        """Whether the entry at `seq`, which is known to be stored, is a link of the chain that goes on from `sure`."""
        join = Join(sure)
        join.behind = seq
        return any(stored.seq == seq for stored in await self._read(key, join))

    async def _chain_at(self, key: TurnKey, cursor: Seq) -> Chain:
        """The chain as it was when `cursor` was its last entry."""
        if cursor == NOTHING:
            return START
        for tries_left in reversed(range(3)):
            found = await self.replay(key, Seq(cursor - 1), limit=1)
            if found and found[0].seq == cursor:
                entry = found[0].entry
                attempt = 0 if isinstance(entry, entries.Request) else getattr(entry, "attempt", 0)
                return Chain(cursor, attempt, isinstance(entry, entries.End))
            if found or not tries_left:
                break
            await asyncio.sleep(STALE_WAIT_S)
        raise CursorUnknown("the cursor is not an `id:` of this turn: send back the last one that you received")

    async def _confirm_known(self, key: TurnKey) -> None:
        """Raises TurnUnknown, LogUnavailable."""
        if not await self._has(key, "request"):
            raise TurnUnknown(f"the log has no turn {key.turn}")

    async def _has(self, key: TurnKey, kind: str) -> bool:
        """Asks the stream's leader, who is never behind its own acknowledgements; raises LogUnavailable."""
        query = msgspec.json.encode({"last_by_subj": subjects.entry(key, kind)})
        reply = await self._connection.request(f"$JS.API.STREAM.MSG.GET.{STREAM}", query, timeout_s=PUBLISH_TIMEOUT_S)
        error = ack.decode(reply.data).error
        if error is not None and error.err_code != ack.NOT_FOUND:
            raise LogUnavailable(f"the log's leader does not answer: {error.description}")
        return error is None


class _Feed:
    """What the live subscription has heard and nobody has looked at yet."""

    def __init__(self) -> None:
        self._heard: deque[Stored] = deque()
        self._doubted = False
        self._any = asyncio.Event()

    async def heard(self, message: Msg) -> None:
        self._heard.append(_stored(message))
        self._any.set()

    def doubt(self) -> None:
        """Something may have been missed: the next look is an empty one, which means "read the log"."""
        self._heard.clear()
        self._doubted = True
        self._any.set()

    async def next(self, timeout_s: float) -> list[Stored]:
        """What was heard; empty after `timeout_s` of silence, or when what was heard is in doubt."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._any.wait()
        except TimeoutError:
            return []
        self._any.clear()
        if self._doubted:
            self._doubted = False
            return []
        heard = list(self._heard)
        self._heard.clear()
        return heard


def _stored(message: Msg) -> Stored:
    headers = message.headers or {}
    _, kind = subjects.parse(headers["Nats-Subject"])
    return Stored(
        Seq(int(headers["Nats-Sequence"])),
        datetime.fromisoformat(headers["Nats-Time-Stamp"]),
        entries.decode(kind, message.data),
    )


def _linked(chain: Chain, seq: Seq, entry: Entry) -> Chain:
    linked = link(chain, seq, entry)
    if linked is None:
        raise AssertionError(f"this entry no reader will take after {chain}: {entry!r:.200}")
    return linked


def _now() -> float:
    return asyncio.get_running_loop().time()
