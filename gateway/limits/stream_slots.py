"""The streams that are open here, as limits count them: each has a slot, which is renewed while it is read.

A gateway that is killed renews nothing, and within `LIFE_S` its readers' slots are free again. While NATS is away
streams are let in uncounted: what is read was paid for. What one gateway can take is counted always (crowd.py).
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

LIFE_S = 6
# Two renewals may be lost.
RENEW_EVERY_S = LIFE_S / 3
AGAIN_S = 2.0
STREAMS = "streams"
# In a request's state: the slots of a stream that is to come.
RESERVED = "reserved_stream"
# And its place in the crowd; and whether it has one.
RESERVED_PLACE = "reserved_place"
IS_PLACED = "is_placed"


class Lease:
    """The slots of one stream."""

    def __init__(self) -> None:
        self.holder = new_id()
        self.places: list[Slot] = []


class StreamSlots:
    def __init__(self, limiter: Limiter, crowd: ReaderCounts) -> None:
        self._limiter = limiter
        self._crowd = crowd
        self._open: set[Lease] = set()

    @contextmanager
    def placed(self, scope: Scope) -> Iterator[None]:
        """While somebody is read to here, or held; raises Refused. What is begun within it has the same place."""
        state = scope.setdefault("state", {})
        if IS_PLACED in state:
            yield
            return
        with state.pop(RESERVED_PLACE, None) or self._place(scope):
            state[IS_PLACED] = True
            try:
                yield
            finally:
                del state[IS_PLACED]

    def _place(self, scope: Scope) -> ExitStack:
        place, client = ExitStack(), scope.get("client")
        if (caller := scope["state"].get("caller")) is not None:
            place.enter_context(self._crowd.joined(caller.tenant, client[0] if client else ""))
        return place

    @asynccontextmanager
    async def counted(self, scope: Scope) -> AsyncIterator[None]:
        """While a stream is read; raises Refused when too many are. What was reserved for it is what it has."""
        state = scope.get("state", {})
        lease = state.pop(RESERVED, None) or await self._take(state.get("caller"))
        try:
            yield
        finally:
            await self._give_up(lease)

    @asynccontextmanager
    async def reserved(self, request: Request) -> AsyncIterator[None]:
        """For a turn that will be streamed: refused before it is asked. Given up if it is not asked after all."""
        with ExitStack() as leaving:
            place = leaving.enter_context(self._place(request.scope))
            lease = await self._take(getattr(request.state, "caller", None))
            try:
                yield
            except BaseException:
                await self._give_up(lease)
                raise
            setattr(request.state, RESERVED, lease)
            setattr(request.state, RESERVED_PLACE, place)
            leaving.pop_all()

    async def unread(self, scope: Scope) -> None:
        """What was reserved for a stream that was not read after all is given up: its turn failed before a word."""
        if (lease := scope.get("state", {}).pop(RESERVED, None)) is not None:
            await self._give_up(lease)

    async def watch(self) -> None:
        """Renews the slots of all streams that are open here."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            for lease in tuple(self._open):
                await self._renew(lease)

    async def _take(self, caller: Principal | None) -> Lease:
        lease = Lease()
        if caller is None:
            return lease
        try:
            for owner in self._limiter.owners(caller):
                await self._take_of(owner, lease)
        except Refused:
            await self._give_up(lease)
            raise
        except LogUnavailable as error:
            logger.debug("stream not counted", error=str(error))
        if lease.places:
            self._open.add(lease)
        return lease

    async def _take_of(self, owner: Owner, lease: Lease) -> None:
        most = owner.limits.streams
        if most is None:
            return
        place = await self._limiter.slots.acquire(owner.tenant, owner.name, STREAMS, most, lease.holder, life_s=LIFE_S)
        if place is None:
            raise Refused(
                "too_many_streams",
                f"{most} streams of this {owner.noun} are open, and no more may be: close one",
                retry_after_s=AGAIN_S,
            )
        lease.places.append(place)

    async def _give_up(self, lease: Lease) -> None:
        self._open.discard(lease)
        # First: what is renewed at this moment is given up by who renews it.
        places, lease.places = lease.places, []
        # What cannot be given up is free when its life is over.
        with suppress(LogError):
            for place in places:
                await self._limiter.slots.release(place.seq)

    async def _renew(self, lease: Lease) -> None:
        with suppress(LogError):
            for place in tuple(lease.places):
                newer = await self._limiter.slots.renew(place, lease.holder, LIFE_S)
                if place not in lease.places:
                    # It was closed meanwhile.
                    if newer is not None:
                        await self._limiter.slots.release(newer.seq)
                    continue
                lease.places.remove(place)
                # A stream that was let in stays, also when this gateway was cut off for longer than its slot lives.
                if newer is not None:
                    lease.places.append(newer)
