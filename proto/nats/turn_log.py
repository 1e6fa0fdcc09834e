"""The turn log: append behind the fence, replay what is stored, follow what is being written. It decides nothing.

What to ask of the server next, and what its answers mean, is decided by an append (proto/nats/append.py), a replay
(proto/nats/replay.py) and a follower (proto/nats/follower.py). Here steps are run. Each append sets subject and fence
together, and no other file publishes to a turn.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from nats.aio.msg import Msg

from tailrace.proto import entries, subjects
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Stored
from tailrace.proto.errors import LogError, LogFull, LogUnavailable, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.append import append
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.direct_get import DirectReader, is_stored_below, stored_subject
from tailrace.proto.nats.follower import REREAD_S, Follower
from tailrace.proto.nats.replay import confirm_known, folded_now, folded_upto
from tailrace.proto.nats.step import BATCH, Confirm, Hear, Page, Pause, Publish, Reached, Read, Step, Steps, T, Unclear
from tailrace.proto.subjects import STREAM, TurnKey

FENCE = "Nats-Expected-Last-Subject-Sequence"
FENCE_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"

PUBLISH_TIMEOUT_S = 2.0
APPEND_TIMEOUT_S = 30.0
PURGE_TIMEOUT_S = 10.0


class TurnLog:
    """The door to the log of every turn. Safe to share in a process; one append at a time for each turn."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reads = DirectReader(connection)

    async def append(self, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float = APPEND_TIMEOUT_S) -> Chain:
        """Stores `entry` as the next link of `chain` and returns the chain with it, exactly once (PROTOCOL R8 to R14).

        `entry.prev` must be `chain.last`. A lost acknowledgement is told from a lost fence by reading the tail.
        Raises FenceLost when another writer has continued the turn, TurnUnknown when it was purged, LogFull when the
        stream's limit is reached, LogUnavailable when it is still unclear after `timeout_s` seconds (the entry may then
        stand), EntryTooLarge.
        """
        return await self.take(key, append(key, chain, entry, now=_now, timeout_s=timeout_s))

    async def replay(self, key: TurnKey, after: Seq = BEFORE_FIRST, limit: int = BATCH) -> list[Stored]:
        """The stored entries of a turn after `after`, oldest first, valid or not, at most `limit`.

        An empty list means "nothing yet", not "ended" and not "unknown": only an End entry says the one, and one read
        never proves the other. Raises LogUnavailable.
        """
        return (await self._page(key, Read(after, limit))).entries

    async def turn(self, key: TurnKey, so_far: Turn = EMPTY_TURN) -> Turn:
        """`so_far` and all that was stored after it when this was asked, folded (PROTOCOL R72).

        Raises TurnUnknown when the log has none of it, LogUnavailable: a turn that has not ended wants a leader.
        """
        return await self.take(key, folded_now(key, so_far, now=_now))

    async def turn_upto(self, key: TurnKey, reached: Seq) -> Turn:
        """The fold, with the entry `reached` in it, which was delivered: one read alone may be behind (PROTOCOL R14).

        Raises TurnUnknown, LogUnavailable when no server can give it.
        """
        return await self.take(key, folded_upto(key, reached, now=_now))

    async def follow(self, key: TurnKey, after: Seq = BEFORE_FIRST) -> AsyncGenerator[list[Stored], None]:
        """The valid entries of a turn after `after`, in order, each once, as they are stored, up to its end.

        The first list is what was stored already (it may be empty); it comes once that is known. After the end there
        is none. Raises TurnUnknown, CursorUnknown when `after` is not a valid entry of the turn, and LogUnavailable
        until the first list; after that it waits for the log to come back. CursorUnknown may also come later: then the
        broker has stored a fork, and what was told last was not valid. TurnUnknown, too: then the turn was purged.
        Close it when done (`contextlib.aclosing`).
        """
        feed = _Feed(key)
        subscription = await self._connection.subscribe(subjects.live(key), feed.heard)
        forget = self._connection.on_reconnected(feed.doubt)
        try:
            follower = Follower(key, after, _now)
            valid = await self.take(key, follower.first(), feed)
            if valid or not follower.is_ended:
                yield valid
            while not follower.is_ended:
                if valid := await self.take(key, follower.more(), feed):
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
        if (error := pub_ack.decode(reply.data).error) is not None:
            raise LogUnavailable(f"{key.turn} could not be purged: {error.description}")

    async def is_known(self, key: TurnKey) -> bool:
        """Whether the `request` of a turn is stored now. Raises LogUnavailable."""
        try:
            await self.take(key, confirm_known(key))
        except TurnUnknown:
            return False
        return True

    async def has_end(self, key: TurnKey) -> bool:
        """Whether the `end` of a turn is stored now. Of one that has ended: not, once it was purged, or grew too old.

        A "no" is a hint: see `_has`. Raises LogUnavailable.
        """
        return await self._has(key, "end")

    async def until_ended(self, key: TurnKey) -> None:
        """Returns when an `end` of the turn is heard of, or stored. For who writes and must stop, also in a silence.

        The feed is a hint. The log is asked, too: once whatever comes is heard, and whenever something may have been
        missed. A fork's end that the log has is none.
        """
        heard, doubt = asyncio.Event(), asyncio.Event()

        async def hear(_: Msg) -> None:
            heard.set()
            doubt.set()

        subscription = await self._connection.subscribe(subjects.live_end(key), hear)
        forget = self._connection.on_reconnected(doubt.set)
        try:
            while not heard.is_set():
                doubt.clear()
                with suppress(LogError):
                    if await self.has_end(key) and (await self.turn(key)).end is not None:
                        return
                with suppress(TimeoutError):
                    async with asyncio.timeout(REREAD_S):
                        await doubt.wait()
        finally:
            forget()
            await self._connection.unsubscribe(subscription)

    async def take(self, key: TurnKey, steps: Steps[T], feed: "_Feed | None" = None) -> T:
        """Takes `steps`, which decide, to where they lead; raises what they do. Nothing is decided here."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._answer(key, step, feed)
                except (Unclear, LogError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as there:
            led: T = there.value
            return led

    async def _answer(self, key: TurnKey, step: Step, feed: "_Feed | None") -> Any:
        match step:
            case Publish(entry, fence):
                return await self._publish(
                    key, subjects.entry(key, entries.kind_of(entry)), entries.encode(entry), fence
                )
            case Read():
                return await self._page(key, step)
            case Confirm(seq):
                return await self._stands(key, seq) if seq else await self._has(key, "request")
            case Reached():
                return await self._found({"last_by_subj": subjects.entries(key)})
            case Pause(wait_s):
                return await asyncio.sleep(wait_s)
            case Hear(timeout_s):
                assert feed is not None  # noqa: S101  # only a follower hears
                return await feed.next(timeout_s)

    async def _publish(self, key: TurnKey, subject: str, payload: bytes, fence: Seq) -> Seq:
        headers = {FENCE: str(fence), FENCE_SUBJECT: subjects.entries(key)}
        try:
            reply = await self._connection.request(subject, payload, timeout_s=PUBLISH_TIMEOUT_S, headers=headers)
        except LogUnavailable as error:
            raise Unclear(str(error), is_answered=False) from error
        stored = pub_ack.decode(reply.data)
        if stored.error is None:
            return stored.seq
        if stored.error.err_code in pub_ack.FULL_CODES:
            raise LogFull("the log is full: old turns leave it after its retention, or give the stream more bytes")
        # 10071, the fence did not hold, perhaps over this very entry. 10164, an earlier write is not settled yet. The
        # others are a server without a leader or in the middle of something: as unclear as no answer.
        raise Unclear(f"{stored.error.err_code} {stored.error.description}")

    async def _page(self, key: TurnKey, read: Read) -> Page:
        page = await self._reads.page(subjects.entries(key), Seq(read.after + 1), read.limit)
        return Page([_stored(message) for message in page.messages], page.is_last)

    async def _has(self, key: TurnKey, kind: str) -> bool:
        """Asks the stream's leader; raises LogUnavailable. An old one that wakes up may deny what is there."""
        return await self._found({"last_by_subj": subjects.entry(key, kind)}) != BEFORE_FIRST

    async def _stands(self, key: TurnKey, seq: Seq) -> bool:
        """Asks the stream's leader for the turn's entry at `seq`, as `_has` does."""
        return await self._found({"seq": seq, "next_by_subj": subjects.entries(key)}) == seq

    async def _found(self, query: dict[str, object]) -> Seq:
        """Where what is asked for stands; BEFORE_FIRST: nowhere. Raises LogUnavailable."""
        reply = await self._connection.request(
            f"$JS.API.STREAM.MSG.GET.{STREAM}", msgspec.json.encode(query), timeout_s=PUBLISH_TIMEOUT_S
        )
        found = _decode(reply.data)
        if found.error is not None and found.error.err_code != pub_ack.NOT_FOUND:
            raise LogUnavailable(f"the log's leader does not answer: {found.error.description}")
        return found.message.seq if found.message is not None else BEFORE_FIRST


class _Found(msgspec.Struct):
    """What the stream's leader answers to who asks for one message."""

    class Message(msgspec.Struct):
        seq: Seq

    message: Message | None = None
    error: pub_ack.Ack.Error | None = None


_decode = msgspec.json.Decoder(_Found).decode


class _Feed:
    """What the live subscription has heard and nobody has looked at yet."""

    def __init__(self, key: TurnKey) -> None:
        self._entries = subjects.entries(key)
        self._heard: deque[Stored] = deque()
        self._doubted = False
        self._any = asyncio.Event()

    async def heard(self, message: Msg) -> None:
        if is_stored_below(message, self._entries):
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
    _, kind = subjects.parse(stored_subject(message))
    return Stored(
        Seq(int(headers["Nats-Sequence"])),
        datetime.fromisoformat(headers["Nats-Time-Stamp"]),
        entries.decode(kind, message.data),
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
