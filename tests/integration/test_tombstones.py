"""Tombstones of deleted turns on a real server."""

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Claims, Connection, Tombstones, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.turn_writer import Writer


@pytest.mark.rule("R35")
async def test_a_tombstone_is_of_one_turn_of_one_tenant(connection: Connection, key: TurnKey) -> None:
    """Put twice it is one; another tenant's turn of that id is not deleted, nor is another of this one."""
    tombstones = Tombstones(connection)
    assert not await tombstones.exists(key)
    for _ in range(2):
        await tombstones.put([key])
    assert await tombstones.exists(key)
    assert not await tombstones.exists(TurnKey(Tenant("other"), key.turn))
    assert not await tombstones.exists(TurnKey(key.tenant, TurnId(new_id())))


async def test_a_tombstone_is_no_claim_and_no_entry(connection: Connection, log: TurnLog, key: TurnKey) -> None:
    """It shares a bucket with the one and an id with the other; nobody takes it for either."""
    await Tombstones(connection).put([key])
    assert await Claims(connection).find(key.tenant, f"deleted.{key.tenant}.{key.turn}") is None
    assert await log.replay(key) == []
    await Writer(log, key).ask()
    assert len(await log.replay(key)) == 1


async def test_a_thousand_are_put_at_once(connection: Connection, tenant: Tenant) -> None:
    """As many as one round of a deletion has."""
    turns = [TurnKey(tenant, TurnId(new_id())) for _ in range(1_000)]
    tombstones = Tombstones(connection)
    await tombstones.put(turns)
    assert all([await tombstones.exists(turns[place]) for place in (0, 500, 999)])


async def test_without_a_server_nobody_says_that_a_turn_was_deleted(
    own_server: NatsServer, own_connection: Connection, key: TurnKey
) -> None:
    """Nor that it was not: either would be a guess about what may be in the log for good."""
    tombstones = Tombstones(own_connection)
    await own_server.stop()
    with pytest.raises(LogUnavailable):
        await tombstones.put([key])
    with pytest.raises(LogUnavailable):
        await tombstones.exists(key)
