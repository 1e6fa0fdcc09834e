"""Upgrades: entries and databases of older versions are read, streamed, recorded and continued as those versions would.

Each recording was made by an earlier version (`python -m tests.upgrade.record`) and is never changed. `0003` left with
hedged calls: logs keep an entry for a day.
"""

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.persistence import DATABASES
from tailrace.features.search.reader import SearchReader
from tailrace.features.search.words import hash_words
from tailrace.persistence.migrations import migrations
from tailrace.persistence.paging import NEWEST
from tailrace.persistence.turn_list import TurnPageQuery
from tailrace.proto import entries, subjects
from tailrace.proto.entries import Event
from tailrace.proto.errors import StoreUnwritable
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn, TurnRecord, record_from_fold
from tests.harness import turn_builder
from tests.harness.disk import MIB, fill, needs_mount, small_disk
from tests.harness.generator_in_loop import running_generator, wait_for_end, words
from tests.harness.open_store import open_store
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import CHECKOUT, ForkedProcess
from tests.harness.readers import read_bytes
from tests.harness.sse_parser import without_retry
from tests.harness.turn_builder import completed_turn
from tests.integration.conftest import Gateway, NewGateway
from tests.upgrade import recording, roll

OURS = Tenant("local")
# The recordings with turns of each kind and a batch, and with a full text index.
BATCHES, SEARCH = "0002_batches", "0004_search"
# Streams that were changed on purpose since that version.
CITED = {"openai-chat", "openai-chat-usage", "openai-responses"}
# New fields and events: `index` of a block and citations in `tailrace`, `warnings` in the dialects of tutorials.
WITH_MORE = {"thinking": {"tailrace"}, "tool": {"delta", "content"}, "cited": {"tailrace", "delta", "content", *CITED}}
CHANGED_STREAMS = {(name, turn): found for name in ("0001_first", BATCHES) for turn, found in WITH_MORE.items()}
# Have an event each 0.25 s: the entries of the recording are stored faster than the model once sent them.
CHANGED_STREAMS[SEARCH, "taken_over"] = {"state", "job"}
# A cancel is an `invalid_request_error`, as in the table of errors: it was an `api_error`. A cancelled response has a
# reason.
CHANGED_STREAMS |= {(name, "cancelled"): {"anthropic", "openai-responses"} for name in ("0001_first", BATCHES, SEARCH)}
# The reasoning of `/v1/responses` has the prefix `thinking:`, by which Tailrace knows its own.
for _name in ("0001_first", BATCHES, SEARCH):
    CHANGED_STREAMS.setdefault((_name, "thinking"), set()).add("openai-responses")
# Its events have the progress as a number, and unnamed ones the whole state.
# The metadata of `ui` have the stop reason.
CHANGED_DIALECTS = {name: {"job", "ui"} for name in ("0001_first", BATCHES)}
# The dialect `delta` had other words for errors, and no code.
ERROR_WORD = re.compile(rb'(?<="type":"error",)"error":"\w+",("code":"\w+",)?')
TIME_FIELD = re.compile(rb'"(created|created_at|completed_at|asked_at|ended_at)":("[^"]*"|[0-9.]+)')


@pytest.mark.rule("F29")
async def test_each_process_is_replaced_while_turns_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like `make roll`, but from this version to itself. Each turn is received whole, once, with its end."""
    monkeypatch.setattr(roll, "AT_ONCE", 2)
    monkeypatch.setattr(roll, "WORDS", 15)
    done = await roll.roll(CHECKOUT, tmp_path, ForkedProcess)
    assert done.wrong == []
    assert done.turns_ended > 7 * roll.AT_ONCE
    assert done.tickets == 4


every_recording = pytest.mark.parametrize("name", recording.names())


@pytest.fixture
def tenant() -> Tenant:
    """The tenant of the recorded turns."""
    return OURS


def builtins_of(record: TurnRecord, *without: str) -> dict[str, Any]:
    """Returns a record as a client receives it."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return {name: what for name, what in fields.items() if name not in without}


# Fields of the API that have another name now.
RENAMED = {"fits": "schema_valid"}


def assert_same(now: dict[str, Any], was: dict[str, Any], *without: str) -> None:
    """Every field of the older version's record has the same value today; there may be newer fields."""
    was = {RENAMED.get(name, name): what for name, what in was.items()}
    assert {name: now[name] for name in was if name not in without and name != "links"} == {
        name: what for name, what in was.items() if name not in without and name != "links"
    }


async def test_a_recorded_database_is_restored_with_its_full_text_index(tmp_path: Path) -> None:
    """`iterdump` alone writes rows into an index that does not exist yet."""
    query = TurnPageQuery(OURS, {}, None, NEWEST, 9)
    async with open_store(tmp_path / "written.db") as store:
        await store.record([store.build_row(TurnKey(OURS, TurnId("turn-1")), completed_turn("Light scatters.").turn)])
    restored = recording.restore(recording.dump(tmp_path / "written.db"), tmp_path / "restored.db")
    for path in (tmp_path / "written.db", restored):
        async with open_store(path) as store:
            found, _ = await SearchReader(store).read_page(query, hash_words(OURS, ["scatters"]).split())
            assert [one.turn for one in found] == ["turn-1"]
            with closing(sqlite3.connect(path)) as reading:
                assert reading.execute("PRAGMA user_version").fetchall() == [(len(migrations()),)]


def without_times(stream: bytes) -> bytes:
    return TIME_FIELD.sub(rb'"\1":0', ERROR_WORD.sub(b"", without_retry(stream)))


@every_recording
def test_recorded_entries_have_the_same_bytes_and_records(name: str) -> None:
    """Text, blocks, usage, cost, outcome, error and times; no entry is skipped.

    After an unclear append a writer compares the bytes of entries, also when the other version has stored one.
    """
    recorded = recording.read(name)
    for was in recorded.received:
        turn = fold(recorded.log(was.turn))
        assert turn.skipped == 0
        assert_same(builtins_of(record_from_fold(recorded.key(was.turn), turn)), was.record)
    for one in recorded.entries:
        _, kind = subjects.parse(one.subject)
        assert entries.encode(entries.decode(kind, one.payload.encode())) == one.payload.encode()


@pytest.mark.rule("F29")
@every_recording
async def test_recorded_turns_have_the_same_streams_in_every_dialect(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, name: str
) -> None:
    """Byte for byte, so that a reader can resume after the upgrade."""
    recorded = recording.read(name)
    await recorded.store(own_connection)
    gateway = await new_gateway(own_server.url)
    for was in recorded.received:
        for dialect, stream in was.streams.items():
            answer = await stream_of(gateway, was.turn, dialect)
            if dialect not in CHANGED_DIALECTS.get(name, set()) | CHANGED_STREAMS.get((name, was.name), set()):
                assert without_times(answer) == without_times(stream.encode()), (was.name, dialect)


@pytest.mark.parametrize("name", recording.names_with_database())
async def test_a_recorded_database_has_the_same_records_after_its_migration(
    own_server: NatsServer, tmp_path: Path, name: str
) -> None:
    """Also of turns that the log does not have any more."""
    recorded = recording.read(name)
    async with Persistence(own_server.url, recording.database(name, tmp_path / "tailrace.db")) as persistence:
        for was in recorded.received:
            row = await persistence.ask(OURS, "turn", GetTurn(TurnId(was.turn)), TurnRecord)
            assert_same(builtins_of(row), was.record)


@pytest.mark.parametrize("version", range(1, len(migrations()) + 1))
async def test_a_database_of_every_schema_version_is_migrated_with_its_rows(tmp_path: Path, version: int) -> None:
    """Fields that the version did not store are missing."""
    recorded = recording.read(BATCHES)
    path = recording.downgrade(version, recording.database(recorded.name, tmp_path / "tailrace.db"))
    unknown = {name for name, since in {"envelope": 3, "schema_valid": 4}.items() if version < since}
    async with open_store(path) as store:
        for was in recorded.received:
            found = await store.turn(TurnKey(OURS, TurnId(was.turn)))
            assert found is not None
            assert_same(builtins_of(found), was.record, *unknown)
    with closing(sqlite3.connect(path)) as migrated:
        assert migrated.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
        assert migrated.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.rule("F17")
@needs_mount
async def test_a_migration_on_a_full_disk_is_completed_when_there_is_space(tmp_path: Path) -> None:
    """The error says what to do, and no row is lost. Without any space, not even the older database can be opened."""
    recorded, there = recording.read(BATCHES), tmp_path / "disk"
    older = recording.downgrade(12, recording.database(recorded.name, tmp_path / "tailrace.db"))
    there.mkdir()
    with small_disk(there, 8 * MIB):
        path = shutil.copy(older, there / "tailrace.db")
        fill(there)
        full = pytest.raises(StoreUnwritable, match=r"tailrace.db: .*: make space on its disk")
        with full:
            await DATABASES.open(path, busy_timeout_s=0.05)
        os.truncate(there / "junk", (there / "junk").stat().st_size - 128 * 1024)
        with full:
            async with open_store(path):
                pass
        (there / "junk").unlink()
        async with open_store(path) as store:
            for was in recorded.received:
                found = await store.turn(TurnKey(OURS, TurnId(was.turn)))
                assert found is not None
                assert_same(builtins_of(found), was.record)


@pytest.mark.rule("F29")
@every_recording
async def test_a_turn_that_an_older_version_had_begun_is_completed(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str, name: str
) -> None:
    """Its generator was killed in the middle of the answer."""
    recorded = recording.read(name)
    was = recorded.of("taken_over")
    events = [one.seq for one in recorded.entries if was.turn in one.subject and one.subject.endswith("event")]
    await recorded.store(own_connection, upto=events[4])
    async with running_generator(own_server.url, own_claude):
        turn = await wait_for_end(own_log, TurnKey(OURS, TurnId(was.turn)))
    assert (turn.outcome, turn.text, turn.skipped) == ("completed", was.record["text"], 0)


@pytest.mark.rule("F29")
@pytest.mark.rule("R7")
async def test_a_turn_that_a_newer_version_had_begun_is_completed(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    own_claude: str,
    tmp_path: Path,
) -> None:
    """Unknown fields, kinds of entries and events stay in the log and are ignored."""
    key = TurnKey(OURS, TurnId(new_id()))
    question = turn_builder.request(messages=[entries.Message("user", "#sim words=9 rate=0 tag=newer")])
    last = await store_newer(own_connection, key, "request", entries.encode(question))
    attempt = {"prev": last, "attempt": 1, "generator": "of-tomorrow", "backend": "newer", "mode": "fresh"}
    last = await store_newer(own_connection, key, "attempt", msgspec.json.encode(attempt))
    last = await store_newer(own_connection, key, "weather", msgspec.json.encode({"prev": last, "attempt": 1}))
    raws = [*map(msgspec.json.encode, turn_builder.opening_events()), b'{"type":"mood_delta","mood":"fair"}']
    for raw in (*raws, b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"newer000000 "}}'):
        event = Event(prev=last, attempt=1, event=msgspec.Raw(raw))
        last = await store_newer(own_connection, key, "event", entries.encode(event))
    gateway = await new_gateway(own_server.url)
    async with (
        running_generator(own_server.url, own_claude),
        Persistence(own_server.url, tmp_path / "tailrace.db") as persistence,
    ):
        turn = await wait_for_end(own_log, key)
        row = await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
    assert (turn.outcome, turn.text, turn.attempt, turn.skipped) == ("completed", words(9, "newer"), 2, 0)
    assert row == record_from_fold(key, turn)
    for dialect in recording.read(BATCHES).received[0].streams:
        answer = (await stream_of(gateway, key.turn, dialect)).decode()
        assert "newer000008" in answer, dialect
    stored = await own_log.read_entries(ScopedKey.whole(key))
    assert [type(one.entry).__name__ for one in stored][:3] == ["Request", "Attempt", "Unknown"]


async def store_newer(connection: Connection, key: TurnKey, kind: str, payload: bytes) -> Seq:
    """Stores an entry with an unknown field."""
    payload = payload[:-1] + b',"of_tomorrow":{"a":[1]}}'
    return Seq((await connection.jetstream.publish(f"turns.{key.tenant}.{key.turn}.{kind}", payload)).seq)


async def stream_of(gateway: Gateway, turn: str, dialect: str) -> bytes:
    return await read_bytes(gateway.client, f"/v1/turns/{turn}/events?dialect={dialect}")
