"""A store that is closed also when the test fails: an open one has threads, for which pytest would wait at its end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tailrace.features.persistence import DATABASES, TABLES
from tailrace.persistence.store import Store


@asynccontextmanager
async def open_store(
    where: Path | str, kind: type[Store] = Store, *, busy_timeout_s: float = 0.05
) -> AsyncIterator[Store]:
    """Yields the migrated database of a path or URL, with the statements of all features."""
    store = kind(await DATABASES.open(where, busy_timeout_s=busy_timeout_s), TABLES)
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()
