"""Purged turns: readers, followers and writers notice the purge. Tombstones of deleted turns."""

import asyncio
from typing import Any

import pytest

from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Claims, Connection, Tombstones, TurnLog
from tailrace.proto.nats.stream_info import StreamInfo
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import CLAIMS_STREAM, tombstone
from tests.harness.own_system import OwnSystem
from tests.harness.turn_writer import Writer
from tests.harness.until import until_equal


@pytest.mark.rule("R35")
async def test_the_follower_of_a_purged_turn_raises_turn_unknown(
    log: TurnLog, key: TurnKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a reader would wait for the end for ever."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.05)
    await Writer(log, key).open("Light")
    follower = log.follow(ScopedKey.whole(key))
    assert await anext(follower)
    await log.purge(key)
    async with asyncio.timeout(5):
        with pytest.raises(TurnUnknown):
            await anext(follower)


@pytest.mark.rule("R35")
async def test_the_generator_of_a_purged_turn_closes_its_call(own: OwnSystem) -> None:
    """Its next append is refused, and no entry is stored again."""
    async with own.running_generator():
        key = await own.append_request("words=100000 rate=200")
        await own.wait_for_open_streams(1)
        await own.log.purge(key)
        await own.wait_for_open_streams(0)
        assert await own.calls() == 1
        await own.wait_until_acknowledged()
    assert await own.log.read_entries(ScopedKey.whole(key)) == []


async def test_without_a_server_nothing_is_purged_and_tombstones_are_unavailable(own: OwnSystem, key: TurnKey) -> None:
    tombstones = Tombstones(own.connection)
    await own.server.stop()
    for refused in (own.log.purge(key), tombstones.put([key]), tombstones.exists(key)):
        with pytest.raises(LogUnavailable):
            await refused


# Tombstones


@pytest.mark.rule("R35")
async def test_a_tombstone_is_of_one_turn_of_one_tenant(connection: Connection, key: TurnKey) -> None:
    """Another tenant's turn with that id is not deleted, nor is another turn."""
    tombstones = Tombstones(connection)
    assert not await tombstones.exists(key)
    for _ in range(2):
        await tombstones.put([key])
    assert await tombstones.exists(key)
    assert not await tombstones.exists(TurnKey(Tenant("other"), key.turn))
    assert not await tombstones.exists(TurnKey(key.tenant, TurnId(new_id())))


@pytest.mark.rule("R35")
@pytest.mark.rule("R109")
async def test_a_tombstone_says_whether_the_turn_was_deleted_or_erased(connection: Connection, key: TurnKey) -> None:
    """The deletion of an erased turn counts. A turn whose deletion has begun is deleted."""
    tombstones = Tombstones(connection)
    assert await tombstones.find(key) is None
    await tombstones.put_erased(key)
    assert (await tombstones.find(key), await tombstones.exists(key)) == ("erased", True)
    await tombstones.put([key])
    assert await tombstones.find(key) == "deleted"
    running = TurnKey(key.tenant, TurnId(new_id()))
    await tombstones.mark_deletion(running)
    assert await tombstones.find(running) == "deleted"


async def test_a_tombstone_is_neither_a_claim_nor_an_entry(connection: Connection, log: TurnLog, key: TurnKey) -> None:
    """It shares a bucket with claims and the id with entries."""
    await Tombstones(connection).put([key])
    assert await Claims(connection).find(key.tenant, f"deleted.{key.tenant}.{key.turn}") is None
    assert await log.read_entries(ScopedKey.whole(key)) == []
    await Writer(log, key).store_request()
    assert len(await log.read_entries(ScopedKey.whole(key))) == 1


async def test_a_thousand_tombstones_are_put_at_once(connection: Connection, tenant: Tenant) -> None:
    """One round of a deletion has as many."""
    turns = [TurnKey(tenant, TurnId(new_id())) for _ in range(1_000)]
    tombstones = Tombstones(connection)
    await tombstones.put(turns)
    assert all([await tombstones.exists(turns[number]) for number in (0, 500, 999)])


async def test_all_tombstones_are_read_with_a_few_requests(
    own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start after a restore reads them. There is more than one page, and those of the first expire meanwhile.

    One before each request, and then all of a tenant between two requests.
    """
    turns = [TurnKey(Tenant(tenant), TurnId(f"{number:06}")) for tenant in "ab" for number in range(50_010)]
    for turn in turns:
        await own_connection.publish(tombstone(turn), b"")
        if turn.turn.endswith("000"):
            await own_connection.client.flush()
    await until_equal(lambda: count_messages(own_connection), len(turns))
    read_page, requests = own_connection.stream_info, 0

    async def expire_one(*args: Any, **kwargs: Any) -> StreamInfo:
        nonlocal requests
        await own_connection.jetstream.purge_stream(CLAIMS_STREAM, subject=tombstone(turns[requests]))
        requests += 1
        return await read_page(*args, **kwargs)

    monkeypatch.setattr(own_connection, "stream_info", expire_one)
    assert [turn async for turn in Tombstones(own_connection).every()] == turns[1:]
    assert requests < 5
    left = turns[requests:]
    reading = Tombstones(own_connection).every()
    found = [await anext(reading)]
    await own_connection.jetstream.purge_stream(CLAIMS_STREAM, subject="$KV.CLAIMS.deleted.a.>")
    found += [turn async for turn in reading]
    assert found == left[1:]
    assert requests < 10


async def count_messages(connection: Connection) -> int:
    return (await connection.stream_info(CLAIMS_STREAM)).state.messages
