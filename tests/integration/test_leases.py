"""Leases of a durable consumer: the time of a delivery, former holders, and entries with an invalid subject."""

import asyncio

import pytest

from tailrace.proto.entries import Message
from tailrace.proto.nats import Deliveries
from tailrace.proto.nats.leases import stored_at
from tailrace.proto.nats.peers import Held, PeerLink
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, WEBHOOKS
from tests.harness.own_system import OwnSystem
from tests.harness.turn_writer import new_writer
from tests.harness.until import until


@pytest.mark.parametrize("reply", ["{}.1.7.3.{}.0", "hub.ACCHASH.{}.1.7.3.{}.0", "hub.ACCHASH.{}.1.7.3.{}.0.random"])
def test_the_time_of_a_delivery_is_in_whole_microseconds(reply: str) -> None:
    """A float of seconds would make it 656,815 microseconds. Reads of the log cut off the nanoseconds."""
    at = stored_at("$JS.ACK." + reply.format("TURNS.generators", "1795388462656814999"))
    assert at.isoformat() == "2026-11-22T23:01:02.656814+00:00"


@pytest.mark.rule("R17")
async def test_an_acknowledgement_of_an_old_holder_ends_the_lease_of_the_new_one(own: OwnSystem) -> None:
    """Therefore a generator acknowledges only after it has stored or read the turn's end."""
    await own.shorten_lease(0.5)
    deliveries = await Deliveries.open(own.connection, GENERATORS)
    await own.append_request("words=1")
    (old,), (new,) = [await until(deliveries.next) for _ in range(2)]
    assert new.times == 2
    await old.ack()
    await until(deliveries.is_drained)


@pytest.mark.rule("R18")
async def test_a_lease_is_extended_renewed_and_then_acknowledged(own: OwnSystem) -> None:
    """While a turn waits, one message keeps its lease for long. When it runs, its lease is short again."""
    await own.shorten_lease(0.2)
    deliveries = await Deliveries.open(own.connection, GENERATORS)
    await own.append_request("words=1")
    (held,) = await until(deliveries.next)
    for _ in range(2):
        await held.extend(10)
        # Waits for half a second.
        assert await deliveries.next() == []
    await held.renew()
    (again,) = await until(deliveries.next)
    await again.extend(10)
    await again.ack()
    await until(deliveries.is_drained)


@pytest.mark.rule("R45")
async def test_an_extended_lease_that_was_not_kept_is_renewed_released_and_acknowledged(own: OwnSystem) -> None:
    """By the sequence of its entry alone. None for an entry that has left the log."""
    await own.shorten_lease(0.2)
    deliveries = await Deliveries.open(own.connection, GENERATORS)
    keys = [await own.append_request("words=1") for _ in range(3)]
    extended = await until(lambda: deliveries.next(3))
    for one in extended:
        await one.extend(10)
    resumed = [await deliveries.resume(one.seq) for one in extended]
    assert [(one.key, one.seq) for one in resumed if one] == [(one.key, one.seq) for one in extended]
    first, second, third = (one for one in resumed if one)
    await first.ack()
    await deliveries.release([second.seq])
    (again,) = await until(deliveries.next)
    assert again.key == keys[1]
    await again.ack()
    await third.renew()
    (again,) = await until(deliveries.next)
    assert again.key == keys[2]
    await again.ack()
    await until(deliveries.is_drained)
    await own.log.purge(keys[0])
    assert await deliveries.resume(first.seq) is None


@pytest.mark.rule("R151")
async def test_another_process_releases_a_delivery_by_its_acknowledgement_subject(own: OwnSystem) -> None:
    """It has received no delivery itself. A second release in the same moment, and one after the end, do nothing."""
    deliveries, link = await Deliveries.open(own.connection, GENERATORS), PeerLink(own.connection, "other")
    key = await own.append_request("words=1")
    (first,) = await until(deliveries.next)
    held = Held(key.tenant, key.turn, first.ack_subject)
    for _ in range(2):
        await link.release(held)
    (again,) = await until(deliveries.next)
    assert (again.key, again.times) == (key, 2)
    assert await deliveries.next() == []
    await again.ack()
    await link.release(held)
    await until(deliveries.is_drained)
    assert await deliveries.next() == []


async def test_waiting_entries_come_with_one_request_and_none_is_held_back_or_lost(own: OwnSystem) -> None:
    """nats-py's `fetch` leaves a request open at its timeout: one of two requests would come to the idle process."""
    idle, busy = [await Deliveries.open(own.connection, GENERATORS) for _ in range(2)]
    for _ in range(2):
        assert await idle.next(16) == []
    for count, most in ((5, 3), (2, 16)):
        keys = [await own.append_request("words=1") for _ in range(count)]
        found = [await busy.next(most) for _ in range(count // most + 1)]
        assert [delivery.key for some in found for delivery in some] == keys
        assert len(found[0]) == min(count, most)
    waiting = asyncio.create_task(busy.next(16))
    for _ in range(2):
        await asyncio.sleep(0.05)
        key = await own.append_request("words=1")
        assert [delivery.key for delivery in await waiting] == [key]
        waiting = asyncio.create_task(busy.next(16))
    assert await waiting == []


async def test_one_request_returns_few_large_entries_and_each_is_delivered_once(own: OwnSystem) -> None:
    """Hundreds of them would need gigabytes, and replies to other requests would come after them."""
    deliveries = await Deliveries.open(own.connection, PERSISTENCE)
    largest = "x" * (own.connection.client.max_payload - 1000)
    writers = [new_writer(own.log) for _ in range(5)]
    for writer, text in zip(writers, (largest, largest, largest, "short", "short"), strict=True):
        await writer.store_request(messages=[Message("user", text)])
    found = [await until(lambda: deliveries.next(512)) for _ in range(2)]
    assert [len(some) for some in found] == [2, 3]
    assert [one.key for some in found for one in some] == [writer.key for writer in writers]
    assert {one.times for some in found for one in some} == {1}
    assert own.connection.disconnects == 0


async def test_a_reset_delivers_all_entries_again(own: OwnSystem) -> None:
    """To a user without an account of its own, nats-server answers with an empty reply subject."""
    key = await own.append_request("words=1")
    deliveries = await Deliveries.open(own.connection, GENERATORS)
    (first,) = await until(deliveries.next)
    await first.ack()
    await until(deliveries.is_drained)
    for _ in range(2):
        await deliveries.reset()
        (again,) = await until(deliveries.next)
        assert (again.key, again.seq) == (key, first.seq)
    assert own.connection.disconnects == 0


@pytest.mark.rule("S2")
@pytest.mark.parametrize(("durable", "kind"), [(GENERATORS, "request"), (WEBHOOKS, "end")])
@pytest.mark.parametrize("turn", ["*.turn", "tenant.UPPER"])
async def test_an_entry_with_an_invalid_subject_is_acknowledged_and_left_out(
    own: OwnSystem, durable: str, kind: str, turn: str
) -> None:
    """Persistence would exit at each delivery of such an `end`, and a generator log an error each second."""
    deliveries = await Deliveries.open(own.connection, durable)
    await own.connection.jetstream.publish(f"turns.{turn}.{kind}", b"{}")
    assert await deliveries.next() == []
    await until(deliveries.is_drained)
