"""Recording turns: each row is written once, completely, and never replaced by an older one."""

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tailrace.features.projects.persistence import ProjectTable
from tailrace.features.usage.persistence import UsageTable
from tailrace.persistence.paging import NEWEST
from tailrace.persistence.rows import TurnRow, build_row, labels_of, micros
from tailrace.persistence.store import Store
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.errors import StoreRefused, StoreRolledBack, StoreTooNew
from tailrace.proto.ids import Seq
from tailrace.proto.records import record_from_fold
from tests.harness.open_store import open_store
from tests.harness.stored_turns import OURS, THEIRS, content_of, key, running_row, session_of, turn_of, with_batch
from tests.harness.turn_builder import NOON, Handwritten, completed_turn


@pytest.mark.rule("R27")
async def test_writing_a_turn_twice_changes_nothing(store: Store) -> None:
    """After a kill between commit and acknowledgement it is written again."""
    rows = [build_row(key("turn-1"), completed_turn("Light").turn), running_row("turn-2")]
    await store.record(rows)
    before = await content_of(store)
    await store.record(rows)
    assert await content_of(store) == before


@pytest.mark.rule("R27")
async def test_an_older_fold_never_overwrites_a_newer_one(store: Store) -> None:
    """Entries are delivered in any order; text, usage and session stay those of the newest fold."""
    log = completed_turn("Light")
    beginning = Handwritten()
    beginning.stored = log.stored[:1]
    await store.record([build_row(key("turn-1"), log.turn)])
    before = await content_of(store)
    await store.record([build_row(key("turn-1"), beginning.turn)])
    assert await content_of(store) == before


@pytest.mark.rule("R27")
async def test_a_turn_that_has_ended_has_the_same_rows_if_it_was_recorded_before(store: Store) -> None:
    ended = msgspec.structs.replace(
        build_row(key("turn-1"), completed_turn("Light").turn), stop_sequence="s", envelope='{"a":1}', fits=True,
        error="e", attempts=7, text_sha256="a", cost_is_unknown=True, cache_creation_input_tokens=3,
        cache_read_input_tokens=4, is_estimated=True, cost_nusd=5, messages=6, asked_by="k",
    )  # fmt: skip
    ended = with_batch(ended, "{}")
    await store.record([running_row("turn-1")])
    await store.record([ended, msgspec.structs.replace(ended, tenant=THEIRS)])
    ours, theirs = [
        [{**row, "tenant": None, "number": None} for row in await content_of(store) if row["tenant"] == tenant]
        for tenant in (OURS, THEIRS)
    ]
    assert ours == theirs


@pytest.mark.rule("R27")
async def test_a_running_turn_that_has_left_the_log_is_failed(store: Store) -> None:
    """Of any tenant; ended turns, and turns that the log may still have, do not change."""
    ended, theirs = completed_turn("Light").turn, key("turn-1", THEIRS)
    late, first = Handwritten(5), Seq(ended.chain.last + 1)
    late.stored = [msgspec.structs.replace(stored, seq=first) for stored in completed_turn("Light").stored[:1]]
    rows = [running_row("turn-1"), build_row(key("turn-2"), ended), build_row(key("turn-3"), late.turn)]
    await store.record([*rows, msgspec.structs.replace(rows[0], tenant=THEIRS)])
    assert await store.fail_expired(first) == 2
    for lost in (key("turn-1"), theirs):
        record = await turn_of(store, lost)
        assert (record.outcome, record.error, record.ended_at) == ("failed", LOST_FAILURE, None)
    kept = [(await turn_of(store, key(turn))).outcome for turn in ("turn-2", "turn-3")]
    assert kept == ["completed", "running"]
    assert await UsageTable(store).busy_sessions(OURS, owner=None) == ["session-1"]
    assert await store.fail_expired(first) == 0
    await store.record([running_row("turn-4")])
    await store.fail_lost([key("turn-2"), key("turn-3")])
    kept = [(await turn_of(store, key(f"turn-{number}"))).outcome for number in (2, 3, 4)]
    assert kept == ["completed", "failed", "running"]


@pytest.mark.parametrize("wrong", [{"outcome": "sleeping"}, {"cost_nusd": 2**63}, {"text": "\ud800"}])
async def test_a_batch_is_written_completely_or_not_at_all(store: Store, wrong: dict[str, object]) -> None:
    """A row that SQLite rejects rolls back its batch."""
    refused = TurnRow(**{**msgspec.structs.asdict(running_row("turn-2")), **wrong})
    with pytest.raises(StoreRefused):
        await store.record([running_row("turn-1"), refused])
    assert await content_of(store) == []
    await store.record([running_row("turn-1")])
    assert await store.turn(key("turn-1")) is not None


async def test_a_database_that_lacks_what_was_committed_is_not_written(
    store: Store, either_database: Path | str
) -> None:
    """As after a restore, or a failover without synchronous replication. The next start records the log again."""
    for seq in (Seq(7), Seq(6)):
        await store.record([running_row("turn-1")], seq)
    async with open_store(either_database) as administrator:
        await administrator.reset_recorded_upto()
    with pytest.raises(StoreRolledBack, match="up to 0, and this process had recorded it up to 7"):
        await store.record([running_row("turn-2")], Seq(8))
    # No turn may be recorded for hours.
    with pytest.raises(StoreRolledBack):
        await store.fail_expired(Seq(1))
    assert (await store.turn(key("turn-2")), await store.read_recorded_upto()) == (None, 0)


MIGRATED = {
    "sqlite": "PRAGMA user_version = 999",
    "postgresql": "UPDATE tailrace_version SET version = 999",
}


async def test_a_row_that_a_newer_schema_refuses_is_not_left_out(store: Store) -> None:
    """During an upgrade, an older process may still run. What it cannot write is recorded by a newer one."""
    refused = TurnRow(**{**msgspec.structs.asdict(running_row("turn-1")), "outcome": "sleeping"})
    async with store.database.transaction() as transaction:
        await transaction.execute(MIGRATED[store.system], {})
    with pytest.raises(StoreTooNew, match="has schema version 999"):
        await store.record([refused])
    await store.record([running_row("turn-2")])
    assert await store.turn(key("turn-2")) is not None


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_turn_is_refused_whose_usage_makes_a_sum_too_large(store: Store, at_once: bool) -> None:
    """In the totals and in the sum of a batch: the recorder leaves such a turn out, and goes on."""
    rows = [msgspec.structs.replace(running_row(f"turn-{number}"), input_tokens=2**62) for number in range(2)]
    if not at_once:
        await store.record([rows.pop()])
    with pytest.raises(StoreRefused):
        await store.record(rows)
    assert (await store.turn(key("turn-0")), await store.turn(key("turn-1")) is None) == (None, at_once)


async def test_a_session_begins_with_its_first_turn_and_was_used_when_its_last_turn_ended(store: Store) -> None:
    """In whichever order they are recorded."""
    ended = build_row(key("turn-2"), completed_turn("Light", step=20).turn)
    await store.record([ended])
    await store.record([running_row("turn-1", step=5)])
    found = await session_of(store, "session-1")
    assert (found.created_at, micros(found.updated_at)) == (NOON + timedelta(seconds=5), ended.ended_at)


async def test_a_session_is_active_until_it_is_idle_for_long_enough(store: Store) -> None:
    await store.record([running_row("turn-1", step=10)])
    used = NOON + timedelta(seconds=10)
    for since, is_active in ((used - timedelta(microseconds=1), True), (used, False)):
        assert (await session_of(store, "session-1", since)).is_active == is_active
        assert await UsageTable(store).active_sessions(OURS, since, owner=None) == int(is_active)
    await store.record([running_row("turn-2", step=20)])
    assert (await session_of(store, "session-1", used)).is_active


async def test_a_session_stays_in_its_first_project(store: Store) -> None:
    """Also when turns are written twice, or name another project."""
    rows = [running_row("turn-1"), running_row("turn-2", project="first"), running_row("turn-3", project="second")]
    for _ in range(2):
        await store.record(rows)
    assert (await session_of(store, "session-1")).project_id == "first"
    assert [one.id for one in await ProjectTable(store).projects(OURS, NEWEST, 9, NOON)] == ["first"]


def test_metadata_with_a_nul_character_is_no_label() -> None:
    """SQLite cuts JSON text there, so different values would be counted as one."""
    metadata = {"k": "a\0b", "l\0": "c", "m": "d"}
    turn = msgspec.structs.replace(record_from_fold(key("turn-1"), completed_turn("Light").turn), metadata=metadata)
    assert labels_of(turn, None) == {"metadata.m": "d", "model": turn.model}
