"""The configuration for Litestream: the database is destroyed, and restored from a folder or from S3."""

import asyncio
import os
import shutil
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tailrace.deploy.local import ports
from tailrace.persistence.rows import build_row
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.resources import DeleteResource
from tests.harness.open_store import open_store
from tests.harness.processes import CHECKOUT
from tests.harness.turn_builder import completed_turn
from tests.harness.until import until, until_equal

CONFIG = CHECKOUT / "deploy/litestream/litestream.yml"
PROGRAMS = f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}"
LITESTREAM, RCLONE = (shutil.which(name, path=PROGRAMS) or "" for name in ("litestream", "rclone"))
FOLDER = "      type: file\n      path: ${TAILRACE_REPLICA}\n"
KEY, SECRET = "tailrace", "a-secret-of-the-tests"
TURNS = [TurnKey(Tenant("ours"), TurnId(f"turn-{number}")) for number in range(3)]

pytestmark = pytest.mark.skipif(not LITESTREAM, reason="NO LITESTREAM: install the development tools")


def destroy(database: Path) -> None:
    """Removes a database with its journal."""
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()


@asynccontextmanager
async def running_s3_server(folder: Path) -> AsyncIterator[str]:
    """Serves the folders in `folder` as buckets; returns the address."""
    (port,) = ports.find_free(1)
    command = (RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", str(folder))
    environ = {"RCLONE_CONFIG": os.devnull, "PATH": os.environ["PATH"]}
    server = await asyncio.create_subprocess_exec(*command, env=environ, stdout=DEVNULL, stderr=DEVNULL)

    async def accepts() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(accepts)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        await server.wait()


@pytest_asyncio.fixture(params=["folder", "s3"])
async def config(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Path]:
    if request.param == "folder":
        yield CONFIG
        return
    if not RCLONE:
        pytest.skip("NO RCLONE: install the development tools")
    (tmp_path / "buckets/backup").mkdir(parents=True)
    async with running_s3_server(tmp_path / "buckets") as url:
        changed = tmp_path / "litestream.yml"
        text = CONFIG.read_text()
        assert FOLDER in text
        changed.write_text(text.replace(FOLDER, f"      url: s3://backup/tailrace\n      endpoint: {url}\n"))
        yield changed
    assert list((tmp_path / "buckets/backup/tailrace").rglob("*.ltx"))


ERASED_TEXT = "the river knows my name"
# Litestream checks the journal each second. The limit is generous for slow machines.
EMPTIED_S_MAX = 40


async def test_deleted_text_leaves_the_journal_while_litestream_runs(tmp_path: Path) -> None:
    """Litestream prevents SQLite's own truncation of the journal, so it has to truncate the journal itself."""
    database = tmp_path / "tailrace.db"
    environ = {
        "TAILRACE_DATABASE": str(database),
        "TAILRACE_REPLICA": str(tmp_path / "replica"),
        "PATH": os.environ["PATH"],
    }

    def marks() -> int:
        return (tmp_path / "tailrace.db-wal").read_bytes().count(ERASED_TEXT.encode())

    async def is_copied() -> bool:
        return bool(list((tmp_path / "replica").rglob("*.ltx")))

    async with open_store(database, busy_timeout_s=5) as store:
        command = (LITESTREAM, "replicate", "-config", str(CONFIG))
        running = await asyncio.create_subprocess_exec(*command, env=environ, stdout=DEVNULL, stderr=DEVNULL)

        async def is_gone() -> bool:
            # As persistence does it: a checkpoint that was busy is repeated.
            await store.erase_journal()
            return marks() == 0

        try:
            await until(is_copied)
            for key in TURNS:
                await store.record([build_row(key, completed_turn(ERASED_TEXT * 1000).turn)])
            assert marks() >= 1000 * len(TURNS)
            session = DeleteResource("session", "session-1", tuple(key.turn for key in TURNS))
            assert (await store.delete(TURNS[0].tenant, session)).turns == len(TURNS)
            await until(is_gone, EMPTIED_S_MAX)
            assert running.returncode is None
        finally:
            running.terminate()
            await running.wait()


async def test_a_destroyed_database_is_restored_from_a_folder_or_a_bucket(config: Path, tmp_path: Path) -> None:
    """With what was written while Litestream ran."""
    database, replica = tmp_path / "tailrace.db", tmp_path / "replica"
    environ = {"TAILRACE_DATABASE": str(database), "TAILRACE_REPLICA": str(replica), "PATH": os.environ["PATH"]}
    environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    async def litestream(*arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(LITESTREAM, *arguments, env=environ, stdout=DEVNULL, stderr=DEVNULL)

    async def restored_turns() -> list[str]:
        copy = tmp_path / "copy.db"
        copy.unlink(missing_ok=True)
        status = await (await litestream("restore", "-config", str(config), "-o", str(copy), str(database))).wait()
        if status != 0:
            return []
        async with open_store(copy, busy_timeout_s=5) as store:
            found = [await store.turn(key) for key in TURNS]
        return [turn.text for turn in found if turn is not None]

    async with open_store(database, busy_timeout_s=5) as store:
        await store.record([build_row(TURNS[0], completed_turn("Rivers flow.").turn)])
        running = await litestream("replicate", "-config", str(config))
        try:
            for key in TURNS[1:]:
                await store.record([build_row(key, completed_turn("Rivers flow.").turn)])
            await until_equal(restored_turns, ["Rivers flow."] * len(TURNS))
        finally:
            running.terminate()
            await running.wait()
    destroy(database)
    assert await (await litestream("restore", "-config", str(config), str(database))).wait() == 0
    async with open_store(database, busy_timeout_s=5) as store:
        assert [turn.turn for key in TURNS if (turn := await store.turn(key))] == [key.turn for key in TURNS]
