"""What is deleted is gone: from the log, from the database, whoever was writing it, and after every restart."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.conversation_match import Position
from tailrace.persistence.store import Store
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.resources import DeleteResource, Remaining
from tailrace.proto.subjects import PERSISTENCE, STREAM, TurnKey
from tests.harness.generator_in_loop import account
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import Process
from tests.harness.requests import posted
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, forget

SESSION = SessionId("session-1")


async def running(gateway: Gateway, **body: object) -> dict[str, Any]:
    answer = await gateway.client.post("/v1/turns", json=body)
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


async def is_over(claude: str, question: str, how: str) -> bool:
    """Whether there was one call for `question`, and that is where it stands."""
    return [call.over for call in (await account(claude)).calls if call.question == question] == [how]


async def status(gateway: Gateway, path: str) -> int:
    return (await gateway.client.get(path)).status_code


async def is_in_log(connection: Connection, turn: str) -> bool:
    info = await connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.*.{turn}.>")
    return bool(info.state.subjects)


async def is_out_of_log(connection: Connection, turn: str) -> bool:
    return not await is_in_log(connection, turn)


async def write(log: TurnLog, tenant: Tenant, **given: Any) -> TurnKey:
    writer = Writer(log, TurnKey(tenant, TurnId(new_id())))
    await writer.ask(session=SESSION, **given)
    await writer.begin("Light")
    await writer.end()
    return writer.key


@pytest.mark.rule("R35")
async def test_a_session_is_deleted_while_it_is_being_answered(
    gateway: Gateway, system_log: TurnLog, persistence: Process, claude: str
) -> None:
    """The model's stream is closed, no entry and no row is left, and nobody has recorded a turn without a log."""
    first = await posted(gateway)
    session, question = first["session"], "#sim words=100000 rate=50 tag=gone"
    last = await running(gateway, message=question, session=session)
    await until(lambda: is_over(claude, question, "open"))
    told = (await gateway.client.delete(f"/v1/sessions/{session}")).json()
    assert told == {
        "id": session,
        "object": "session.deleted",
        "deleted": True,
        "turns": 2,
        "session_id": session,
        "status": "deleted",
    }
    await until(lambda: is_over(claude, question, "aborted"))
    for turn in (first, last):
        assert not await is_in_log(system_log._connection, turn["turn"])
        assert await status(gateway, turn["links"]["self"]) == 404
    assert await status(gateway, f"/v1/sessions/{session}") == 404
    assert (await gateway.client.get("/v1/sessions")).json()["data"] == []
    assert persistence.said("turn was deleted from the log before it was recorded") == []


async def test_a_reader_of_a_turn_that_is_deleted_is_told_its_end(gateway: Gateway) -> None:
    """Its stream ends as that of a cancelled turn, and is not kept open for what will never come."""
    accepted = await running(gateway, message="#sim words=100000 rate=50")
    reading = asyncio.create_task(gateway.client.get(accepted["links"]["events"]))
    assert (await gateway.client.delete(accepted["links"]["self"])).status_code == 200
    assert '"outcome":"cancelled"' in (await reading).text


async def test_a_turn_that_was_read_and_deleted_is_told_by_no_gateway(
    gateway: Gateway, second_gateway: Gateway
) -> None:
    """Each has it in memory for whoever comes back, and nobody who comes now is told any of it, in any dialect."""
    accepted = await posted(gateway)
    turn, events = accepted["turn"], accepted["links"]["events"]
    everywhere = (gateway, second_gateway)
    paths = [
        *(f"{events}?dialect={dialect}" for dialect in DIALECTS),
        f"/v1/responses/{turn}?stream=true",
        f"/v1/responses/{turn}?stream=true&snapshot=1",
        f"/api/chat/{turn}/stream?startIndex=0",
        f"/api/stream/{turn}",
    ]
    for one in everywhere:
        assert {await status(one, path) for path in paths} == {200}
    assert (await gateway.client.delete(accepted["links"]["self"])).status_code == 200
    for one in everywhere:
        assert {await status(one, path) for path in paths} == {404}


@pytest.mark.rule("R35")
async def test_a_turn_takes_those_with_it_that_went_on_from_it(gateway: Gateway, system_log: TurnLog) -> None:
    """Their requests repeat what it said. What was before it, and beside it, stays, and the session goes on there."""
    root = await posted(gateway)
    session = root["session"]
    left = await posted(gateway, session=session, parent=root["turn"])
    middle = await posted(gateway, session=session, parent=root["turn"])
    leaf = await posted(gateway, session=session)
    assert (await gateway.client.delete(middle["links"]["self"])).json()["turns"] == 2
    turns = (await gateway.client.get(f"/v1/sessions/{session}/turns")).json()["turns"]
    assert [one["turn"] for one in turns] == [root["turn"], left["turn"]]
    for turn in (middle, leaf):
        assert not await is_in_log(system_log._connection, turn["turn"])
    following = await posted(gateway, session=session)
    assert (await gateway.client.get(following["links"]["self"])).json()["parent"] == left["turn"]


async def test_a_turn_goes_with_its_follow_up_that_is_running(gateway: Gateway, system_log: TurnLog) -> None:
    """None goes before all have ended: a follow-up without the turn before it would be found by nobody."""
    root = await posted(gateway)
    leaf = await running(gateway, message="#sim words=100000 rate=50", session=root["session"])
    assert (await gateway.client.delete(root["links"]["self"])).json()["turns"] == 2
    assert not await is_in_log(system_log._connection, leaf["turn"])
    assert await status(gateway, leaf["links"]["self"]) == 404


async def test_a_project_is_deleted_with_its_sessions(gateway: Gateway) -> None:
    """Those that were never asked anything, too; a session of another project, and one of none, stay."""
    other, project = new_id(), new_id()
    mine = [await posted(gateway, project=project) for _ in range(2)]
    theirs = [await posted(gateway, project=other), await posted(gateway)]
    await gateway.client.post("/v1/sessions", json={"id": "empty", "project_id": project})
    told = await gateway.client.delete(f"/v1/projects/{project}")
    assert (told.json()["turns"], told.json()["object"]) == (2, "project.deleted")
    assert [await status(gateway, one["links"]["self"]) for one in mine] == [404, 404]
    assert [await status(gateway, one["links"]["self"]) for one in theirs] == [200, 200]
    sessions = (await gateway.client.get("/v1/sessions")).json()["data"]
    assert [one["id"] for one in sessions] == [one["session"] for one in theirs[::-1]]
    projects = (await gateway.client.get("/v1/projects")).json()["data"]
    assert [one["id"] for one in projects] == [other]


@pytest.mark.parametrize("path", ["/v1/turns", "/v1/sessions", "/v1/projects"])
async def test_what_is_not_there_cannot_be_deleted(gateway: Gateway, path: str) -> None:
    """404, and the second time the same as for what never was."""
    accepted = await posted(gateway, project="rivers")
    names = {"/v1/turns": accepted["turn"], "/v1/sessions": accepted["session"], "/v1/projects": "rivers"}
    answers = [await gateway.client.delete(f"{path}/{name}") for name in (names[path], names[path], new_id())]
    assert [answer.status_code for answer in answers] == [200, 404, 404]
    assert answers[1].content == answers[2].content


@pytest.mark.rule("R35")
async def test_what_was_deleted_does_not_come_back_with_persistence(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """Not after a restart, and not in a new database, which is told everything that the log has."""
    gateway = await new_gateway(own_server.url)
    gone, stays = [await write(own_log, tenant) for _ in range(2)]
    for database in ("first.db", "first.db", "second.db"):
        async with Persistence(own_server.url, tmp_path / database) as persistence:
            await gateway.client.delete(f"/v1/turns/{gone.turn}")
            for key, there in ((gone, False), (stays, True)):
                assert (await status(gateway, f"/v1/turns/{key.turn}") == 200) == there
            assert (await persistence.ask(tenant, "turn", GetTurn(stays.turn), TurnRecord)).text == "Light"


@pytest.mark.rule("R35")
async def test_a_delivery_of_a_turn_that_is_gone_is_acknowledged_and_recorded_as_nothing(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """It was handed out before the purge; given back, it would come for ever, and recorded, the turn would be back."""
    key = await write(own_log, tenant)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    held = await deliveries.next(2)
    await own_log.purge(key)
    for delivery in held:
        await delivery.release()
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        await until(deliveries.is_drained)
        with pytest.raises(Refused, match="no turn has this id"):
            await persistence.ask(tenant, "turn", GetTurn(key.turn), TurnRecord)


@pytest.mark.rule("R35")
async def test_a_deletion_that_was_broken_off_is_finished_by_the_next(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """The log has forgotten a turn, and its row is still there: whoever deletes again finds it."""
    gateway = await new_gateway(own_server.url)
    key = await write(own_log, tenant)
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        assert await status(gateway, f"/v1/sessions/{SESSION}") == 200
        await own_log.purge(key)
        assert (await gateway.client.delete(f"/v1/sessions/{SESSION}")).json()["turns"] == 1
        assert await status(gateway, f"/v1/turns/{key.turn}") == 404


async def test_the_end_of_a_turn_that_is_deleted_is_recorded_before_the_log_forgets_it(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """A turn that has left the log before it was recorded is counted, and somebody is woken: not by a deletion."""
    gateway, before = await new_gateway(own_server.url), left_out()
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        for _ in range(30):
            writer = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
            await writer.open("Light")
            assert (await gateway.client.delete(f"/v1/turns/{writer.key.turn}")).status_code == 200
        assert (await gateway.client.get("/v1/sessions/session-1/turns")).json()["turns"] == []
    assert left_out() == before


async def test_a_turn_whose_log_is_gone_before_its_end_is_deleted(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """It runs in the database alone, and nobody can end it any more."""
    gateway = await new_gateway(own_server.url)
    writer = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
    await writer.open("Light")
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        path = f"/v1/turns/{writer.key.turn}"
        assert (await gateway.client.get(path)).json()["outcome"] == "running"
        await until(lambda: _is_known(gateway))
        await own_log.purge(writer.key)
        assert (await gateway.client.get(path)).json()["outcome"] == "failed"
        assert (await gateway.client.delete(path)).status_code == 200
        assert await status(gateway, path) == 404


async def test_a_deletion_that_takes_too_long_is_to_be_repeated(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a bound, for whoever is asked on and on in what they delete; what was done stays done."""
    accepted = await running(gateway, message="#sim words=100000 rate=50")
    path = f"/v1/sessions/{accepted['session']}"
    with monkeypatch.context() as patched:
        patched.setattr("tailrace.gateway.turns.delete.ROUNDS_MAX", 1)
        answer = await gateway.client.delete(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_busy")
    assert "repeat" in answer.json()["error"]["message"]
    assert (await gateway.client.get(accepted["links"]["self"])).json()["outcome"] == "cancelled"
    assert (await gateway.client.delete(path)).json()["turns"] == 1


@pytest.mark.parametrize("kind", ["sessions", "turns"])
async def test_what_is_asked_while_its_conversation_is_deleted_leaves_nothing_behind(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It repeats what was deleted. Its client is told to ask again, and the conversation begins and goes on."""
    first = await posted(gateway)
    session, find_position = first["session"], Conversations.find_position

    async def interrupted(*question: Any) -> Position:
        position: Position = await find_position(*question)
        assert await status(gateway, first["links"]["self"]) == 200
        path = {"sessions": f"/v1/sessions/{session}", "turns": first["links"]["self"]}[kind]
        assert (await gateway.client.delete(path)).status_code == 200
        return position

    with monkeypatch.context() as patched:
        patched.setattr(Conversations, "find_position", interrupted)
        body = {"message": "And then?", "session": session, "create_session": True}
        answer = await gateway.client.post("/v1/turns", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "parent_not_found")
    stream = await system_log._connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.{tenant}.>")
    assert not stream.state.subjects
    again = [await posted(gateway, session=session, create_session=True) for _ in range(2)]
    turns = (await gateway.client.get(f"/v1/sessions/{session}/turns")).json()["turns"]
    assert [(one["turn"], one["parent"]) for one in turns] == [
        (again[0]["turn"], None),
        (again[1]["turn"], again[0]["turn"]),
    ]


@pytest.mark.rule("R35")
async def test_what_a_gateway_asked_while_it_was_killed_does_not_outlive_what_it_repeats(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died between its entry and its look at the parent. Persistence reads every request, and takes this one out."""
    first = await posted(gateway)
    session, find_position = first["session"], Conversations.find_position

    async def interrupted(*question: Any) -> Position:
        position: Position = await find_position(*question)
        assert (await gateway.client.delete(first["links"]["self"])).status_code == 200
        return position

    async def killed(*_: object) -> bool:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(Conversations, "find_position", interrupted)
        patched.setattr("tailrace.gateway.turns.deleted_parent.is_deleted", killed)
        answer = await gateway.client.post("/v1/turns", json={"message": "And then?", "session": session})
    assert answer.status_code == 500

    async def is_gone() -> bool:
        stream = await system_log._connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.{tenant}.>")
        return not stream.state.subjects

    await until(is_gone)
    assert (await gateway.client.get(f"/v1/sessions/{session}/turns")).json()["turns"] == []


@pytest.mark.rule("R35")
async def test_what_is_asked_between_the_last_look_and_the_last_row_is_taken_out(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look of the deletion can see it, and its parent's row is still there: the tombstone is there before both."""
    root = await write(own_log, tenant)
    late: list[TurnKey] = []
    store_delete = Store.delete

    async def delete(self: Store, tenant: Tenant, what: DeleteResource) -> None:
        late.append(TurnKey(tenant, TurnId(new_id())))
        await Writer(own_log, late[0]).ask(session=SESSION, parent=root.turn)
        await until(lambda: is_out_of_log(own_log._connection, late[0].turn))
        await store_delete(self, tenant, what)

    monkeypatch.setattr(Store, "delete", delete)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        await persistence.ask(tenant, "turn", GetTurn(root.turn), TurnRecord)
        await own_log.purge(root)
        left = await persistence.ask(tenant, "delete", DeleteResource("turn", root.turn, (root.turn,)), Remaining)
        assert left.turns == []
        with pytest.raises(Refused, match="no turn has this id"):
            await persistence.ask(tenant, "turn", GetTurn(late[0].turn), TurnRecord)


@pytest.mark.rule("R35")
async def test_a_follow_up_of_what_the_database_has_lost_is_kept(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """Its parent is in no log and in no database, and nobody has deleted it."""
    root = await write(own_log, tenant)
    leaf = await write(own_log, tenant, parent=root.turn)
    await own_log.purge(root)
    async with Persistence(own_server.url, tmp_path / "new.db") as persistence:
        told = await persistence.ask(tenant, "turn", GetTurn(leaf.turn), TurnRecord)
    assert told.parent == root.turn


@pytest.mark.rule("R35")
async def test_an_orphan_is_found_by_whichever_persistence_reads_it(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """The one that deleted may be gone, its database too: who deleted what stands in NATS."""
    gateway = await new_gateway(own_server.url)
    root = await write(own_log, tenant)
    async with Persistence(own_server.url, tmp_path / "first.db"):
        assert (await gateway.client.delete(f"/v1/turns/{root.turn}")).status_code == 200
    leaf = await write(own_log, tenant, parent=root.turn)
    async with Persistence(own_server.url, tmp_path / "second.db"):
        await until(lambda: is_out_of_log(own_log._connection, leaf.turn))
        assert await status(gateway, f"/v1/sessions/{SESSION}") == 404


async def test_a_follow_up_of_what_was_deleted_and_asked_anew_is_kept(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """With its Idempotency-Key a deleted turn comes back under the same id, and its conversation may go on."""
    gateway = await new_gateway(own_server.url)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        root = await write(own_log, tenant)
        assert (await gateway.client.delete(f"/v1/turns/{root.turn}")).status_code == 200
        anew = Writer(own_log, root)
        await anew.ask(session=SESSION)
        await anew.begin("Light")
        await anew.end()
        leaf = await write(own_log, tenant, parent=root.turn)
        told = await persistence.ask(tenant, "turn", GetTurn(leaf.turn), TurnRecord)
    assert told.parent == root.turn


async def test_a_follow_up_of_a_conversation_that_has_left_the_log_is_kept(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Its parent is old, and not deleted: the database has it."""
    first = await posted(gateway)
    await forget(gateway, system_log, TurnKey(tenant, first["turn"]))
    following = await posted(gateway, session=first["session"])
    assert (await gateway.client.get(following["links"]["self"])).json()["parent"] == first["turn"]


async def test_a_turn_that_was_gone_on_from_while_it_was_purged_stays_until_that_is_purged_too(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """Without its row nobody would find the new one, which repeats what it said."""
    root = await write(own_log, tenant)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        leaf = await write(own_log, tenant, parent=root.turn)
        question = DeleteResource("turn", root.turn, (root.turn,))
        left = await persistence.ask(tenant, "delete", question, Remaining)
        assert [one.turn for one in left.turns] == [leaf.turn, root.turn]
        question = DeleteResource("turn", root.turn, (leaf.turn, root.turn))
        assert (await persistence.ask(tenant, "delete", question, Remaining)).turns == []


def left_out() -> float:
    return REGISTRY.get_sample_value("tailrace_persistence_turns_left_out_total") or 0.0


async def _is_known(gateway: Gateway) -> bool:
    return bool((await gateway.client.get("/v1/sessions")).json()["data"])
