"""A bill: each grouping of usage has the same sum, whatever happens to turns, users and sessions."""

import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tailrace.features.usage.persistence import UsageQueries
from tailrace.features.usage.records import GetUsage, UsageRecord
from tailrace.persistence.queries import Queries
from tailrace.persistence.rows import TurnRow, micros
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant
from tailrace.proto.records import Totals
from tailrace.proto.resources import DeleteResource, Kind
from tests.harness.stored_turns import OURS, THEIRS, running_row, with_batch
from tests.harness.turn_builder import NOON

FIRST, LAST = NOON.date(), NOON.date() + timedelta(days=2)
GROUPINGS = (
    "day", "model", "key", "user", "session", "project",
    "metadata.team", "metadata.who", "metadata.empty", "metadata.none",
)  # fmt: skip
OUTCOMES = ("running", "completed", "cancelled", "failed")
Counts = tuple[int, ...]


def counts_of(one: Totals) -> Counts:
    return (one.turns, one.message_count, *msgspec.structs.astuple(one.usage), round(one.cost_usd * 1e9))


def sum_of(every: list[Counts]) -> Counts:
    return tuple(map(sum, zip(*every, strict=True))) if every else (0,) * 7


def new_row(chance: random.Random, turn: str, tenant: Tenant) -> TurnRow:
    user = chance.choice(("ann", "bob", None))
    metadata = {"team": chance.choice("ab"), "who": user or "ann", "empty": chance.choice(("", "x"))}
    kept = {name: value for name, value in metadata.items() if chance.random() < 0.6}
    row = running_row(turn, session=f"session-{chance.randrange(5)}", metadata=kept, user=user)
    return msgspec.structs.replace(
        row,
        tenant=tenant,
        model=chance.choice("mn"),
        asked_by=chance.choice(("k", None)),
        project=chance.choice((None, None, "rivers")),
        asked_at=micros(NOON + timedelta(days=chance.randrange(3), seconds=chance.randrange(9))),
    )


def progress(chance: random.Random, row: TurnRow) -> TurnRow:
    """The row of a later fold of the turn."""
    counted: dict[str, Any] = {name: chance.randrange(1000) for name in ("input_tokens", "output_tokens", "cost_nusd")}
    row = msgspec.structs.replace(row, outcome=chance.choice(OUTCOMES), cursor=row.cursor + 1, messages=2, **counted)
    return with_batch(row, '{"of":1,"parallel":1}' if chance.random() < 0.2 else None)


async def delete(store: Store, kind: Kind, name: str) -> None:
    """Deletes as the gateway does: in rounds, until no turn is left."""
    while purged := tuple(one.turn for one in await store.turns_to_delete(OURS, DeleteResource(kind, name))):
        await store.delete(OURS, DeleteResource(kind, name, purged))
    await store.delete(OURS, DeleteResource(kind, name))


async def read_pages(store: Store, by: str, limit: int) -> tuple[list[UsageRecord], Totals | None]:
    queries = UsageQueries(store, Queries(store, 86400))
    page = await queries.usage(OURS, GetUsage(by, FIRST, LAST, limit=limit))
    found = page.usage
    while page.next is not None:
        page = await queries.usage(OURS, GetUsage(by, FIRST, LAST, page.next, limit))
        found += page.usage
    return found, page.total


@pytest.mark.rule("R90")
@pytest.mark.parametrize("seed", range(4))
async def test_each_grouping_has_the_same_sum_after_any_changes(store: Store, seed: int) -> None:
    """Turns run, end, fail, belong to batches, and are deleted; users, sessions, projects and tenants are erased."""
    chance = random.Random(seed)
    rows: dict[str, TurnRow] = {}
    gone: list[TurnRow] = []
    await store.record([new_row(chance, "turn-1", THEIRS)])
    for step in range(80):
        if step % 8 == 7:
            kind: Kind = chance.choice(("turn", "session", "project", "user", "user", "tenant"))
            names = {"turn": chance.choice(list(rows)), "session": "session-1", "project": "rivers", "tenant": "ours"}
            await delete(store, kind, names.get(kind) or chance.choice(("ann", "bob")))
            left = {
                one["turn"] for one in await store.database.read("SELECT turn FROM turns WHERE tenant = 'ours'", {})
            }
            gone += [rows.pop(turn) for turn in list(rows) if turn not in left]
        rows[f"turn-{step}"] = new_row(chance, f"turn-{step}", OURS)
        changed = {f"turn-{step}", *chance.sample(list(rows), min(3, len(rows)))}
        rows |= {turn: progress(chance, rows[turn]) for turn in changed if chance.random() < 0.8}
        # Rows are also written again without a change.
        await store.record([rows[turn] for turn in (rows if step % 5 == 0 else changed)])
        expected = sum_of(
            [
                (
                    *(1, one.messages, one.input_tokens, one.output_tokens),
                    *(one.cache_creation_input_tokens, one.cache_read_input_tokens, one.cost_nusd),
                )
                for one in (*gone, *rows.values())
            ]
        )
        for by in GROUPINGS:
            found, total = await read_pages(store, by, chance.choice((1, 2, 50)))
            assert total is not None
            assert (by, sum_of([counts_of(one) for one in found])) == (by, expected)
            assert counts_of(total) == expected
            assert len({one.key for one in found}) == len(found)
    assert len(gone) > 10
