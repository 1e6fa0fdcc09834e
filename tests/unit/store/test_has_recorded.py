"""Whether a database has ever recorded anything of a log."""

import sqlite3
from contextlib import closing
from pathlib import Path

from tailrace.deploy.nats.new_log import ask_database
from tailrace.persistence.migrations import REACHED_FROM_VERSION
from tailrace.proto.ids import Seq
from tests.harness.open_store import open_store
from tests.harness.stored_turns import running_row


async def test_a_database_says_whether_it_has_recorded_anything(either_database: Path | str) -> None:
    """Also after all turns were deleted, and while a replay has reset the sequence."""

    async def has_recorded() -> bool | None:
        return (await ask_database(str(either_database), if_absent=False)).has_recorded

    assert await has_recorded() is False
    async with open_store(either_database) as store:
        assert await has_recorded() is False
        await store.record([], Seq(7))
        assert await has_recorded() is True
        await store.reset_recorded_upto()
        assert await has_recorded() is False
    async with open_store(either_database) as store:
        await store.record([running_row("turn-1")])
        assert await has_recorded() is True


async def test_a_database_of_a_version_without_the_sequence_has_recorded_something(tmp_path: Path) -> None:
    path = tmp_path / "tailrace.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {REACHED_FROM_VERSION - 1}")
    assert (await ask_database(str(path))).has_recorded is True
