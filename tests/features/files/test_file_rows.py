"""Uploaded files in the database."""

import pytest
from prometheus_client import REGISTRY

from tailrace.features.files.persistence import FileTable
from tailrace.persistence.store import Store
from tests.harness.stored_turns import (
    OURS,
    file_record,
)
from tests.harness.turn_builder import NOON

TRANSACTIONS = "tailrace_persistence_transaction_seconds_count"


async def test_many_files_are_deleted_in_few_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.features.files.persistence.DELETE_FILES_MAX", 4)
    table, files = FileTable(store), [f"file-{number}" for number in range(10)]
    for file in files:
        await table.put_file(OURS, file_record(file, expires_at=NOON))
    assert await table.expired_files(NOON) == {OURS: files}
    before = REGISTRY.get_sample_value(TRANSACTIONS) or 0
    await table.delete_files(OURS, await table.every_file(OURS))
    assert (REGISTRY.get_sample_value(TRANSACTIONS) or 0) - before == 3
    assert await table.every_file(OURS) == []
    assert await store.released_blobs(OURS) == files
