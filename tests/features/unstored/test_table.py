"""The notes of turns with `store: false` in the database."""

import pytest

from tailrace.features.unstored.table import UnstoredTable
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tests.harness.stored_turns import (
    OURS,
    THEIRS,
    key,
)


async def test_the_notes_of_turns_that_are_not_stored_are_read_in_pages(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.features.unstored.table.UNSTORED_MAX", 2)
    noted = [key(f"turn-{number}", tenant) for tenant in (OURS, THEIRS) for number in range(3)]
    for one in noted[::-1]:
        await UnstoredTable(store).put(one, "ann")
    found, after = list[TurnKey](), TurnKey(Tenant(""), TurnId(""))
    while page := await UnstoredTable(store).every(after):
        assert len(page) <= 2
        found, after = [*found, *page], page[-1]
    assert found == noted
    await UnstoredTable(store).forget(noted[:1])
    for user in ("ann", None):
        assert await UnstoredTable(store).list_of_user(OURS, user) == ["turn-1", "turn-2"]
        assert len(await UnstoredTable(store).list_of_user(THEIRS, user)) == 2
