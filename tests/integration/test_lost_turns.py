"""Turns that leave the log without an end have failed: in every route and dialect, and in the database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.gateway import DIALECTS
from tailrace.features.usage.records import GetStats, Stats
from tailrace.persistence.lost_turns import LostTurnFinder
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import Batch, BatchSource
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnKey
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import PERSISTENCE, STREAM
from tests.conftest import apply_streams
from tests.harness.open_store import open_store
from tests.harness.persistence_in_loop import Persistence
from tests.harness.readers import is_read, read, read_bytes, story_of
from tests.harness.requests import get
from tests.harness.turn_writer import new_writer
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, NewGateway, forget

SESSION = SessionId("session-1")
LOST = {"code": LOST_FAILURE.code, "message": LOST_FAILURE.message}


@pytest.fixture
async def persistence_in_loop(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Persistence]:
    """Persistence that looks for lost turns often."""
    monkeypatch.setattr("tailrace.persistence.lost_turns.INTERVAL_S", 0.05)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        yield persistence


@pytest.fixture
async def lost_turn(
    own_gateway: Gateway, own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence
) -> TurnKey:
    """A turn with a text that has left the log before its end."""
    writer = new_writer(own_log, tenant)
    await writer.store_request(session=SESSION)
    await writer.begin("Light ")
    await forget(own_gateway, own_log, writer.key)
    return writer.key


async def outcomes(gateway: Gateway, session: str = SESSION) -> list[str]:
    return [turn["outcome"] for turn in (await get(gateway, f"/v1/sessions/{session}/turns"))["turns"]]


async def until_recorded(gateway: Gateway) -> None:
    """Waits until the database has the failure: branches come from it alone."""

    async def is_recorded() -> bool:
        branches = (await get(gateway, f"/v1/sessions/{SESSION}/branches"))["data"]
        return [branch["outcome"] for branch in branches] == ["failed"]

    await until(is_recorded)


@pytest.mark.rule("F32")
async def test_a_lost_turn_has_failed_on_every_route_and_in_every_dialect(
    own_gateway: Gateway, lost_turn: TurnKey
) -> None:
    """Whether the database has the failure or not. Plain text has no word for it and only breaks off."""
    client = own_gateway.client
    turn = await get(own_gateway, f"/v1/turns/{lost_turn.turn}")
    assert (turn["outcome"], turn["error"]["code"], turn["error"]["message"]) == ("failed", *LOST.values())
    response = await get(own_gateway, f"/v1/responses/resp_{lost_turn.turn}")
    assert (response["status"], response["error"]["message"]) == ("failed", LOST_FAILURE.message)
    assert response["usage"] is not None
    cancelled = await client.post(f"/v1/responses/resp_{lost_turn.turn}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "failed")
    for path in (f"/v1/turns/{lost_turn.turn}/cancel", f"/api/chat/{lost_turn.turn}/stop"):
        assert (await client.post(path)).json()["outcome"] == "failed"
    # AI SDK would show the old error each time its page loads.
    assert (await client.get(f"/api/chat/{SESSION}/stream")).status_code == 204
    for dialect in sorted(set(DIALECTS) - {"text"}):
        received = await read_bytes(client, f"/v1/turns/{lost_turn.turn}/events?dialect={dialect}")
        assert LOST_FAILURE.message in received.decode(), dialect


@pytest.mark.rule("F31")
async def test_a_reader_that_has_only_the_request_of_a_lost_turn_learns_of_its_failure_once(
    own_gateway: Gateway, own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """The database has recorded the same entry: its sequence is the reader's cursor. A 204 would look like the end."""
    writer = new_writer(own_log, tenant)
    await writer.store_request()
    await forget(own_gateway, own_log, writer.key)
    received = await read(own_gateway.client, writer.key.turn, writer.chain.last)
    assert LOST_FAILURE.message in str(received.frames)
    again = await read(own_gateway.client, writer.key.turn, received.frames[-1].seq)
    assert (again.over, again.frames) == ("ended", ())


@pytest.mark.rule("R27")
async def test_the_database_records_a_lost_turn_as_the_gateway_has_reported_it(
    own_gateway: Gateway, lost_turn: TurnKey
) -> None:
    """Afterwards the session is free."""
    before = await get(own_gateway, f"/v1/turns/{lost_turn.turn}")
    for _ in range(2):
        turns = (await get(own_gateway, f"/v1/sessions/{SESSION}/turns"))["turns"]
        assert turns == [before]
        await until_recorded(own_gateway)
    assert await get(own_gateway, f"/v1/turns/{lost_turn.turn}") == before
    assert (before["outcome"], before["error"]) == ("failed", LOST)
    assert (await get(own_gateway, "/v1/sessions/stats"))["claude_sessions"] == []
    answer = await own_gateway.client.post("/v1/turns", json={"message": "And now?", "session": SESSION})
    assert (answer.status_code, answer.json()["session"]) == (202, SESSION)
    following = await get(own_gateway, f"/v1/turns/{answer.json()['turn']}")
    assert (following["parent"], following["outcome"]) == (lost_turn.turn, "running")


async def test_a_lost_batch_is_over_on_the_routes_of_openai_and_anthropic(
    own_gateway: Gateway, own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    """It would be polled for ever otherwise. Its results can be read, and the time of its end is not known."""

    async def lost_batch(source: BatchSource) -> str:
        """Returns the id of a batch with one input that has left the log before its end."""
        writer = new_writer(own_log, tenant)
        await writer.store_request(messages=[], session=SESSION, batch=Batch("0" * 64, 1, 1, 1, source=source))
        await forget(own_gateway, own_log, writer.key)
        return writer.key.turn

    client, chat = own_gateway.client, BatchSource("file-1", "/v1/chat/completions")
    batch = await get(own_gateway, f"/v1/batches/batch_{await lost_batch(chat)}")
    assert (batch["status"], batch["failed_at"], batch["output_file_id"]) == ("failed", None, None)
    assert batch["errors"]["data"][0]["message"] == LOST_FAILURE.message
    file = await get(own_gateway, f"/v1/files/{batch['error_file_id']}")
    assert (file["created_at"], file["bytes"] > 0) == (batch["created_at"], True)
    content = (await client.get(f"/v1/files/{batch['error_file_id']}/content")).json()
    assert content["error"]["message"] == LOST_FAILURE.message
    invalid = BatchSource("file-1", "/v1/chat/completions", refused=1, is_invalid=True)
    assert (await get(own_gateway, f"/v1/batches/batch_{await lost_batch(invalid)}"))["status"] == "failed"

    path = f"/v1/messages/batches/msgbatch_{await lost_batch(BatchSource(None, '/v1/messages'))}"
    batch = await get(own_gateway, path)
    assert (batch["processing_status"], batch["ended_at"]) == ("ended", None)
    assert (batch["request_counts"]["processing"], batch["request_counts"]["errored"]) == (0, 1)
    assert (await client.get(batch["results_url"])).json()["result"]["type"] == "errored"
    deleted = await client.delete(path)
    assert (deleted.status_code, deleted.json()["type"]) == (200, "message_batch_deleted")


async def outcome(persistence: Persistence, key: TurnKey) -> str:
    return (await persistence.ask(key.tenant, "turn", GetTurn(key.turn), TurnRecord)).outcome


async def until_lost(persistence: Persistence, key: TurnKey) -> None:
    await until_equal(lambda: outcome(persistence, key), "failed")


@pytest.mark.rule("R27")
@pytest.mark.rule("F31")
async def test_a_database_restored_beside_a_new_log_has_no_old_running_turns(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """The sequences of the old turns may be those of new ones."""
    restored, known, *others = [new_writer(own_log, tenant) for _ in range(9)]
    for writer in (*others, restored):
        await writer.store_request(session=SessionId(f"of-{writer.key.turn}"))
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as before:
        assert await outcome(before, restored.key) == "running"
    await own_connection.jetstream.delete_stream(STREAM)
    await apply_streams(own_server.url)
    await known.store_request(session=SESSION)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as after:
        await until_lost(after, restored.key)
        assert await outcome(after, known.key) == "running"
        assert (await after.ask(tenant, "stats", GetStats(), Stats)).running == [SESSION]


@pytest.mark.rule("R27")
async def test_a_turn_that_was_lost_beside_the_wrong_log_gets_the_end_of_its_own_log(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """Persistence was started with the URL of another server by mistake."""
    writer = new_writer(own_log, tenant)
    await writer.open("Light")
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as before:
        assert await outcome(before, writer.key) == "running"
    (tmp_path / "another").mkdir()
    async with NatsServer(tmp_path / "another") as another:
        await apply_streams(another.url)
        async with Persistence(another.url, tmp_path / "tailrace.db") as mistaken:
            await until_lost(mistaken, writer.key)
    await writer.end()
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as after:
        assert await outcome(after, writer.key) == "completed"


@pytest.mark.rule("R27")
async def test_no_turn_is_lost_while_the_log_is_unreachable(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """The server disappears between two answers: that of its consumer, and those about the turns."""

    class AnsweredBefore(Deliveries):
        async def first_seq(self) -> Seq:
            return Seq(1)

    writers = [new_writer(own_log, tenant) for _ in range(3)]
    for writer in writers:
        await writer.store_request()
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as before:
        assert await outcome(before, writers[-1].key) == "running"
    deliveries = await AnsweredBefore.open(own_connection, PERSISTENCE)
    await own_server.stop(SIGKILL)
    async with open_store(tmp_path / "tailrace.db") as store:
        await LostTurnFinder(own_log, deliveries, store).check()
        assert sorted(await store.running_turns()) == sorted(writer.key for writer in writers)


@pytest.mark.rule("F31")
async def test_readers_of_old_turns_get_no_entries_of_a_new_log(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    tenant: Tenant,
    persistence_in_loop: Persistence,
    new_gateway: NewGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sequences of the new log begin at 1: an old cursor is an entry of a new turn, too."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.3)
    gateway = await new_gateway(own_server.url)
    old, running, new = [new_writer(own_log, tenant) for _ in range(3)]
    await old.open("Old", " words")
    await old.end()
    await running.open("Half")
    before = await read(gateway.client, old.key.turn)
    reading = asyncio.create_task(read(gateway.client, running.key.turn))
    await until(lambda: is_read(own_log, running.key))
    record = await get(gateway, f"/v1/turns/{old.key.turn}")
    await persistence_in_loop.ask(tenant, "turn", GetTurn(running.key.turn), TurnRecord)
    await own_connection.jetstream.delete_stream(STREAM)
    await apply_streams(own_server.url)
    await new.open("New")
    await new.store_texts(*[" words"] * 9)
    await new.end()
    later = await new_gateway(own_server.url)
    for one in (gateway, later):
        assert await get(one, f"/v1/turns/{old.key.turn}") == record
        for cursor in (0, *(frame.seq for frame in before.frames[:-1])):
            received = await read(one.client, old.key.turn, cursor)
            assert received.over == "ended"
            if one is later:
                assert story_of(frame.sent for frame in received.frames).text in ("", "Old words")
        rest = await reading if one is gateway else await read(one.client, running.key.turn, 9)
        assert "New" not in str(rest.frames)
        assert (await get(one, f"/v1/turns/{running.key.turn}"))["outcome"] == "failed"
    fresh = await read(later.client, new.key.turn)
    assert story_of(frame.sent for frame in fresh.frames).text == "New" + " words" * 9
