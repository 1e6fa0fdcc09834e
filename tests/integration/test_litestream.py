"""The configuration for Litestream: the database is destroyed, and restored from a folder."""

import asyncio
import os
import shutil
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tailrace.persistence.rows import build_row
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.subjects import TurnKey
from tests.harness.processes import CHECKOUT
from tests.harness.turn_builder import completed_turn
from tests.harness.until import until

CONFIG = f"{CHECKOUT}/deploy/litestream/litestream.yml"
LITESTREAM = shutil.which("litestream", path=f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}") or ""
TURNS = [TurnKey(Tenant("ours"), TurnId(f"turn-{number}")) for number in range(3)]

pytestmark = pytest.mark.skipif(not LITESTREAM, reason="NO LITESTREAM: install the development tools")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = await Store.open(path, busy_timeout_s=5)
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


def destroy(database: Path) -> None:
    """Removes a database with its journal."""
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()


async def test_a_destroyed_database_is_restored_from_the_folder(tmp_path: Path) -> None:
    """With what was written while Litestream ran."""
    database, replica = tmp_path / "tailrace.db", tmp_path / "replica"
    environ = {"TAILRACE_DATABASE": str(database), "TAILRACE_REPLICA": str(replica), "PATH": os.environ["PATH"]}

    async def litestream(*arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(LITESTREAM, *arguments, env=environ, stdout=DEVNULL, stderr=DEVNULL)

    async def restored_turns() -> list[str]:
        copy = tmp_path / "copy.db"
        copy.unlink(missing_ok=True)
        status = await (await litestream("restore", "-config", CONFIG, "-o", str(copy), str(database))).wait()
        if status != 0:
            return []
        async with opened(copy) as store:
            found = [await store.turn(key) for key in TURNS]
        return [turn.text for turn in found if turn is not None]

    async def has_all() -> bool:
        return await restored_turns() == ["Rivers flow."] * len(TURNS)

    async with opened(database) as store:
        await store.record([build_row(TURNS[0], completed_turn("Rivers flow.").turn)])
        running = await litestream("replicate", "-config", CONFIG)
        try:
            for key in TURNS[1:]:
                await store.record([build_row(key, completed_turn("Rivers flow.").turn)])
            await until(has_all)
        finally:
            running.terminate()
            await running.wait()
    destroy(database)
    assert await (await litestream("restore", "-config", CONFIG, str(database))).wait() == 0
    async with opened(database) as store:
        assert [turn.turn for key in TURNS if (turn := await store.turn(key))] == [key.turn for key in TURNS]
