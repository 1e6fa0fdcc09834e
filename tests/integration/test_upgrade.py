"""What versions before this one have stored is told, recorded and gone on with, as they would have done themselves.

Recordings are of whole versions (`python -m tests.upgrade.record`), and are never written anew.
"""

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.persistence.migrations import migrations
from tailrace.persistence.store import Store
from tailrace.proto import entries, subjects
from tailrace.proto.entries import Event
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.records import GetTurn, TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey
from tests.harness import turn_builder
from tests.harness.generator_in_loop import ended, words, working
from tests.harness.persistence_in_loop import Persistence
from tests.harness.sse_parser import turns_own
from tests.integration.conftest import Gateway, NewGateway
from tests.upgrade import recording

OURS = Tenant("local")
# What that version told of a turn otherwise, as the changelog says.
TOLD_OTHERWISE = {("0001_first", "cited"): {"openai-chat", "openai-chat-usage", "openai-responses"}}
# What a server notes when it stores an entry: another one notes another time.
TIMES = ("asked_at", "ended_at")
TIME_TOLD = re.compile(rb'"(created|created_at|completed_at|asked_at|ended_at)":("[^"]*"|[0-9.]+)')

every_recording = pytest.mark.parametrize("name", recording.names())


@pytest.fixture
def tenant() -> Tenant:
    """Whose the recorded turns are."""
    return OURS


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


def told_of(made: TurnRecord, *without: str) -> dict[str, Any]:
    """A record as a client gets it."""
    told: dict[str, Any] = msgspec.to_builtins(made)
    return {name: what for name, what in told.items() if name not in without}


# Fields of the API that have another name now.
RENAMED = {"fits": "schema_valid"}


def same(told: dict[str, Any], was: dict[str, Any], *without: str) -> None:
    """What a version said of a turn is said today; newer fields may stand beside it."""
    was = {RENAMED.get(name, name): what for name, what in was.items()}
    assert {name: told[name] for name in was if name not in without and name != "links"} == {
        name: what for name, what in was.items() if name not in without and name != "links"
    }


def timeless(stream: bytes) -> bytes:
    return TIME_TOLD.sub(rb'"\1":0', turns_own(stream))


@every_recording
def test_what_was_stored_folds_to_what_was_told(name: str) -> None:
    """Text, blocks, usage, cost, outcome, error, times: all that its own version made of it, and nothing is skipped."""
    recorded = recording.read(name)
    for was in recorded.told:
        turn, key = fold(recorded.log(was.turn)), recorded.key(was.turn)
        assert turn.skipped == 0
        same(told_of(record_from_fold(key, turn)), was.record)


@every_recording
def test_what_was_stored_is_encoded_as_it_was(name: str) -> None:
    """Who finds an entry of its own after an unclear append compares bytes, also beside the version before."""
    recorded = recording.read(name)
    for one in recorded.entries:
        _, kind = subjects.parse(one.subject)
        assert entries.encode(entries.decode(kind, one.payload.encode())) == one.payload.encode()


@pytest.mark.rule("F29")
@every_recording
async def test_what_was_stored_is_told_in_every_dialect_as_it_was(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, name: str
) -> None:
    """Byte for byte, by a gateway of today: a reader who was cut off by the upgrade goes on where it was."""
    recorded = recording.read(name)
    await recorded.store(own_connection)
    gateway = await new_gateway(own_server.url)
    for was in recorded.told:
        for dialect, stream in was.streams.items():
            answer = await streamed(gateway, was.turn, dialect)
            if dialect not in TOLD_OTHERWISE.get((name, was.name), ()):
                assert timeless(answer) == timeless(stream.encode()), (was.name, dialect)


@every_recording
async def test_what_was_stored_is_recorded_as_it_was_told(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path, name: str
) -> None:
    """Persistence of today reads the log of the version before from its beginning: a lost database, on upgrade day."""
    recorded = recording.read(name)
    await recorded.store(own_connection)
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        for was in recorded.told:
            row = await persistence.ask(OURS, "turn", GetTurn(TurnId(was.turn)), TurnRecord)
            same(told_of(row), was.record, *TIMES)


@every_recording
async def test_what_was_recorded_is_told_after_the_upgrade(own_server: NatsServer, tmp_path: Path, name: str) -> None:
    """The database that the version before has written is migrated, and tells what has left the log since."""
    recorded = recording.read(name)
    async with Persistence(own_server.url, recording.database(name, tmp_path / "tailrace.db")) as persistence:
        for was in recorded.told:
            row = await persistence.ask(OURS, "turn", GetTurn(TurnId(was.turn)), TurnRecord)
            same(told_of(row), was.record)


@pytest.mark.parametrize("version", range(1, len(migrations()) + 1))
async def test_a_database_of_every_step_is_migrated_with_its_rows(tmp_path: Path, version: int) -> None:
    """Whichever version has written it last, what it knew of each turn is told; what it did not know is left out."""
    recorded = recording.read(recording.names()[-1])
    path = recording.as_of(version, recording.database(recorded.name, tmp_path / "tailrace.db"))
    unknown = {name for name, since in {"envelope": 3, "schema_valid": 4}.items() if version < since}
    store = await Store.open(path, busy_timeout_s=0.05)
    try:
        await store.migrate()
        for was in recorded.told:
            told = await store.turn(TurnKey(OURS, TurnId(was.turn)))
            assert told is not None
            same(told_of(told), was.record, *unknown)
    finally:
        await store.close()
    with closing(sqlite3.connect(path)) as migrated:
        assert migrated.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
        assert migrated.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.rule("F29")
@every_recording
@pytest.mark.parametrize("kind", ["event", "attempt", "request"])
async def test_what_a_version_before_had_begun_is_finished(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str, name: str, kind: str
) -> None:
    """Its generator has died: wherever that was, one of today gives the answer that it would have given."""
    recorded = recording.read(name)
    was = recorded.of("taken_over")
    last = [one.seq for one in recorded.entries if was.turn in one.subject and one.subject.endswith(kind)]
    await recorded.store(own_connection, upto=last[0] if kind != "event" else last[4])
    async with working(own_server.url, claude):
        turn = await ended(own_log, TurnKey(OURS, TurnId(was.turn)))
    assert (turn.outcome, turn.text, turn.skipped) == ("completed", was.record["text"], 0)


@pytest.mark.rule("F29")
@pytest.mark.rule("R7")
async def test_what_a_newer_version_has_begun_is_finished_told_and_recorded(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    claude: str,
    tmp_path: Path,
) -> None:
    """It has fields, a kind of entry and an event that nobody here knows: they stay in the log, and in nobody's way."""
    key = TurnKey(OURS, TurnId(new_id()))
    question = turn_builder.request(messages=[entries.Message("user", "#sim words=9 rate=0 tag=newer")])
    last = await newer(own_connection, key, "request", entries.encode(question))
    taken = {"prev": last, "attempt": 1, "generator": "of-tomorrow", "backend": "newer", "mode": "fresh"}
    last = await newer(own_connection, key, "attempt", msgspec.json.encode(taken))
    last = await newer(own_connection, key, "weather", msgspec.json.encode({"prev": last, "attempt": 1}))
    said = [*map(msgspec.json.encode, turn_builder.opening()), b'{"type":"mood_delta","mood":"fair"}']
    for raw in (*said, b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"newer000000 "}}'):
        event = Event(prev=last, attempt=1, event=msgspec.Raw(raw))
        last = await newer(own_connection, key, "event", entries.encode(event))
    gateway = await new_gateway(own_server.url)
    async with working(own_server.url, claude), Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        turn = await ended(own_log, key)
        row = await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
    assert (turn.outcome, turn.text, turn.attempt, turn.skipped) == ("completed", words(9, "newer"), 2, 0)
    assert row == record_from_fold(key, turn)
    for dialect in recording.read(recording.names()[-1]).told[0].streams:
        answer = (await streamed(gateway, key.turn, dialect)).decode()
        assert "newer000008" in answer, dialect
    stored = await own_log.replay(key)
    assert [type(one.entry).__name__ for one in stored][:3] == ["Request", "Attempt", "Unknown"]


async def newer(connection: Connection, key: TurnKey, kind: str, payload: bytes) -> Seq:
    """Stores an entry with a field more than any version has."""
    payload = payload[:-1] + b',"of_tomorrow":{"a":[1]}}'
    return Seq((await connection.jetstream.publish(f"turns.{key.tenant}.{key.turn}.{kind}", payload)).seq)


async def streamed(gateway: Gateway, turn: str, dialect: str) -> bytes:
    """All of a turn's stream; some dialects tell a failure by breaking it off."""
    received = b""
    async with gateway.client.stream("GET", f"/v1/turns/{turn}/events?dialect={dialect}") as response:
        assert response.status_code == 200, await response.aread()
        try:
            async for some in response.aiter_raw():
                received += some
        except httpx2.RemoteProtocolError:
            pass
    return received
