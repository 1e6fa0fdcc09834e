"""Slots and counters in JetStream: N holders per owner at most, exact sums, and increments that are applied once."""

import functools
from contextlib import AsyncExitStack
from signal import SIGKILL

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.limits import stream_slots
from tailrace.features.limits.limiter import Limiter
from tailrace.features.limits.records import TENANT
from tailrace.features.limits.stream_slots import HeldSlots
from tailrace.gateway.auth.limits import Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Connection, Counters, Slots, TurnLog
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.subjects import SLOTS
from tests.harness.lossy_link import LossyLink
from tests.harness.until import until


@pytest.mark.rule("R37")
async def test_slots_belong_to_an_owner_of_a_tenant_and_are_released_by_their_own_acquisition_only(
    connection: Connection, tenant: Tenant
) -> None:
    """The sequence names the acquisition: a second release does not release the next holder's slot.

    A lowered limit counts the slots that were acquired under the higher one.
    """
    slots = Slots(connection)
    acquired = [await slots.acquire(tenant, "k", "running", 3, "h") for _ in range(3)]
    (first,) = [slot for slot in acquired if slot is not None and slot.subject.endswith(".0")]
    assert await slots.acquire(tenant, "k", "running", 3, "late") is None
    await slots.release(first.seq)
    for owner in ((tenant, "another"), (Tenant(f"tenant-{new_id()}"), "k")):
        assert await slots.acquire(*owner, "running", 1, "h") is not None
    assert await slots.acquire(tenant, "k", "streams", 1, "h") is not None
    assert await slots.acquire(tenant, "k", "running", 2, "late") is None
    assert await slots.acquire(tenant, "k", "running", 3, "late") is not None
    await slots.release(first.seq)
    assert sorted(slot.holder for slot in await slots.list_held(tenant, "k", "running")) == ["h", "h", "late"]


async def test_a_slot_that_the_server_does_not_release_is_an_error(own_connection: Connection, tenant: Tenant) -> None:
    """Its holder must not believe that the slot is free."""
    slot = await Slots(own_connection).acquire(tenant, "k", "running", 1, "h")
    assert slot is not None
    await own_connection.jetstream.delete_stream(SLOTS)
    with pytest.raises(LogUnavailable):
        await Slots(own_connection).release(slot.seq)


@pytest.mark.rule("S19")
@pytest.mark.rule("R37")
async def test_a_named_addition_is_applied_once(
    own_server: NatsServer, own_connection: Connection, tenant: Tenant
) -> None:
    """By its name and counter, also after a kill of the server, and after others have added to the counter."""
    counters = Counters(own_connection)
    subjects = (f"limits.{tenant}.k.tokens.1-1", f"budgets.{tenant}.k.usd_day.2026-11-20")

    async def is_added(subject: str) -> bool:
        try:
            await counters.add_once(subject, -7, "turn-1")
        except LogUnavailable:
            return False
        return True

    for subject in subjects:
        for _ in range(3):
            assert await is_added(subject)
        for number in range(20):
            await counters.add(subject, 1)
            await counters.add_once(subject, -1, f"turn-1{number}")
        assert await counters.add(subject, 0) == -7
    await own_server.stop(SIGKILL)
    await own_server.start()
    await until(lambda: own_connection.is_up)
    for subject in subjects:
        await until(functools.partial(is_added, subject))
        assert await counters.add(subject, 0) == -7
    await own_server.stop()
    with pytest.raises(LogUnavailable):
        await counters.add(subjects[0], 1)
    with pytest.raises(LogUnavailable):
        await Slots(own_connection).acquire(tenant, "k", "running", 1, "h")


@pytest.mark.rule("R37")
async def test_a_stream_keeps_its_slot_if_the_acknowledgement_of_a_renewal_is_lost(
    own_server: NatsServer, tenant: Tenant
) -> None:
    """The slot has another sequence then. When the stream is closed, it is free at once."""
    async with LossyLink(own_server.url, share=0, what=b'{"stream":"SLOTS"') as link, AsyncExitStack() as stack:
        connection = await Connection.open(link.url, "test")
        stack.push_async_callback(connection.close)
        one, other = two_streams(connection, tenant)
        await one.acquire()
        link.share = 1
        await one.renew()
        assert link.lost == 1
        link.share = 0
        for _ in range(2):
            await one.renew()
            with pytest.raises(Refused):
                await other.acquire()
        await one.release()
        await other.acquire()


@pytest.mark.rule("R37")
async def test_a_stream_whose_slot_has_expired_takes_one_again(connection: Connection, tenant: Tenant) -> None:
    """NATS was unreachable for longer than a slot lives. The stream would stay open without being counted."""
    one, other = two_streams(connection, tenant)
    await one.acquire()
    slots = Slots(connection)
    for _ in range(2):
        (held,) = await slots.list_held(tenant, TENANT, stream_slots.STREAMS)
        await slots.release(held.seq)
        await one.renew()
        with pytest.raises(Refused):
            await other.acquire()
    await one.release()
    await other.acquire()
    await one.renew()
    assert [held.holder for held in await slots.list_held(tenant, TENANT, stream_slots.STREAMS)] == [other.holder]


def two_streams(connection: Connection, tenant: Tenant) -> tuple[HeldSlots, HeldSlots]:
    """Returns the slots of two streams of a tenant that may have one."""
    limiter = Limiter(Counters(connection), Slots(connection), TurnLog(connection), Limits(), Limits(streams=1))
    one, other = (limiter.slots_of(Principal(Scope(tenant, WHOLE))) for _ in range(2))
    assert one is not None
    assert other is not None
    return one, other
