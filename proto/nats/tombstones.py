"""Tombstones of deleted turns, in the bucket CLAIMS, which keeps them as long as the log keeps turns (PROTOCOL R35)."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Literal, NamedTuple

import nats.errors

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.runtime.gather import gather_limited
from tailrace.proto.subjects import CLAIMS_STREAM, EVERY_ERASURE_NOTE, EVERY_TOMBSTONE

# The text of a removed note. The bucket allows no deletion of single messages: a message with a TTL replaces the note.
REMOVED = b"removed"
REMOVED_LIFE = {pub_ack.LIFE: "1s"}
# The text of the tombstone of a turn with `store: false` that no client has stopped: its idempotency key is free.
ERASED = b"erased"
LOOKED_UP_AT_ONCE = 16
# A page takes the server a second.
PAGE_TIMEOUT_S = 10.0
# How far to go back if tombstones of earlier pages have expired. A restart would never reach the end if a tombstone
# expires during each page.
STEP_BACK = 10_000


class ErasureNote(NamedTuple):
    """The note that a turn is to be erased, and when it was stored."""

    seq: Seq
    key: TurnKey
    noted_at: datetime


class Tombstones:
    """A tombstone is set before a turn's row is deleted. A repeated Idempotency-Key is then refused."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._leader = Leader(connection, CLAIMS_STREAM)

    async def put(self, turns: Iterable[TurnKey]) -> None:
        """Sets a tombstone for each of `turns`. After LogUnavailable, some tombstones may be set."""
        names = [subjects.tombstone(key) for key in turns]
        await asyncio.gather(*(self._publish(name, "deleted turns cannot be marked") for name in names))

    async def put_erased(self, key: TurnKey) -> None:
        """Sets the tombstone of a turn with `store: false` whose idempotency key is free after its erasure."""
        await self._publish(subjects.tombstone(key), "the erased turn cannot be marked", ERASED)

    async def find(self, key: TurnKey) -> Literal["deleted", "erased"] | None:
        """Asks the stream's leader whether the turn was deleted, or erased because of `store: false`.

        A turn whose deletion has begun to cancel or overwrite it is deleted. Raises LogUnavailable.
        """
        found = await self._leader.last(subjects.tombstone(key))
        if found is None:
            return "deleted" if await self.is_deletion_marked(key) else None
        return "erased" if found.data == ERASED else "deleted"

    async def exists(self, key: TurnKey) -> bool:
        """Asks the stream's leader whether the turn has a tombstone. Raises LogUnavailable."""
        return await self._leader.last(subjects.tombstone(key)) is not None

    async def every(self) -> AsyncIterator[TurnKey]:
        """Yields the turns that have a tombstone, in order, from pages of the stream's leader. Raises LogUnavailable.

        A page has up to 100,000 subjects (JSMaxSubjectDetails of nats-server).
        """
        last, offset = "", 0
        while True:
            info = await self._connection.stream_info(
                CLAIMS_STREAM, subjects=EVERY_TOMBSTONE, offset=offset, timeout_s=PAGE_TIMEOUT_S
            )
            found = list(info.state.subjects)
            if offset and (not found or found[0] > last):
                # Some have expired since the last page, and the others have moved up.
                offset = max(0, min(offset, info.total) - STEP_BACK)
                continue
            for subject in found:
                if subject > last:
                    yield _key(subject)
            if offset + len(found) >= info.total:
                return
            last, offset = max(last, found[-1]), offset + len(found) - 1

    async def mark_deletion(self, key: TurnKey) -> None:
        """Marks a turn before its deletion cancels it or overwrites its entries. Raises LogUnavailable."""
        await self._publish(subjects.deletion_mark(key), "the deletion cannot be marked")

    async def is_deletion_marked(self, key: TurnKey) -> bool:
        """Asks the stream's leader whether a deletion has begun to cancel or overwrite it. Raises LogUnavailable."""
        return await self._leader.last(subjects.deletion_mark(key)) is not None

    async def is_deleted(self, key: TurnKey) -> bool:
        """Returns whether the turn is deleted, or its deletion has begun. Raises LogUnavailable."""
        return await self.is_deletion_marked(key) or await self.exists(key)

    async def find_deleted(self, turns: Iterable[TurnKey]) -> set[TurnKey]:
        """Returns the `turns` for which `is_deleted` is true. Looks several up at once. Raises LogUnavailable."""
        keys = list(turns)
        deleted = await gather_limited(self.is_deleted, keys, LOOKED_UP_AT_ONCE)
        return {key for key, is_deleted in zip(keys, deleted, strict=True) if is_deleted}

    async def note_erasure(self, key: TurnKey) -> None:
        """Notes that a turn with `store: false` has ended. Raises LogUnavailable."""
        await self._publish(subjects.erasure_note(key), "the erasure cannot be noted")

    async def remove_erasure_note(self, key: TurnKey) -> None:
        """Removes the note of a turn that is erased: the last step of its erasure. Raises LogUnavailable.

        The note stays readable as REMOVED for a second, so `next_erasure_note` skips it.
        """
        await self._publish(
            subjects.erasure_note(key), "the note of an erasure cannot be removed", REMOVED, REMOVED_LIFE
        )

    async def next_erasure_note(self, after: Seq) -> ErasureNote | None:
        """Returns the first note after a sequence, read from the leader, or None. Raises LogUnavailable."""
        found = await self._leader.first(EVERY_ERASURE_NOTE, after + 1)
        while found is not None and found.data:
            found = await self._leader.first(EVERY_ERASURE_NOTE, found.seq + 1)
        if found is None:
            return None
        return ErasureNote(found.seq, _key(found.subject), found.time)

    async def _publish(
        self, subject: str, failure: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        """Stores a message in the bucket. Raises LogUnavailable, whose message begins with `failure`."""
        try:
            await self._connection.jetstream.publish(subject, data, headers=headers)
        except nats.errors.Error as error:
            raise LogUnavailable(f"{failure} ({type(error).__name__}): retry") from error


def _key(subject: str) -> TurnKey:
    tenant, turn = subject.split(".")[-2:]
    return TurnKey(Tenant(tenant), TurnId(turn))
