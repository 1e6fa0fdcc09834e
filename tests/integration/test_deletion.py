"""Deletion of turns, sessions and projects from the log and the database, also while they run and during faults."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.gateway import DIALECTS
from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.conversation_match import Position
from tailrace.persistence.store import Store
from tailrace.proto import subjects
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.resources import DeletedRows, DeleteResource, Remaining
from tailrace.proto.subjects import PERSISTENCE, STREAM
from tests.harness.generator_in_loop import read_calls
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import Process
from tests.harness.requests import post_until_ended
from tests.harness.turn_writer import Writer
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, forget

SESSION = SessionId("session-1")
ENDLESS = "#sim words=100000 rate=50"


async def post(gateway: Gateway, **body: object) -> dict[str, Any]:
    """Posts a turn that runs until it is deleted."""
    answer = await gateway.client.post("/v1/turns", json={"message": ENDLESS, **body})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def status(gateway: Gateway, path: str) -> int:
    return (await gateway.client.get(path)).status_code


async def turns_of(gateway: Gateway, session: str) -> list[dict[str, Any]]:
    return list((await gateway.client.get(f"/v1/sessions/{session}/turns")).json()["turns"])


async def has_left_log(connection: Connection, turn: str = "*", tenant: str = "*") -> bool:
    info = await connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.{tenant}.{turn}.>")
    return not info.state.subjects


async def write(log: TurnLog, tenant: Tenant, *, is_ended: bool = True, **request: Any) -> TurnKey:
    writer = Writer(log, TurnKey(tenant, TurnId(new_id())))
    await writer.store_request(session=SESSION, **request)
    await writer.begin("Light")
    if is_ended:
        await writer.end()
    return writer.key


async def parent_of(persistence: Persistence, key: TurnKey) -> str | None:
    return (await persistence.ask(key.tenant, "turn", GetTurn(key.turn), TurnRecord)).parent


@pytest.fixture
async def persistence_in_loop(own_server: NatsServer, tmp_path: Path) -> AsyncIterator[Persistence]:
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        yield persistence


@pytest.mark.rule("R35")
async def test_deleting_a_session_cancels_its_running_turn(
    gateway: Gateway, system_log: TurnLog, persistence: Process, claude: str
) -> None:
    """Its reader gets the end of a cancelled turn."""
    first = await post_until_ended(gateway)
    session, message = first["session"], f"{ENDLESS} tag=gone"

    async def calls() -> list[str]:
        return [call.over for call in (await read_calls(claude)).calls if call.question == message]

    last = await post(gateway, message=message, session=session)
    reading = asyncio.create_task(gateway.client.get(last["links"]["events"]))
    await until_equal(calls, ["open"])
    deleted = {"id": session, "object": "session.deleted", "deleted": True, "turns": 2}
    compatible = {"session_id": session, "status": "deleted"}
    assert (await gateway.client.delete(f"/v1/sessions/{session}")).json() == deleted | compatible
    await until_equal(calls, ["aborted"])
    assert '"outcome":"cancelled"' in (await reading).text
    for turn in (first, last):
        assert await has_left_log(system_log.connection, turn["turn"])
        assert await status(gateway, turn["links"]["self"]) == 404
    assert await status(gateway, f"/v1/sessions/{session}") == 404
    assert (await gateway.client.get("/v1/sessions")).json()["data"] == []
    left_out = {line["turn"] for line in persistence.find_lines("turn cannot be recorded")}
    assert left_out.isdisjoint({first["turn"], last["turn"]})


async def test_a_deleted_turn_is_404_on_every_route_of_gateways_that_have_read_it(
    gateway: Gateway, second_gateway: Gateway
) -> None:
    accepted = await post_until_ended(gateway)
    turn, events = accepted["turn"], accepted["links"]["events"]
    paths = [
        *(f"{events}?dialect={dialect}" for dialect in DIALECTS),
        f"/v1/responses/{turn}?stream=true",
        f"/v1/responses/{turn}?stream=true&snapshot=1",
        f"/api/chat/{turn}/stream?startIndex=0",
        f"/api/stream/{turn}",
    ]
    for one in (gateway, second_gateway):
        assert {*await asyncio.gather(*(status(one, path) for path in paths))} == {200}
    assert (await gateway.client.delete(accepted["links"]["self"])).status_code == 200
    for one in (gateway, second_gateway):
        assert {*await asyncio.gather(*(status(one, path) for path in paths))} == {404}


@pytest.mark.rule("R35")
async def test_deleting_a_turn_deletes_the_turns_that_follow_it(gateway: Gateway, system_log: TurnLog) -> None:
    """Their requests repeat it. The turns before and beside it stay, and the session continues there."""
    root = await post_until_ended(gateway)
    session = root["session"]
    left = await post_until_ended(gateway, session=session, parent=root["turn"])
    middle = await post_until_ended(gateway, session=session, parent=root["turn"])
    leaf = await post(gateway, session=session)
    assert (await gateway.client.delete(middle["links"]["self"])).json()["turns"] == 2
    assert [one["turn"] for one in await turns_of(gateway, session)] == [root["turn"], left["turn"]]
    for turn in (middle, leaf):
        assert await has_left_log(system_log.connection, turn["turn"])
        assert await status(gateway, turn["links"]["self"]) == 404
    following = await post_until_ended(gateway, session=session)
    assert (await gateway.client.get(following["links"]["self"])).json()["parent"] == left["turn"]


async def test_deleting_a_project_deletes_its_sessions(gateway: Gateway) -> None:
    """Empty sessions too; sessions of another project and of none stay. What the turns have cost is still counted."""
    other, project = new_id(), new_id()
    deleted = [await post_until_ended(gateway, project=project) for _ in range(2)]
    kept = [await post_until_ended(gateway, project=other), await post_until_ended(gateway)]
    await gateway.client.post("/v1/sessions", json={"id": "empty", "project_id": project})
    usage = (await gateway.client.get("/v1/usage")).json()["data"]
    answer = (await gateway.client.delete(f"/v1/projects/{project}")).json()
    assert (await gateway.client.get("/v1/usage")).json()["data"] == usage
    assert (answer["turns"], answer["object"]) == (2, "project.deleted")
    assert [await status(gateway, one["links"]["self"]) for one in deleted] == [404, 404]
    assert [await status(gateway, one["links"]["self"]) for one in kept] == [200, 200]
    sessions = (await gateway.client.get("/v1/sessions")).json()["data"]
    assert [one["id"] for one in sessions] == [one["session"] for one in kept[::-1]]
    projects = (await gateway.client.get("/v1/projects")).json()["data"]
    assert [one["id"] for one in projects] == [other]


@pytest.mark.rule("R35")
async def test_the_text_of_a_deleted_session_leaves_the_database_and_its_journal(
    own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """Within seconds. SQLite would keep it in free pages, and in the journal until that is overwritten."""
    text = "a text that no other file contains " * 200
    await write(own_log, tenant, messages=[Message("user", text)])
    folder = persistence_in_loop.database.parent

    def files() -> list[str]:
        return [file.name for file in folder.glob("tailrace.db*") if text[:30].encode() in file.read_bytes()]

    await until(lambda: turns_of(own_gateway, SESSION))
    assert files() != []
    assert (await own_gateway.client.delete(f"/v1/sessions/{SESSION}")).status_code == 200
    await until(lambda: not files())


@pytest.mark.rule("R35")
async def test_a_deleted_turn_does_not_return_after_a_restart_or_in_a_new_database(
    own_server: NatsServer, own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, tmp_path: Path
) -> None:
    gone, kept = [await write(own_log, tenant) for _ in range(2)]
    for database in ("first.db", "first.db", "second.db"):
        async with Persistence(own_server.url, tmp_path / database) as persistence:
            await own_gateway.client.delete(f"/v1/turns/{gone.turn}")
            for key, expected in ((gone, 404), (kept, 200)):
                assert await status(own_gateway, f"/v1/turns/{key.turn}") == expected
            assert (await persistence.ask(tenant, "turn", GetTurn(kept.turn), TurnRecord)).text == "Light"


@pytest.mark.rule("R35")
async def test_a_delivery_of_a_purged_turn_is_acknowledged_and_not_recorded(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    key = await write(own_log, tenant)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    held = await deliveries.next(2)
    await own_log.purge(key)
    for delivery in held:
        await delivery.release()
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        await until(deliveries.is_drained)
        with pytest.raises(Refused, match="no turn has this id"):
            await parent_of(persistence, key)


@pytest.mark.rule("R35")
@pytest.mark.parametrize("is_ended", [True, False], ids=["ended", "running"])
async def test_a_turn_that_is_only_in_the_database_is_deleted(
    own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, persistence_in_loop: Persistence, is_ended: bool
) -> None:
    """A deletion broke off after the purge, or the log lost a running turn."""
    key = await write(own_log, tenant, is_ended=is_ended)
    path = f"/v1/turns/{key.turn}"
    await until(lambda: turns_of(own_gateway, SESSION))
    await own_log.purge(key)
    assert (await own_gateway.client.get(path)).json()["outcome"] == ("completed" if is_ended else "failed")
    assert (await own_gateway.client.delete(f"/v1/sessions/{SESSION}" if is_ended else path)).json()["turns"] == 1
    assert await status(own_gateway, path) == 404


async def test_a_recorded_turn_is_deleted_although_its_request_cannot_be_decoded_any_more(
    own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """Each step of the deletion reads the turn, and so does the recorder, for which queries wait."""
    key = await write(own_log, tenant)
    await forget(own_gateway, own_log, key)
    await own_log.connection.jetstream.publish(subjects.entry(key, "request"), b"{")
    async with asyncio.timeout(5):
        answer = await own_gateway.client.delete(f"/v1/turns/{key.turn}")
    assert (answer.status_code, answer.json().get("turns")) == (200, 1)
    assert await has_left_log(own_log.connection, key.turn)


async def test_turns_that_are_only_in_the_database_are_looked_up_in_the_log_together(
    own_log: TurnLog,
    own_gateway: Gateway,
    tenant: Tenant,
    persistence_in_loop: Persistence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A read of each takes 100 ms, because the log's leader must deny a turn twice."""
    turns = [await write(own_log, tenant) for _ in range(3)]
    for key in turns:
        await forget(own_gateway, own_log, key)

    async def fail(_: TurnLog, key: ScopedKey) -> Turn:
        raise AssertionError(f"the gateway reads {key.turn}, which the log does not have")

    monkeypatch.setattr(TurnLog, "read_turn", fail)
    answer = await own_gateway.client.delete(f"/v1/sessions/{SESSION}")
    assert (answer.status_code, answer.json().get("turns")) == (200, len(turns))


async def test_the_end_of_a_deleted_turn_is_recorded_before_the_purge(
    own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """Otherwise an alert would count it as lost by the log."""

    def left_out() -> float:
        return REGISTRY.get_sample_value("tailrace_persistence_turns_left_out_total") or 0.0

    before = left_out()
    for _ in range(10):
        key = await write(own_log, tenant, is_ended=False)
        assert (await own_gateway.client.delete(f"/v1/turns/{key.turn}")).status_code == 200
    assert await turns_of(own_gateway, SESSION) == []
    assert left_out() == before


async def test_a_deletion_above_its_bound_is_409_and_can_be_repeated(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients may add turns faster than they are deleted."""
    accepted = await post(gateway)
    path = f"/v1/sessions/{accepted['session']}"
    with monkeypatch.context() as patched:
        patched.setattr("tailrace.gateway.turns.delete.ROUNDS_MAX", 1)
        answer = await gateway.client.delete(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_busy")
    assert "repeat" in answer.json()["error"]["message"]
    assert (await gateway.client.get(accepted["links"]["self"])).json()["outcome"] == "cancelled"
    assert (await gateway.client.delete(path)).json()["turns"] == 1


async def test_a_deletion_of_more_turns_than_its_bound_of_rounds_is_completed(
    own_log: TurnLog,
    own_gateway: Gateway,
    tenant: Tenant,
    persistence_in_loop: Persistence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each round deletes as many turns as it may."""
    monkeypatch.setattr("tailrace.gateway.turns.delete.ROUNDS_MAX", 2)
    monkeypatch.setattr("tailrace.gateway.turns.delete.MANY_TURNS", 1)
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 1)
    for _ in range(4):
        await write(own_log, tenant)
    answer = await own_gateway.client.delete(f"/v1/sessions/{SESSION}")
    assert (answer.status_code, answer.json()["turns"]) == (200, 4)


def delete_after_position(gateway: Gateway, path: str) -> Any:
    """Returns a `find_position` that deletes `path` between the position and the request entry."""
    find_position = Conversations.find_position

    async def find(*arguments: Any) -> Position:
        position: Position = await find_position(*arguments)
        assert (await gateway.client.delete(path)).status_code == 200
        return position

    return find


@pytest.mark.parametrize("kind", ["session", "turn"])
async def test_a_turn_posted_during_the_deletion_of_its_session_is_refused_and_not_stored(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The client may post again: the session begins anew."""
    first = await post_until_ended(gateway)
    session = first["session"]
    assert await status(gateway, first["links"]["self"]) == 200
    with monkeypatch.context() as patched:
        patched.setattr(Conversations, "find_position", delete_after_position(gateway, f"/v1/{kind}s/{first[kind]}"))
        body = {"message": "And then?", "session": session, "create_session": True}
        answer = await gateway.client.post("/v1/turns", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "parent_not_found")
    assert await has_left_log(system_log.connection, tenant=tenant)
    again = [(await post_until_ended(gateway, session=session, create_session=True))["turn"] for _ in range(2)]
    assert [(one["turn"], one["parent"]) for one in await turns_of(gateway, session)] == [
        (again[0], None),
        (again[1], again[0]),
    ]


@pytest.mark.rule("R35")
async def test_persistence_deletes_a_turn_that_a_killed_gateway_stored_after_its_parent_was_deleted(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway died between the request entry and its check of the parent."""
    first = await post_until_ended(gateway)

    async def fail(*_: object) -> bool:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(Conversations, "find_position", delete_after_position(gateway, first["links"]["self"]))
        patched.setattr("tailrace.gateway.turns.deleted_parent.is_deleted", fail)
        body = {"message": "And then?", "session": first["session"]}
        assert (await gateway.client.post("/v1/turns", json=body)).status_code == 500
    await until(lambda: has_left_log(system_log.connection, tenant=tenant))
    assert await turns_of(gateway, first["session"]) == []


@pytest.mark.rule("R35")
async def test_an_append_that_survives_the_purge_of_a_follow_up_is_removed(
    own_log: TurnLog,
    own_gateway: Gateway,
    tenant: Tenant,
    persistence_in_loop: Persistence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three servers store an append that was in flight when the purge began, and its generator goes on."""
    root, leaf = await write(own_log, tenant), Writer(own_log, TurnKey(tenant, TurnId(new_id())))
    purge, in_flight = TurnLog.purge, [b"{}"]

    async def purge_before_append(self: TurnLog, key: TurnKey) -> None:
        await purge(self, key)
        if key == leaf.key and in_flight:
            await own_log.connection.jetstream.publish(f"turns.{tenant}.{key.turn}.event", in_flight.pop())

    monkeypatch.setattr(TurnLog, "purge", purge_before_append)
    assert (await own_gateway.client.delete(f"/v1/turns/{root.turn}")).status_code == 200
    await leaf.store_request(session=SESSION, parent=root.turn)
    await until(lambda: not in_flight)
    await until(lambda: has_left_log(own_log.connection, leaf.key.turn))


@pytest.mark.rule("R35")
async def test_a_turn_stored_between_the_last_check_and_the_last_row_is_deleted(
    own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tombstone of its parent is stored before both."""
    root = await write(own_log, tenant)
    late: list[TurnKey] = []
    store_delete = Store.delete

    async def delete(self: Store, tenant: Tenant, what: DeleteResource) -> DeletedRows:
        late.append(TurnKey(tenant, TurnId(new_id())))
        await Writer(own_log, late[0]).store_request(session=SESSION, parent=root.turn)
        await until(lambda: has_left_log(own_log.connection, late[0].turn))
        return await store_delete(self, tenant, what)

    monkeypatch.setattr(Store, "delete", delete)
    assert await parent_of(persistence_in_loop, root) is None
    await own_log.purge(root)
    question = DeleteResource("turn", root.turn, (root.turn,))
    assert (await persistence_in_loop.ask(tenant, "delete", question, Remaining)).turns == []
    with pytest.raises(Refused, match="no turn has this id"):
        await parent_of(persistence_in_loop, late[0])


async def test_the_database_keeps_a_purged_turn_until_its_new_follow_up_is_purged(
    own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """Without the row the follow-up, which repeats the turn, could not be found."""
    root = await write(own_log, tenant)
    leaf = await write(own_log, tenant, parent=root.turn)
    for purged, left in (((root.turn,), [leaf.turn, root.turn]), ((leaf.turn, root.turn), [])):
        question = DeleteResource("turn", root.turn, purged)
        remaining = await persistence_in_loop.ask(tenant, "delete", question, Remaining)
        assert [one.turn for one in remaining.turns] == left


@pytest.mark.rule("R35")
async def test_another_persistence_deletes_a_follow_up_of_a_deleted_turn(
    own_server: NatsServer, own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, tmp_path: Path
) -> None:
    """The tombstones are in NATS, and not in the database of the process that deleted."""
    root = await write(own_log, tenant)
    async with Persistence(own_server.url, tmp_path / "first.db"):
        assert (await own_gateway.client.delete(f"/v1/turns/{root.turn}")).status_code == 200
    leaf = await write(own_log, tenant, parent=root.turn)
    async with Persistence(own_server.url, tmp_path / "second.db"):
        await until(lambda: has_left_log(own_log.connection, leaf.turn))
        assert await status(own_gateway, f"/v1/sessions/{SESSION}") == 404


@pytest.mark.rule("R35")
async def test_a_follow_up_of_an_unknown_turn_or_of_one_that_was_posted_again_is_kept(
    own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """A log and database may have lost the parent. A POST during the deletion can store a turn again under its id."""
    unknown, deleted = TurnKey(tenant, TurnId(new_id())), await write(own_log, tenant)
    assert (await own_gateway.client.delete(f"/v1/turns/{deleted.turn}")).status_code == 200
    again = Writer(own_log, deleted)
    await again.store_request(session=SESSION)
    await again.begin("Light")
    await again.end()
    for root in (unknown, deleted):
        assert await parent_of(persistence_in_loop, await write(own_log, tenant, parent=root.turn)) == root.turn


async def test_a_follow_up_of_a_turn_that_has_left_the_log_is_kept(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    first = await post_until_ended(gateway)
    await forget(gateway, system_log, TurnKey(tenant, first["turn"]))
    following = await post_until_ended(gateway, session=first["session"])
    assert (await gateway.client.get(following["links"]["self"])).json()["parent"] == first["turn"]
