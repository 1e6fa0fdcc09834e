"""tailrace.testing: the example of its documentation, and what its doubles share with the servers that they replace."""

import asyncio
import doctest

import pytest

import tailrace.testing
from tailrace.proto.chain import START
from tailrace.proto.entries import End, Request, StoredEntry
from tailrace.proto.errors import FenceLost, LogFull, TurnUnknown
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Claim
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.testing import MemoryClaims, MemoryCounters, MemoryDeliveries, MemoryLog, MemorySlots
from tests.harness.turn_builder import KEY, attempt, completed_turn, request
from tests.harness.virtual_time import run

TENANT = Tenant("ours")


def test_the_example_of_the_documentation_runs() -> None:
    result = doctest.testmod(tailrace.testing)
    assert (result.failed, result.attempted > 5) == (0, True)


async def test_a_log_in_memory_fences_appends_follows_and_forgets() -> None:
    """With the rules of the product: of two writers that continue one entry, the second loses."""
    log, other = MemoryLog(), TurnKey(TENANT, TurnId("other"))
    begun = await log.append(KEY, START, request())
    received: list[StoredEntry] = []
    async with asyncio.TaskGroup() as group:
        following = group.create_task(log.follow_into(KEY, Seq(0), received.extend))
        await asyncio.sleep(0)
        chain = await log.append(KEY, begun, attempt(begun))
        with pytest.raises(FenceLost):
            await log.append(KEY, begun, attempt(begun, "restart"))
        await log.append(other, START, request())
        assert list(log.stored) == [KEY, other]
        assert await log.find_turn_at(Scope(TENANT, WHOLE), Seq(3), name_turn) == ScopedKey.whole(other)
        hers = ScopedKey.whole(KEY)
        found = [await log.find_turn_at(hers.scope, Seq(at), name_turn, is_request=True) for at in (1, 2)]
        assert found == [hers, None]
        await asyncio.sleep(0.01)
        following.cancel()
    assert [one.seq for one in received] == [1, chain.last] == [1, 2]
    log.append_errors.append(LogFull("full"))
    with pytest.raises(LogFull):
        await log.append(KEY, chain, attempt(chain))
    await log.purge(KEY)
    with pytest.raises(TurnUnknown):
        await log.read_turn(ScopedKey.whole(KEY))


async def name_turn(key: ScopedKey, _: Request) -> ScopedKey:
    return key


async def test_claims_in_memory_belong_to_the_first_and_change_by_their_revision() -> None:
    claims, first, second = MemoryClaims(), Claim(TurnId("1"), "a"), Claim(TurnId("2"), "b")
    assert [await claims.claim(TENANT, "key", mine) for mine in (first, second)] == [first, first]
    found = await claims.read(TENANT, "key")
    assert found is not None
    assert await claims.replace(TENANT, "key", second, second) == first
    assert await claims.replace(TENANT, "key", first, second) == second
    assert await claims.renew(TENANT, "key", found) is None
    await claims.remove(TENANT, "key", found.revision)
    assert await claims.find(TENANT, "key") == second
    assert await claims.find(Tenant("theirs"), "key") is None


def test_slots_in_memory_are_limited_for_each_owner_and_expire() -> None:
    async def use() -> None:
        slots = MemorySlots()
        first = await slots.acquire(TENANT, "k", "streams", 2, "h", life_s=5)
        assert first is not None
        assert await slots.acquire(TENANT, "k", "streams", 2, "h") is not None
        assert await slots.acquire(TENANT, "k", "streams", 2, "late") is None
        assert await slots.acquire(TENANT, "other", "streams", 1, "h") is not None
        await asyncio.sleep(4)
        renewed = await slots.renew(first, "h", 5)
        assert renewed is not None
        assert await slots.renew(first, "h", 5) is None
        await asyncio.sleep(4)
        assert await slots.acquire(TENANT, "k", "streams", 2, "late") is None
        await slots.release(first.seq)
        assert await slots.acquire(TENANT, "k", "streams", 2, "late") is None
        await asyncio.sleep(2)
        assert await slots.acquire(TENANT, "k", "streams", 2, "late") is not None

    run(use())


async def test_a_named_addition_to_a_counter_in_memory_is_applied_once() -> None:
    counters = MemoryCounters()
    for _ in range(2):
        await counters.add_once("a", 5, "turn-1")
        await counters.add("a", 1)
    assert await counters.add("a", 0) == 7


def test_deliveries_in_memory_come_again_until_they_are_acknowledged() -> None:
    """After a release, after a lease without renewals, and not to two holders at once."""

    async def use() -> None:
        log, deliveries = MemoryLog(), MemoryDeliveries(ack_wait_s=10)
        log.turn_of(KEY).watches.append(deliveries.watch(KEY, Request, End))
        log.load(KEY, completed_turn("a").stored)
        request_delivery, end = await deliveries.next(5)
        assert (request_delivery.kind, end.kind, end.times) == ("request", "end", 1)
        await end.ack()
        assert await deliveries.next(5) == []
        await request_delivery.release(3)
        began = asyncio.get_running_loop().time()
        while not (again := await deliveries.next(5)):
            pass
        assert asyncio.get_running_loop().time() - began == pytest.approx(3)
        while not (expired := await deliveries.next(5)):
            pass
        assert [one.times for one in (*again, *expired)] == [2, 3]
        assert asyncio.get_running_loop().time() - began == pytest.approx(13)
        assert (await deliveries.backlog()).leased == 1
        await expired[0].ack()
        assert deliveries.is_done

    run(use())
