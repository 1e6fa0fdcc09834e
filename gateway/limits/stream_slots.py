"""Slots of open streams, for the limit `streams` of a key and of a tenant over all gateways.

A slot is renewed while its stream is open. The slots of a gateway that was killed are free after SLOT_LIFE_S. While
NATS is unreachable streams are not counted: what they deliver is paid for. reader_counts.py still limits each gateway.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import structlog
from starlette.requests import Request
from starlette.types import Scope

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.limits.limiter import Limiter
from tailrace.gateway.limits.quotas import Owner
from tailrace.gateway.limits.reader_counts import ReaderCounts
from tailrace.proto.errors import LogError, LogUnavailable, Refused
from tailrace.proto.ids import new_id
from tailrace.proto.nats.slots import Slot

logger = structlog.get_logger()

SLOT_LIFE_S = 6
# Two renewals may fail.
RENEW_INTERVAL_S = SLOT_LIFE_S / 3
RETRY_AFTER_S = 2.0
STREAMS = "streams"
# Keys in a request's state: the slots that are reserved for its stream, its reserved reader count, and whether the
# request is counted as a reader.
RESERVED_SLOTS = "reserved_slots"
RESERVED_READER = "reserved_reader"
IS_COUNTED = "is_counted_reader"


class Lease:
    """The slots of one stream."""

    def __init__(self) -> None:
        self.holder = new_id()
        self.slots: list[Slot] = []


class StreamSlots:
    """Counts the streams of this gateway."""

    def __init__(self, limiter: Limiter, readers: ReaderCounts) -> None:
        self._limiter = limiter
        self._readers = readers
        self._open: set[Lease] = set()

    @contextmanager
    def count_reader(self, scope: Scope) -> Iterator[None]:
        """Counts the request as an open reader of this gateway; nested calls count once. Raises Refused."""
        state = scope.setdefault("state", {})
        if IS_COUNTED in state:
            yield
            return
        with state.pop(RESERVED_READER, None) or self._count(scope):
            state[IS_COUNTED] = True
            try:
                yield
            finally:
                del state[IS_COUNTED]

    def _count(self, scope: Scope) -> ExitStack:
        counted, client = ExitStack(), scope.get("client")
        if (principal := scope["state"].get("caller")) is not None:
            counted.enter_context(self._readers.count(principal.tenant, client[0] if client else ""))
        return counted

    @asynccontextmanager
    async def hold_slots(self, scope: Scope) -> AsyncIterator[None]:
        """Holds the slots of a stream, reserved ones if there are any. Raises Refused if all are taken."""
        state = scope.get("state", {})
        lease = state.pop(RESERVED_SLOTS, None) or await self._acquire(state.get("caller"))
        try:
            yield
        finally:
            await self._release(lease)

    @asynccontextmanager
    async def reserve(self, request: Request) -> AsyncIterator[None]:
        """Reserves the slots of a stream before its turn is submitted; releases them if that fails. Raises Refused."""
        with ExitStack() as leaving:
            counted = leaving.enter_context(self._count(request.scope))
            lease = await self._acquire(getattr(request.state, "caller", None))
            try:
                yield
            except BaseException:
                await self._release(lease)
                raise
            setattr(request.state, RESERVED_SLOTS, lease)
            setattr(request.state, RESERVED_READER, counted)
            leaving.pop_all()

    async def release_reserved(self, scope: Scope) -> None:
        """Releases slots that were reserved for a stream that did not start."""
        if (lease := scope.get("state", {}).pop(RESERVED_SLOTS, None)) is not None:
            await self._release(lease)

    async def renew_periodically(self) -> None:
        """Renews the slots of all open streams until it is cancelled."""
        while True:
            await asyncio.sleep(RENEW_INTERVAL_S)
            for lease in tuple(self._open):
                await self._renew(lease)

    async def _acquire(self, principal: Principal | None) -> Lease:
        lease = Lease()
        if principal is None:
            return lease
        try:
            for owner in self._limiter.owners(principal):
                await self._acquire_of(owner, lease)
        except Refused:
            await self._release(lease)
            raise
        except LogUnavailable as error:
            logger.debug("stream not counted", error=str(error))
        if lease.slots:
            self._open.add(lease)
        return lease

    async def _acquire_of(self, owner: Owner, lease: Lease) -> None:
        most = owner.limits.streams
        if most is None:
            return
        slot = await self._limiter.slots.acquire(
            owner.tenant, owner.name, STREAMS, most, lease.holder, life_s=SLOT_LIFE_S
        )
        if slot is None:
            raise Refused(
                "too_many_streams",
                f"This {owner.noun} has {most} open streams, its limit; close one.",
                retry_after_s=RETRY_AFTER_S,
            )
        lease.slots.append(slot)

    async def _release(self, lease: Lease) -> None:
        self._open.discard(lease)
        # Before freeing: a concurrent renewal sees that the slot is gone from the lease and frees the new one.
        slots, lease.slots = lease.slots, []
        # A slot that cannot be freed expires.
        with suppress(LogError):
            for slot in slots:
                await self._limiter.slots.release(slot.seq)

    async def _renew(self, lease: Lease) -> None:
        with suppress(LogError):
            for slot in tuple(lease.slots):
                newer = await self._limiter.slots.renew(slot, lease.holder, SLOT_LIFE_S)
                if slot not in lease.slots:
                    # The stream was closed meanwhile.
                    if newer is not None:
                        await self._limiter.slots.release(newer.seq)
                    continue
                lease.slots.remove(slot)
                # The stream stays open even if its slot expired while NATS was unreachable.
                if newer is not None:
                    lease.slots.append(newer)
