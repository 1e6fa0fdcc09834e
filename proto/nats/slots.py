"""Distributed semaphore: N slots per owner, stored in JetStream. Used for running turns and open streams.

A slot is the last message on its own subject, and acquiring it is a create, so that two processes never hold the same
slot. A slot with a lifetime is released by the server unless it is renewed, so that a killed holder frees it.
"""

import random
from datetime import datetime
from typing import NamedTuple

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.subjects import SLOTS

TIMEOUT_S = 2.0
# A process that loses a race for a slot tries another random one. No process loses this many races in a row.
TRIES = 200


class HeldSlot(NamedTuple):
    """A slot that some process holds. `holder` is never empty."""

    subject: str
    seq: Seq
    holder: str
    at: datetime
    """When it was acquired or renewed, by the server's clock."""


class Slot(NamedTuple):
    """A slot that this process has acquired."""

    subject: str
    seq: Seq


class Slots:
    """All slots. The owner of slots is a tenant or one of its keys."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._leader = Leader(connection, SLOTS)
        self._reader = DirectReader(connection, SLOTS)

    async def list_held(self, tenant: Tenant, owner: str, what: str) -> list[HeldSlot]:
        """Returns the held slots; the result may be a moment old. Raises LogUnavailable."""
        return [slot for slot in await self._list(tenant, owner, what) if slot.holder]

    async def list_all(self, what: str) -> list[HeldSlot]:
        """Returns the held slots of all owners and tenants. Raises LogUnavailable."""
        return [slot for slot in await self._read(subjects.every_slot(what)) if slot.holder]

    async def _list(self, tenant: Tenant, owner: str, what: str) -> list[HeldSlot]:
        """Like `list_held`, with expired slots for which nats-server has stored a marker; these have no holder.

        nats-server stores markers in a stream with `subject_delete_marker_ttl`, which `streams.check` refuses.
        """
        return await self._read(subjects.slots(tenant, owner, what))

    async def _read(self, subject: str) -> list[HeldSlot]:
        found: list[HeldSlot] = []
        while True:
            first = Seq(max((slot.seq for slot in found), default=BEFORE_FIRST) + 1)
            page = await self._reader.page(subject, first)
            for message in page.messages:
                headers = message.headers or {}
                at = datetime.fromisoformat(headers["Nats-Time-Stamp"])
                found.append(
                    HeldSlot(headers["Nats-Subject"], Seq(int(headers["Nats-Sequence"])), message.data.decode(), at)
                )
            if page.is_last:
                return found

    async def acquire(
        self, tenant: Tenant, owner: str, what: str, most: int, holder: str, *, life_s: int | None = None
    ) -> Slot | None:
        """Acquires one of `most` slots for `holder`. Returns None if all are held. Raises LogUnavailable.

        With `life_s`, the server releases the slot after this number of seconds unless it is renewed.
        """
        for _ in range(TRIES):
            stored = await self._list(tenant, owner, what)
            expired = {slot.subject: slot.seq for slot in stored if not slot.holder}
            taken = {slot.subject.rpartition(".")[2] for slot in stored if slot.holder}
            free = [number for number in range(most) if str(number) not in taken]
            if not free or len(taken) >= most:
                return None
            subject = subjects.slot(tenant, owner, what, random.choice(free))  # noqa: S311  # no secret
            seq = await self._put(subject, holder, expired.get(subject, BEFORE_FIRST), life_s)
            if seq is not None:
                return Slot(subject, seq)
        raise LogUnavailable("too many processes compete for a slot: retry")

    async def renew(self, slot: Slot, holder: str, life_s: int) -> Slot | None:
        """Extends the slot by another lifetime. Returns None if it was released meanwhile. Raises LogUnavailable."""
        seq = await self._put(slot.subject, holder, slot.seq, life_s)
        if seq is None:
            # The acknowledgement of an earlier renewal may have been lost.
            for message in (await self._reader.page(slot.subject, Seq(slot.seq + 1))).messages:
                if message.data.decode() == holder:
                    seq = await self._put(slot.subject, holder, Seq(int(message.headers["Nats-Sequence"])), life_s)
        return Slot(slot.subject, seq) if seq is not None else None

    async def release(self, seq: Seq) -> None:
        """Releases the slot that was acquired at `seq`, if it is still held. Raises LogUnavailable."""
        await self._leader.delete(seq)

    async def _put(self, subject: str, holder: str, expected: Seq, life_s: int | None) -> Seq | None:
        headers = {pub_ack.LIFE: f"{life_s}s"} if life_s is not None else None
        stored = await self._connection.store(
            subject, holder.encode(), timeout_s=TIMEOUT_S, fence=expected, headers=headers
        )
        if stored.error is None:
            return stored.seq
        if stored.is_fence_lost:
            return None
        raise LogUnavailable(f"the slot cannot be acquired: {stored.error.description}")
