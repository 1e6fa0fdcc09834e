"""Features in the database: what one adds to the core's transactions, and a store without any."""

from typing import Any

import msgspec
import pytest

from tailrace.persistence.commands import Commands
from tailrace.persistence.paging import NEWEST
from tailrace.persistence.queries import Queries
from tailrace.persistence.sql import statements
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows, Tables
from tailrace.persistence.turn_list import TurnPageQuery
from tailrace.proto.errors import Refused, StoreError
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, TurnId, TurnKey
from tailrace.proto.records import GetTurn, ListTurns, TurnRecord
from tailrace.proto.resources import DeleteResource
from tests.harness.stored_turns import OURS, key
from tests.harness.turn_builder import completed_turn

QUERIES = """
-- fragment: note
-- A note.
:note

-- name: put_note
-- Notes the text of a turn.
INSERT INTO searched (number, tenant, turn, words) SELECT cursor, tenant, turn, {note} FROM turns
WHERE tenant = :tenant AND turn = :turn AND cursor = :cursor

-- name: notes
-- All notes of a tenant.
SELECT turn, words FROM searched WHERE tenant = :tenant

-- name: delete_note
-- Deletes the note of a turn.
DELETE FROM searched WHERE tenant = :tenant AND turn = :turn
"""


def rows_of(_: TurnKey, turn: Turn, record: TurnRecord) -> AddedRows:
    """Adds a row for a turn that has ended."""
    return {"put_note": {"note": record.text}} if turn.end is not None else {}


NOTES = Tables(QUERIES, rows_of, delete_turn=["delete_note"])


@pytest.fixture
def noting(store: Store) -> Store:
    """The store, with this feature alone, which uses a table of the search."""
    return Store(store.database, [NOTES])


async def test_without_features_a_turn_is_recorded_listed_and_deleted(store: Store) -> None:
    """A search is refused: it would find nothing."""
    plain = Store(store.database)
    queries = Queries(plain, 60)
    await plain.record([plain.build_row(key("turn-1"), completed_turn("Light").turn)], Seq(9))
    assert (await queries.turn(OURS, GetTurn(TurnId("turn-1")))).text == "Light"
    assert [one.turn for one in (await queries.turns(OURS, ListTurns())).turns] == ["turn-1"]
    with pytest.raises(Refused, match=r"^`q`: this persistence process has no search") as refused:
        await queries.turns(OURS, ListTurns(text="light"))
    assert refused.value.code == "request_invalid"
    gone = await plain.delete(OURS, DeleteResource("turn", "turn-1", (TurnId("turn-1"),)))
    assert gone.turns == 1
    assert await plain.turn_list.read_page(TurnPageQuery(OURS, {}, None, NEWEST, 9)) == ([], None)


async def test_the_rows_of_a_feature_are_written_and_deleted_with_the_turn(noting: Store) -> None:
    row = noting.build_row(key("turn-1"), completed_turn("Light").turn)
    await noting.record([row])
    assert await noting.read("notes", tenant=OURS) == [{"turn": "turn-1", "words": "Light"}]
    await noting.delete(OURS, DeleteResource("turn", "turn-1", (TurnId("turn-1"),)))
    assert await noting.read("notes", tenant=OURS) == []


async def test_if_the_row_of_a_feature_cannot_be_written_neither_is_the_turn(noting: Store) -> None:
    """One transaction: otherwise the turn would never get its row."""
    row = noting.build_row(key("turn-1"), completed_turn("Light").turn)
    refused = msgspec.structs.replace(row, added={"put_note": {"note": None}})
    with pytest.raises(StoreError):
        await noting.record([refused], Seq(9))
    assert await noting.turn(key("turn-1")) is None
    assert await noting.read_recorded_upto() == 0


def test_two_statements_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^two statements have the same name: put_turn$"):
        statements([QUERIES, "-- name: put_turn\nSELECT 1\n"])
    assert set(statements([QUERIES])) - set(statements()) == {"put_note", "notes", "delete_note"}


async def test_without_its_feature_a_kind_of_resource_is_not_deleted(store: Store) -> None:
    nothing: Any = None
    commands = Commands(Store(store.database), nothing, nothing, nothing, nothing, nothing)
    for kind in ("project", "user", "tenant"):
        with pytest.raises(Refused, match=f"^this persistence process cannot delete a {kind}$") as refused:
            await commands.delete(OURS, DeleteResource(kind, "rivers"))
        assert refused.value.code == "request_invalid"
