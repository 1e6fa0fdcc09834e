"""Distributed slots: never more holders than slots, and slots of dead holders become free."""

import asyncio
import functools
from signal import SIGKILL

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.limits import stream_slots
from tailrace.gateway.limits.limiter import Limiter
from tailrace.gateway.limits.reader_counts import ReaderCounts, ReaderLimits
from tailrace.gateway.limits.stream_slots import StreamSlots
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant, new_id
from tailrace.proto.limits import Limits
from tailrace.proto.nats import Connection, Counters, Slots, TurnLog
from tailrace.proto.nats.slots import Slot
from tests.harness.until import until


@pytest.mark.rule("R37")
async def test_of_many_at_once_as_many_have_a_place_as_there_are(
    connection: Connection, nats_url: str, tenant: Tenant
) -> None:
    """Two connections, sixty takers, nine places; each place once."""
    other = await Connection.open(nats_url, "test")
    doors = [Slots(connection), Slots(other)]
    taken = await asyncio.gather(*(doors[n % 2].acquire(tenant, "k", "running", 9, f"h{n}") for n in range(60)))
    places = [place for place in taken if place is not None]
    assert len({place.subject for place in places}) == len(places) == 9
    held = await doors[0].held(tenant, "k", "running")
    assert {slot.subject for slot in held} == {place.subject for place in places}
    await other.close()


@pytest.mark.rule("R37")
async def test_a_place_is_given_up_by_who_has_it_and_by_nobody_who_had_it(
    connection: Connection, tenant: Tenant
) -> None:
    """Its sequence names the one taking of it: giving it up twice takes nothing from the next."""
    slots = Slots(connection)
    first = await slots.acquire(tenant, "k", "running", 1, "first")
    assert first is not None
    assert await slots.acquire(tenant, "k", "running", 1, "second") is None
    await slots.release(first.seq)
    second = await slots.acquire(tenant, "k", "running", 1, "second")
    assert second is not None
    await slots.release(first.seq)
    assert [slot.holder for slot in await slots.held(tenant, "k", "running")] == ["second"]


@pytest.mark.rule("R37")
async def test_a_place_with_a_life_is_kept_by_renewing_it(connection: Connection, tenant: Tenant) -> None:
    """The server gives it up by itself, and then it cannot be renewed."""
    slots = Slots(connection)
    place = await slots.acquire(tenant, "k", "streams", 1, "reader", life_s=1)
    assert place is not None
    renewed = await slots.renew(place, "reader", 1)
    assert renewed is not None
    assert await slots.renew(place, "reader", 1) is None, "the older sequence renewed it"

    async def is_free() -> bool:
        return not await slots.held(tenant, "k", "streams")

    await until(is_free)
    assert await slots.renew(renewed, "reader", 1) is None
    assert await slots.acquire(tenant, "k", "streams", 1, "another", life_s=1) is not None


async def test_places_are_an_owners_and_a_tenants(connection: Connection, tenant: Tenant) -> None:
    """What one holds is none of another's; and a lower limit counts what was taken under the higher."""
    slots = Slots(connection)
    places = [await slots.acquire(tenant, "k", "running", 3, "h") for _ in range(3)]
    (first,) = [place for place in places if place is not None and place.subject.endswith(".0")]
    await slots.release(first.seq)
    for other in ((tenant, "another"), (Tenant(f"tenant-{new_id()}"), "k")):
        assert await slots.acquire(*other, "running", 1, "h") is not None
    assert await slots.acquire(tenant, "k", "streams", 1, "h") is not None
    assert await slots.acquire(tenant, "k", "running", 2, "h") is None


@pytest.mark.rule("R37")
async def test_a_counter_is_what_was_added_by_everybody(connection: Connection, nats_url: str, tenant: Tenant) -> None:
    """A hundred at once on two connections: each is told another value, and the last is the sum."""
    other = await Connection.open(nats_url, "test")
    subject = f"limits.{tenant}.k.requests.1-1"
    doors = [Counters(connection), Counters(other)]
    values = await asyncio.gather(*(doors[number % 2].add(subject, 3) for number in range(100)))
    assert sorted(values) == list(range(3, 303, 3))
    assert await doors[0].add(subject, -300) == 0
    assert await doors[0].add(f"budgets.{tenant}.k.usd_day.2026-11-20", 10**15) == 10**15
    await other.close()


@pytest.mark.rule("R37")
async def test_what_has_a_name_is_added_once(connection: Connection, tenant: Tenant) -> None:
    """By its name and its counter."""
    counters = Counters(connection)
    for subject in (f"limits.{tenant}.k.tokens.1-1", f"budgets.{tenant}.k.usd_day.2026-11-20"):
        for _ in range(3):
            await counters.add_once(subject, -7, "turn-1")
        await counters.add_once(subject, -7, "turn-2")
        assert await counters.add(subject, 0) == -14


@pytest.mark.rule("S19")
@pytest.mark.rule("R37")
async def test_what_has_a_name_is_added_once_by_a_server_that_was_killed_meanwhile(
    own_server: NatsServer, own_connection: Connection, tenant: Tenant
) -> None:
    """Though others have added to the same counter since, as they do when they share a budget."""
    counters = Counters(own_connection)
    subjects = (f"limits.{tenant}.k.tokens.1-1", f"budgets.{tenant}.k.usd_day.2026-11-20")
    for subject in subjects:
        await counters.add_once(subject, -7, "turn-1")
        for other in range(20):
            await counters.add(subject, 1)
            await counters.add_once(subject, -1, f"turn-1{other}")
    await own_server.stop(SIGKILL)
    await own_server.start()
    await until(lambda: own_connection.is_up)

    async def is_added(subject: str) -> bool:
        try:
            await counters.add_once(subject, -7, "turn-1")
        except LogUnavailable:
            return False
        return True

    for subject in subjects:
        await until(functools.partial(is_added, subject))
        assert await counters.add(subject, 0) == -7


async def test_without_a_server_nothing_is_counted_or_taken(
    own_server: NatsServer, own_connection: Connection, tenant: Tenant
) -> None:
    """Said so in bounded time."""
    await own_server.stop()
    with pytest.raises(LogUnavailable):
        await Counters(own_connection).add(f"limits.{tenant}.k.requests.1-1", 1)
    with pytest.raises(LogUnavailable):
        await Slots(own_connection).acquire(tenant, "k", "running", 1, "h")


class Meeting(Slots):
    """Who renews hears of it only when somebody gives a place up."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.is_renewed, self.is_given_up = asyncio.Event(), asyncio.Event()

    async def renew(self, place: Slot, holder: str, life_s: int) -> Slot | None:
        renewed = await super().renew(place, holder, life_s)
        self.is_renewed.set()
        await self.is_given_up.wait()
        return renewed

    async def release(self, seq: Seq) -> None:
        self.is_given_up.set()
        await super().release(seq)


async def test_a_stream_that_ends_while_its_places_are_renewed_keeps_none(
    connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its key's nor its tenant's: who comes back at once would be refused by its own."""
    monkeypatch.setattr(stream_slots, "RENEW_INTERVAL_S", 0.01)
    slots, one = Meeting(connection), Limits(streams=1)
    limiter = Limiter(Counters(connection), slots, TurnLog(connection), one, one)
    streams, caller = StreamSlots(limiter, ReaderCounts(ReaderLimits(9, 9, 9))), Principal(tenant)
    watching = asyncio.create_task(streams.renew_periodically())
    permit = streams.permit(caller, "127.0.0.1")
    await permit.acquire()
    await slots.is_renewed.wait()
    await permit.release()
    owners = [owner.name for owner in limiter.owners(caller)]

    async def are_free() -> bool:
        held = await asyncio.gather(*(slots.held(tenant, owner, stream_slots.STREAMS) for owner in owners))
        return not any(held)

    await until(are_free, stream_slots.SLOT_LIFE_S / 3)
    watching.cancel()
