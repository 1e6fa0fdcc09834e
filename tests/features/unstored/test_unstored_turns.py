"""The notes of turns with `store: false`: the search for a deletion, and notes of turns that have left the log."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tailrace.features.unstored import unstored_turns as module
from tailrace.features.unstored.table import UNSTORED_MAX, UnstoredTable
from tailrace.features.unstored.unstored_turns import UnstoredTurns
from tailrace.persistence.store import Store
from tailrace.proto.entries import End, Outcome
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats.log_server import PAGE_MAX, EntryPage
from tailrace.proto.resources import TurnToDelete
from tailrace.testing import MemoryLog, MemoryTombstones
from tests.harness.open_store import open_store
from tests.harness.turn_builder import KEY, attempted_turn, request
from tests.harness.until import until

TENANT = Tenant("ours")
LOOK_UP_S = 0.05
# Half of the time that a gateway waits for an answer (TAILRACE_QUERY_TIMEOUT_S).
ANSWER_S_MAX = 3.0


class SlowLog(MemoryLog):
    """A log in which a read takes LOOK_UP_S."""

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        await asyncio.sleep(LOOK_UP_S)
        return await super().read(key, after, limit)


def unstored_turns(store: Store, kept: list[str]) -> UnstoredTurns:
    """The log has the turns `kept`."""
    log = SlowLog()
    for turn in kept:
        log.store(TurnKey(TENANT, TurnId(turn)), request(store=False))
    return UnstoredTurns(log, MemoryTombstones(), store, grace_s=600)


TURNS = [f"turn-{number:03}" for number in range(UNSTORED_MAX + 3)]


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A database with the notes of TURNS, all of one user."""
    async with open_store(tmp_path / "tailrace.db") as store:
        for turn in TURNS:
            await UnstoredTable(store).put(TurnKey(TENANT, TurnId(turn)), "ann")
        yield store


async def test_the_turns_of_a_user_are_found_within_the_time_of_a_query(store: Store) -> None:
    """Also behind a page of turns that have left the log, whose notes are removed."""
    kept = TURNS[UNSTORED_MAX:]
    async with asyncio.timeout(ANSWER_S_MAX):
        found = await unstored_turns(store, kept).list_of_user(TENANT, "ann")
    assert found == [TurnToDelete(TurnId(turn), is_running=True, is_unstored=True) for turn in kept]
    assert await UnstoredTable(store).list_of_user(TENANT, "ann") == kept


@pytest.mark.rule("R109")
@pytest.mark.parametrize(
    ("outcome", "cause", "expected"),
    [
        ("completed", None, "erased"),
        ("failed", None, "erased"),
        ("cancelled", "on_disconnect", "erased"),
        ("cancelled", "request", "deleted"),
        ("cancelled", "deletion", "deleted"),
    ],
)
async def test_the_key_of_an_erased_turn_is_free_unless_a_client_has_stopped_the_turn(
    store: Store, outcome: Outcome, cause: str | None, expected: str
) -> None:
    """The tombstone says so, because the log does not keep the end."""
    written, tombstones = attempted_turn(store=False), MemoryTombstones()
    end = written.end(outcome)
    assert isinstance(end.entry, End)
    turn = msgspec.structs.replace(written.turn, end=msgspec.structs.replace(end.entry, cause=cause))
    assert await UnstoredTurns(MemoryLog(), tombstones, store, grace_s=600).divert(KEY, turn)
    assert await tombstones.find(KEY) == expected


async def test_the_note_of_a_turn_that_has_left_the_log_without_an_end_is_removed(
    store: Store, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    kept, stop = [TURNS[0], TURNS[-1]], asyncio.Event()
    running = asyncio.create_task(unstored_turns(store, kept).run(stop))

    async def are_removed() -> bool:
        return await UnstoredTable(store).list_of_user(TENANT, None) == kept

    await until(are_removed)
    stop.set()
    await running
