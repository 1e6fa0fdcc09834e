"""`tailrace verify`: finds what the log or the database has lost, and leaves out what neither needs to have."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailrace.deploy.cli.verify import Verification, verify
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Tombstones, TurnLog
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.subjects import STREAM
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import as_user
from tests.harness.readers import read_all_entries
from tests.harness.requests import get
from tests.harness.turn_writer import new_writer, write_turn
from tests.integration.conftest import Gateway, forget

TEXTS = ("Light ", "takes ", "eight ", "minutes.")


@pytest.fixture
async def persistence_in_loop(own_server: NatsServer, tmp_path: Path) -> AsyncIterator[Persistence]:
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        yield persistence


async def find_differences(server: NatsServer) -> Verification:
    return await verify(as_user(server.url, ADMIN), lambda _: None)


@pytest.mark.rule("R144")
async def test_each_loss_is_found_and_named(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    keys = [await write_turn(own_log, *TEXTS, tenant=tenant) for _ in range(9)]
    running = new_writer(own_log, tenant)
    await running.open(*TEXTS)
    await get(own_gateway, "/v1/sessions?limit=1")
    assert await find_differences(own_server) == Verification(10, 0, [])
    leader = Leader(own_log.connection, STREAM)
    delta, end, request, gone, changed, unrecorded, no_row, *_ = keys
    lost = {key: await read_all_entries(own_log, key) for key in keys}
    for seq in (lost[delta][5].seq, lost[end][-1].seq, lost[request][0].seq):
        assert await leader.delete(seq)
    await own_log.purge(gone)
    with sqlite3.connect(persistence_in_loop.database) as database:
        database.execute("UPDATE turns SET text = 'Light' WHERE turn = ?", (changed.turn,))
        database.execute("UPDATE turns SET outcome = 'failed' WHERE turn = ?", (unrecorded.turn,))
        database.execute("DELETE FROM turns WHERE turn = ?", (no_row.turn,))
    database.close()
    found = await find_differences(own_server)
    assert (found.turns, found.left_out) == (10, 0)
    assert {one.turn: one.fault for one in found.differences} == {
        delta.turn: "lost entry",
        end.turn: "lost end",
        request.turn: "lost request",
        gone.turn: "not in the log",
        changed.turn: "other answer",
        unrecorded.turn: "other answer",
        no_row.turn: "not in the database",
    }


@pytest.mark.rule("R144")
async def test_unstored_deleted_and_expired_turns_are_left_out(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """Entries expire with the oldest one first."""
    expired = await write_turn(own_log, *TEXTS, tenant=tenant)
    half = await write_turn(own_log, *TEXTS, tenant=tenant)
    deleted = await write_turn(own_log, *TEXTS, tenant=tenant)
    half_deleted = await write_turn(own_log, *TEXTS, tenant=tenant)
    unstored = new_writer(own_log, tenant)
    await unstored.store_request(store=False)
    await unstored.begin(*TEXTS)
    await get(own_gateway, "/v1/sessions?limit=1")
    first = (await read_all_entries(own_log, half))[4].seq
    await forget(own_gateway, own_log, expired)
    await forget(own_gateway, own_log, half, before=first)
    assert (await own_gateway.client.delete(f"/v1/turns/{deleted.turn}")).is_success
    # A deletion that was killed between the log and the database.
    await Tombstones(own_log.connection).mark_deletion(half_deleted)
    await own_log.purge(half_deleted)
    found = await find_differences(own_server)
    assert (found.left_out, found.differences) == (1, [])
