"""Places that are held, of which an owner has so many: each by one holder, over all processes. It knows no limit.

A place is the last message on a subject of its own, and taking it is a create: two can never have the same. What is
taken for a life is given up by the server when nobody renews it, so that a killed holder keeps nothing.
"""

import random
from datetime import datetime
from typing import NamedTuple

import msgspec

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.subjects import SLOTS

TIMEOUT_S = 2.0
# Whoever is slower than another finds a different place the next time; so many are never slower so many times.
TRIES = 200
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
LIFE = "Nats-TTL"


class HeldSlot(NamedTuple):
    subject: str
    seq: Seq
    holder: str
    at: datetime
    """When it was taken, or renewed, by the server's clock."""


class Slot(NamedTuple):
    """A slot that one has taken."""

    subject: str
    seq: Seq


class Slots:
    """Each call names the tenant and the owner, a key of it or itself, whose places they are."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reads = DirectReader(connection, SLOTS)

    async def held(self, tenant: Tenant, owner: str, what: str) -> list[HeldSlot]:
        """Those that are taken; a moment old. Raises LogUnavailable."""
        found: list[HeldSlot] = []
        while True:
            first = Seq(max((slot.seq for slot in found), default=BEFORE_FIRST) + 1)
            page = await self._reads.page(subjects.slots(tenant, owner, what), first)
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
        """One of `most` places, now `holder`'s; None when all are taken. Raises LogUnavailable.

        With `life_s` it has it for so many seconds, unless it is renewed.
        """
        for _ in range(TRIES):
            held = await self.held(tenant, owner, what)
            taken = {slot.subject.rpartition(".")[2] for slot in held}
            free = [number for number in range(most) if str(number) not in taken]
            if not free or len(taken) >= most:
                return None
            subject = subjects.slot(tenant, owner, what, random.choice(free))  # noqa: S311  # no secret
            seq = await self._put(subject, holder, BEFORE_FIRST, life_s)
            if seq is not None:
                return Slot(subject, seq)
        raise LogUnavailable("so many others take places that none can be taken: try again")

    async def renew(self, place: Slot, holder: str, life_s: int) -> Slot | None:
        """The place for another life; None when it was given up meanwhile. Raises LogUnavailable."""
        seq = await self._put(place.subject, holder, place.seq, life_s)
        return Slot(place.subject, seq) if seq is not None else None

    async def release(self, seq: Seq) -> None:
        """Gives up what is held under `seq`, if it still is. Raises LogUnavailable."""
        query = msgspec.json.encode({"seq": seq, "no_erase": True})
        await self._connection.request(f"$JS.API.STREAM.MSG.DELETE.{SLOTS}", query, timeout_s=TIMEOUT_S)

    async def _put(self, subject: str, holder: str, expected: Seq, life_s: int | None) -> Seq | None:
        headers = {EXPECTED: str(expected), **({LIFE: f"{life_s}s"} if life_s is not None else {})}
        reply = await self._connection.request(subject, holder.encode(), timeout_s=TIMEOUT_S, headers=headers)
        stored = pub_ack.decode(reply.data)
        if stored.error is None:
            return stored.seq
        if stored.error.err_code in pub_ack.FENCE_CODES:
            return None
        raise LogUnavailable(f"the place cannot be taken: {stored.error.description}")
