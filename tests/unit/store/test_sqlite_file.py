"""The SQLite file: private, synced, damaged, truncated, moved away."""

import os
import resource
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tailrace.features.persistence import DATABASES
from tailrace.persistence.sqlite import move_aside
from tailrace.persistence.store import Store
from tailrace.proto.errors import StoreCorrupt, StoreUnwritable
from tailrace.proto.ids import TurnId
from tailrace.proto.resources import DeleteResource
from tests.harness.open_store import open_store
from tests.harness.stored_turns import OURS, running_row
from tests.harness.until import until


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def size_of(path: Path) -> int:
    return path.stat().st_size


async def test_the_file_and_its_journal_are_private(path: Path, file_store: Store) -> None:
    await file_store.record([running_row("turn-1")])
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["tailrace.db", "tailrace.db-shm", "tailrace.db-wal"]
    assert [file.stat().st_mode & 0o077 for file in [path.parent, *files]] == [0, 0, 0, 0]


@pytest.mark.parametrize("left", [0, 1 / 2])
@pytest.mark.parametrize("writes", ["a checkpoint", "a commit"])
async def test_a_file_that_was_truncated_while_open_is_corrupt(
    path: Path, file_store: Store, writes: str, left: float
) -> None:
    """Also when the next write makes it as long as before: the journal may hold its last page."""
    await file_store.erase_journal()
    await file_store.delete(OURS, DeleteResource("session", "session-0"))
    os.truncate(path, round(size_of(path) * left))
    with pytest.raises(StoreCorrupt, match="was truncated while it was open"):
        await (file_store.erase_journal() if writes == "a checkpoint" else file_store.record([running_row("turn-1")]))


async def test_a_file_that_an_operator_vacuums_while_it_is_open_is_not_damaged(path: Path, file_store: Store) -> None:
    long = msgspec.structs.replace(running_row("turn-1"), text="x" * 1_000_000)
    await file_store.record([long])
    await file_store.delete(OURS, DeleteResource("session", "session-1", (TurnId("turn-1"),)))
    await file_store.erase_journal()
    before = size_of(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM")
    for number in range(2):
        await file_store.record([running_row(f"turn-{number}")])
        file_store.database.note_deletion()
        await file_store.erase_journal()
        file_store.raise_if_damaged()
    assert size_of(path) < before / 2


async def test_a_directory_that_is_a_file_is_unwritable(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", b"a file")
    with pytest.raises(StoreUnwritable):
        await DATABASES.open(folder / "tailrace.db", busy_timeout_s=0.05)


async def test_a_database_that_cannot_be_opened_leaves_nothing_open(path: Path) -> None:
    """Whichever of its connections is the first for which the process has no file descriptor."""
    async with open_store(path):
        pass
    threads, descriptors = threading.active_count(), open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    failed = 0
    for limit in range(free, free + 20):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            database = await DATABASES.open(path, busy_timeout_s=0.05)
        except StoreUnwritable:
            failed += 1
        else:
            await database.close()
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: threading.active_count() <= threads)
        assert open_descriptors() == descriptors
    # Descriptors of the file, and those of three connections.
    assert failed > 3


def open_descriptors() -> set[str]:
    return {one.name for one in Path("/dev/fd").iterdir() if one.exists()}


async def test_a_damaged_database_is_renamed_and_kept(path: Path) -> None:
    for _ in range(2):
        async with open_store(path):
            pass
        write(Path(f"{path}-wal"), b"")
        move_aside(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "tailrace.db.damaged-1",
        "tailrace.db.damaged-1-wal",
        "tailrace.db.damaged-2",
        "tailrace.db.damaged-2-wal",
    ]
    assert move_aside(path) is None


async def test_every_commit_is_synced_to_the_disk(file_store: Store) -> None:
    """WAL's usual synchronous=NORMAL may lose acknowledged commits in a power cut."""
    async with file_store.database.transaction() as writer:
        assert await writer.read("PRAGMA synchronous", {}) == [{"synchronous": 2}]
        assert await writer.read("PRAGMA journal_mode", {}) == [{"journal_mode": "wal"}]
