"""Stores with a real SQLite file and a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tailrace.persistence.store import Store
from tests.harness.open_store import open_store

if TYPE_CHECKING:
    from tests.harness.postgresql import PostgreSQLServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tailrace.db"


@pytest_asyncio.fixture
async def file_store(path: Path) -> AsyncIterator[Store]:
    async with open_store(path) as store:
        yield store


@pytest_asyncio.fixture
async def store(either_database: Path | str) -> AsyncIterator[Store]:
    async with open_store(either_database) as store:
        yield store


@pytest_asyncio.fixture
async def postgresql_store(postgresql: PostgreSQLServer) -> AsyncIterator[Store]:
    async with open_store(await postgresql.new_database()) as store:
        yield store
