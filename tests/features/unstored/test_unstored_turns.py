"""The notes of turns with `store: false`: the search for a deletion, and notes of turns that have left the log."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest_asyncio

from tailrace.features.unstored import unstored_turns as module
from tailrace.features.unstored.table import UNSTORED_MAX, UnstoredTable
from tailrace.features.unstored.unstored_turns import UnstoredTurns
from tailrace.persistence.store import Store
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.resources import TurnToDelete
from tests.harness.open_store import open_store
from tests.harness.turn_builder import Handwritten
from tests.harness.until import until

TENANT = Tenant("ours")
LOOK_UP_S = 0.05
# Half of the time that a gateway waits for an answer (TAILRACE_QUERY_TIMEOUT_S).
ANSWER_S_MAX = 3.0


class Log:
    """The log has the turns `kept`. A query takes LOOK_UP_S."""

    def __init__(self, kept: set[str]) -> None:
        self._kept = kept

    async def read_turn(self, key: TurnKey) -> Turn:
        await asyncio.sleep(LOOK_UP_S)
        if key.turn not in self._kept:
            raise TurnUnknown(key.turn)
        written = Handwritten()
        written.store_request(store=False)
        return written.turn

    async def find_stored(self, keys: Iterable[TurnKey]) -> set[TurnKey]:
        await asyncio.sleep(LOOK_UP_S)
        return {key for key in keys if key.turn in self._kept}


class Tombstones:
    """There are none."""

    async def exists(self, _: TurnKey) -> bool:
        return False

    async def next_erasure_note(self, _: Seq) -> None:
        return None


def unstored_turns(store: Store, kept: set[str]) -> UnstoredTurns:
    log: Any = Log(kept)
    tombstones: Any = Tombstones()
    return UnstoredTurns(log, tombstones, store, grace_s=600)


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
        found = await unstored_turns(store, set(kept)).list_of_user(TENANT, "ann")
    assert found == [TurnToDelete(TurnId(turn), is_running=True, is_unstored=True) for turn in kept]
    assert await UnstoredTable(store).list_of_user(TENANT, "ann") == kept


async def test_the_note_of_a_turn_that_has_left_the_log_without_an_end_is_removed(
    store: Store, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    kept, stop = [TURNS[0], TURNS[-1]], asyncio.Event()
    running = asyncio.create_task(unstored_turns(store, set(kept)).run(stop))

    async def are_removed() -> bool:
        return await UnstoredTable(store).list_of_user(TENANT, None) == kept

    await until(are_removed)
    stop.set()
    await running
