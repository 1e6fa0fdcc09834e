"""A turn that leaves the log without an end has failed, and everybody says so: the log forgets, and nothing runs on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.persistence.lost_turns import LostTurnFinder
from tailrace.persistence.store import Store
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.ids import SessionId, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.resources import GetStats, Stats
from tailrace.proto.subjects import PERSISTENCE, STREAM, TurnKey
from tests.conftest import apply_streams
from tests.harness.persistence_in_loop import Persistence
from tests.harness.readers import is_read, read, told
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, forget

SESSION = SessionId("session-1")
# It has no words of its own: all that it does is to break off.
WORDLESS = {"text"}


@pytest_asyncio.fixture
async def recorded(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Persistence]:
    """Persistence that looks often for what was lost."""
    monkeypatch.setattr("tailrace.persistence.lost_turns.INTERVAL_S", 0.05)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        yield persistence


@pytest_asyncio.fixture
async def lost(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, recorded: Persistence, new_gateway: NewGateway
) -> tuple[Gateway, TurnKey]:
    """A turn that has said something and was forgotten by the log before its end, and a gateway to ask for it."""
    gateway = await new_gateway(own_server.url)
    writer = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
    await writer.ask(session=SESSION)
    await writer.begin("Light ")
    await forget(gateway, own_log, writer.key)
    return gateway, writer.key


async def got(gateway: Gateway, path: str) -> Any:
    answer = await gateway.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_whoever_asks_for_a_turn_that_was_lost_is_told_that_it_has_failed(lost: tuple[Gateway, TurnKey]) -> None:
    """At once, as a turn and as a response, whether anybody has noticed it in the database or not."""
    gateway, key = lost
    turn = await got(gateway, f"/v1/turns/{key.turn}")
    assert (turn["outcome"], turn["error"]["code"], turn["error"]["message"]) == (
        "failed",
        LOST_FAILURE.code,
        LOST_FAILURE.message,
    )
    response = await got(gateway, f"/v1/responses/resp_{key.turn}")
    assert (response["status"], response["error"]["message"]) == ("failed", LOST_FAILURE.message)
    assert response["usage"] is not None
    cancelled = await gateway.client.post(f"/v1/responses/resp_{key.turn}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "failed")
    assert (await gateway.client.post(f"/v1/turns/{key.turn}/cancel")).json()["outcome"] == "failed"
    assert (await gateway.client.post(f"/api/chat/{key.turn}/stop")).json()["outcome"] == "failed"


@pytest.mark.rule("F32")
@pytest.mark.parametrize("dialect", sorted(set(DIALECTS) - WORDLESS))
async def test_every_dialect_says_that_a_turn_was_lost(lost: tuple[Gateway, TurnKey], dialect: str) -> None:
    """In its own shape; where that has no word for an end, the connection is broken off after it."""
    gateway, key = lost
    body = b""
    with suppress(httpx2.RemoteProtocolError):
        async with gateway.client.stream("GET", f"/v1/turns/{key.turn}/events?dialect={dialect}") as response:
            assert response.status_code == 200
            async for piece in response.aiter_raw():
                body += piece
    assert LOST_FAILURE.message in body.decode()


async def test_a_lost_answer_is_not_resumed(lost: tuple[Gateway, TurnKey]) -> None:
    """A page that is loaded again has it among its messages, and would be told an old error for ever."""
    gateway, _ = lost
    assert (await gateway.client.get(f"/api/chat/{SESSION}/stream")).status_code == 204


async def is_noticed(gateway: Gateway) -> bool:
    """Whether the database knows that it was lost: branches are told from it alone."""
    branches = (await got(gateway, f"/v1/sessions/{SESSION}/branches"))["data"]
    return [branch["outcome"] for branch in branches] == ["failed"]


@pytest.mark.rule("R27")
async def test_the_database_says_of_every_list_that_a_turn_was_lost(lost: tuple[Gateway, TurnKey]) -> None:
    """The session's turns, its branches, and who is being answered; and the session is not busy for ever."""
    gateway, key = lost

    await until(lambda: is_noticed(gateway))
    listed = (await got(gateway, f"/v1/sessions/{SESSION}/turns"))["turns"]
    assert [(one["outcome"], one["error"]) for one in listed] == [
        ("failed", {"code": LOST_FAILURE.code, "message": LOST_FAILURE.message})
    ]
    assert (await got(gateway, "/v1/sessions/stats"))["claude_sessions"] == []
    answer = await gateway.client.post("/v1/turns", json={"message": "And now?", "session": SESSION})
    assert (answer.status_code, answer.json()["session"]) == (202, SESSION)
    following = await got(gateway, f"/v1/turns/{answer.json()['turn']}")
    assert (following["parent"], following["outcome"]) == (key.turn, "running")


async def test_what_is_noticed_later_is_told_as_it_was_at_once(lost: tuple[Gateway, TurnKey]) -> None:
    """The record that the gateway makes is the one that the database comes to have."""
    gateway, key = lost
    before = await got(gateway, f"/v1/turns/{key.turn}")
    assert (await got(gateway, f"/v1/sessions/{SESSION}/turns"))["turns"] == [before]
    await until(lambda: is_noticed(gateway))
    assert (await got(gateway, f"/v1/sessions/{SESSION}/turns"))["turns"] == [before]
    assert await got(gateway, f"/v1/turns/{key.turn}") == before


async def test_nothing_is_lost_while_the_log_has_it(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, recorded: Persistence, new_gateway: NewGateway
) -> None:
    """What was before it in the log is gone; it runs, however often somebody looks, and ends."""
    gateway = await new_gateway(own_server.url)
    old, running = (Writer(own_log, TurnKey(tenant, TurnId(new_id()))) for _ in range(2))
    await old.ask(session=SessionId("session-2"))
    await running.ask(session=SESSION)
    await running.begin("Light")
    await forget(gateway, own_log, old.key)

    async def is_old_lost() -> bool:
        (one,) = (await got(gateway, "/v1/sessions/session-2/turns"))["turns"]
        return bool(one["outcome"] == "failed")

    await until(is_old_lost)
    assert (await got(gateway, f"/v1/sessions/{SESSION}/turns"))["turns"][0]["outcome"] == "running"
    await running.end()
    assert (await got(gateway, f"/v1/sessions/{SESSION}/turns"))["turns"][0]["outcome"] == "completed"


async def outcome(persistence: Persistence, key: TurnKey) -> str:
    return (await persistence.ask(key.tenant, "turn", GetTurn(key.turn), TurnRecord)).outcome


async def is_lost(persistence: Persistence, key: TurnKey) -> bool:
    return await outcome(persistence, key) == "failed"


@pytest.mark.rule("R27")
@pytest.mark.rule("F31")
async def test_a_database_that_is_restored_beside_another_log_has_nothing_running(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """What this log has never heard of has failed, wherever it stood in its own; what it knows runs on."""
    restored, known, *others = (Writer(own_log, TurnKey(tenant, TurnId(new_id()))) for _ in range(9))
    for writer in (*others, restored):
        await writer.ask(session=SessionId(f"of-{writer.key.turn}"))
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as before:
        assert await outcome(before, restored.key) == "running"
    await own_connection.jetstream.delete_stream(STREAM)
    await apply_streams(own_server.url)
    await known.ask(session=SESSION)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as after:
        await until(lambda: is_lost(after, restored.key))
        assert await outcome(after, known.key) == "running"
        assert (await after.ask(tenant, "stats", GetStats(), Stats)).running == [SESSION]


@pytest.mark.rule("R27")
async def test_what_an_empty_log_denied_ends_as_its_own_log_says(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """Persistence was started beside the wrong log by mistake, and then beside the right one."""
    writer = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
    await writer.open("Light")
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as before:
        assert await outcome(before, writer.key) == "running"
    (tmp_path / "another").mkdir()
    async with NatsServer(tmp_path / "another") as another:
        await apply_streams(another.url)
        async with Persistence(another.url, tmp_path / "tailrace.db") as mistaken:
            await until(lambda: is_lost(mistaken, writer.key))
    await writer.end()
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as after:
        assert await outcome(after, writer.key) == "completed"


@pytest.mark.rule("R27")
async def test_a_log_that_is_away_denies_nothing(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """Not even between two of its answers: here the consumer of another server, as new as itself, still has one."""
    keys = [TurnKey(tenant, TurnId(new_id())) for _ in range(3)]
    for key in keys:
        await Writer(own_log, key).ask()
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as before:
        assert await outcome(before, keys[-1]) == "running"
    async with AsyncExitStack() as stack:
        store = await Store.open(tmp_path / "tailrace.db", busy_timeout_s=1.0)
        stack.push_async_callback(store.close)
        (tmp_path / "other").mkdir()
        other = await stack.enter_async_context(NatsServer(tmp_path / "other"))
        await apply_streams(other.url)
        connection = await Connection.open(other.url, "test")
        stack.push_async_callback(connection.close)
        deliveries = await Deliveries.open(connection, PERSISTENCE)
        await own_server.stop(SIGKILL)
        await LostTurnFinder(own_log, deliveries, store).check()
        assert sorted(await store.running_turns()) == sorted(keys)


@pytest.mark.rule("F31")
async def test_a_log_that_was_made_anew_tells_nobody_anothers_words(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    tenant: Tenant,
    recorded: Persistence,
    new_gateway: NewGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F31: its sequences begin again, so an old cursor is a new turn's entry, too."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.3)
    gateway = await new_gateway(own_server.url)
    old, running, new = (Writer(own_log, TurnKey(tenant, TurnId(new_id()))) for _ in range(3))
    await old.open("Old", " words")
    await old.end()
    await running.open("Half")
    before = await read(gateway.client, old.key.turn)
    reader = asyncio.create_task(read(gateway.client, running.key.turn))
    await until(lambda: is_read(own_log, running.key))
    told_before = await got(gateway, f"/v1/turns/{old.key.turn}")
    await recorded.ask(tenant, "turn", GetTurn(running.key.turn), TurnRecord)
    await own_connection.jetstream.delete_stream(STREAM)
    await apply_streams(own_server.url)
    await new.open("New")
    await new.say(*[" words"] * 9)
    await new.end()
    later = await new_gateway(own_server.url)
    for one in (gateway, later):
        assert await got(one, f"/v1/turns/{old.key.turn}") == told_before
        for cursor in (0, *(frame.seq for frame in before.frames[:-1])):
            connected = await read(one.client, old.key.turn, cursor)
            assert connected.over == "ended"
            if one is later:
                assert told(frame.sent for frame in connected.frames).text in ("", "Old words")
        rest = await reader if one is gateway else await read(one.client, running.key.turn, 9)
        assert "New" not in str(rest.frames)
        assert (await got(one, f"/v1/turns/{running.key.turn}"))["outcome"] == "failed"
    fresh = await read(later.client, new.key.turn)
    assert told(frame.sent for frame in fresh.frames).text == "New" + " words" * 9
