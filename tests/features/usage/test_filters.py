"""Usage by one or two dimensions with filters: every table is exact, whatever happens to turns, users and sessions."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import permutations
from typing import Any

import msgspec
import pytest

from tailrace.features.unstored.unstored_turns import without_content
from tailrace.features.usage.persistence import UsageQueries
from tailrace.features.usage.records import GetUsage, GetUsageBy, UsageRecord, parse_by, usage_query
from tailrace.persistence.queries import Queries
from tailrace.persistence.rows import TurnRow, micros, moment
from tailrace.persistence.store import Store
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnId
from tailrace.proto.records import Totals
from tailrace.proto.resources import DeleteResource, Kind
from tests.features.usage.test_bill import Counts, counts_of, delete, sum_of
from tests.harness.stored_turns import OURS, THEIRS, counting_reads, running_row
from tests.harness.turn_builder import NOON

DIMENSIONS = ("day", "model", "key", "user", "session", "project", "metadata.team", "metadata.a,b")
TURNS, DAYS = 500, 5
FIRST, LAST = NOON.date(), NOON.date() + timedelta(days=DAYS - 1)
KINDS: tuple[Kind, ...] = (*("turn", "session", "user", "project"), *("turn", "session") * 2, "user", "session")
Keys = tuple[str, ...]
# They sort after and before all others, and PostgreSQL stores neither NUL nor U+0001 as it is.
NAMES = ("ann", "bob", "=1+1", "\U0010ffff", "\x01")


def new_row(chance: random.Random, number: int, **given: Any) -> TurnRow:
    """A turn that has ended, with any labels."""
    user, model, key = chance.choice((*NAMES, None)), chance.choice("mno"), chance.choice(("k", "l", None))
    metadata = {"team": chance.choice(("red", "blue", "")), "a,b": chance.choice(NAMES)}
    labels = {"model": model, "key": key, "user": user, "owner": chance.choice((None, "ann", "bob"))}
    labels |= {f"metadata.{name}": value for name, value in metadata.items() if chance.random() < 0.7}
    session = f"session-{chance.randrange(40)}"
    row = msgspec.structs.replace(
        running_row(f"turn-{number:03}", session=session, user=user),
        model=model,
        asked_by=key,
        project=chance.choice((*[None] * 8, "rivers", "hills")),
        outcome=chance.choice(("completed", "completed", "cancelled", "failed")),
        asked_at=micros(NOON + timedelta(days=chance.randrange(DAYS), seconds=chance.randrange(9))),
        labels=msgspec.json.encode({name: value for name, value in labels.items() if value is not None}).decode(),
        messages=2,
        input_tokens=chance.randrange(1000),
        output_tokens=chance.randrange(1000),
        cost_nusd=chance.randrange(10**9),
        cursor=number,
    )
    return msgspec.structs.replace(row, **given)


async def record_after_kill(chance: random.Random, store: Store, rows: Sequence[TurnRow]) -> None:
    """Records turns; the first time, the process may be killed before or after the transaction is committed."""
    if chance.random() < 0.5:
        recording = asyncio.create_task(store.record(rows))
        await asyncio.sleep(chance.choice((0, 0.001, 0.01)))
        recording.cancel()
        with suppress(asyncio.CancelledError):
            await recording
    await store.record(rows)


async def record_unstored(chance: random.Random, store: Store, row: TurnRow) -> None:
    """Counts a turn with `store: false` and deletes it, as persistence does."""
    await record_after_kill(chance, store, [without_content(row, store.of_unstored(row))])
    await store.delete(OURS, DeleteResource("session", row.session, (TurnId(row.turn),)))


async def record_500_turns(chance: random.Random, store: Store) -> tuple[list[TurnRow], list[TurnRow]]:
    """Records turns with kills, unstored ones, deletions and erasures; returns those that exist, and the others."""
    rows: dict[str, TurnRow] = {}
    gone: list[TurnRow] = []
    await store.record([new_row(chance, number, tenant=THEIRS) for number in range(9)])
    for number in range(TURNS):
        row = new_row(chance, number)
        if number % 10 == 3:
            row = msgspec.structs.replace(row, session=f"unstored-{number}")
            await record_unstored(chance, store, row)
            gone.append(row)
            continue
        rows[row.turn] = row
        if number % 10 == 9:
            await record_after_kill(chance, store, list(rows.values())[-25:])
        if number % 50 == 49:
            kind: Kind = KINDS[number // 50]
            names = {"turn": row.turn, "session": row.session, "project": chance.choice(("rivers", "hills"))}
            await delete(store, kind, names.get(kind) or chance.choice(("ann", "=1+1")))
            left = {
                one["turn"] for one in await store.database.read("SELECT turn FROM turns WHERE tenant = 'ours'", {})
            }
            gone += [rows.pop(turn) for turn in list(rows) if turn not in left]
    assert (len(rows) + len(gone), len(rows) > 150, len(gone) > 150) == (TURNS, True, True)
    return list(rows.values()), gone


async def read_all(store: Store, query: GetUsageBy) -> tuple[list[UsageRecord], Totals]:
    """Returns all pages of a query, and the total."""
    queries, found = UsageQueries(store, Queries(store, 86400)), list[UsageRecord]()
    page = await queries.usage_by(OURS, query)
    while True:
        assert len(page.usage) <= query.limit
        found += page.usage
        if page.next is None:
            assert page.total is not None
            return found, page.total
        page = await queries.usage_by(OURS, msgspec.structs.replace(query, after=page.next))


def counts_of_rows(rows: Sequence[TurnRow]) -> Counts:
    return sum_of(
        [
            (
                *(1, one.messages, one.input_tokens, one.output_tokens),
                *(one.cache_creation_input_tokens, one.cache_read_input_tokens, one.cost_nusd),
            )
            for one in rows
        ]
    )


class Oracle:
    """The right tables, computed from the rows of the turns."""

    def __init__(self, rows: Sequence[TurnRow], gone: Sequence[TurnRow], projects: Mapping[str, str | None]) -> None:
        """`projects` are those of the sessions."""
        self.rows = rows
        self.every = counts_of_rows([*rows, *gone])
        self._projects = projects

    def name_in(self, row: TurnRow, dimension: str) -> str:
        """Returns the value of a turn in a dimension, '' without one."""
        labels = msgspec.json.decode(row.labels, type=dict[str, str])
        names = {
            "day": str(moment(row.asked_at).date()),
            "session": row.session,
            "project": self._projects[row.session] or "",
        }
        return names.get(dimension) or labels.get(dimension, "")

    def table(
        self, by: Sequence[str], filters: Mapping[str, str], total: Counts | None, owner: str | None = None
    ) -> tuple[list[tuple[Keys, Counts]], Counts]:
        """Returns keys and counts of each record, and the total. Without a `total`, it is that of the rows."""
        wanted = filters if owner is None else {**filters, "owner": owner}
        found = [row for row in self.rows if all(self.name_in(row, name) == value for name, value in wanted.items())]
        groups: dict[Keys, list[TurnRow]] = {}
        for row in found:
            groups.setdefault(tuple(self.name_in(row, name) for name in by), []).append(row)
        named = {keys: counts_of_rows(some) for keys, some in groups.items() if any(keys)}
        total = total or counts_of_rows(found)
        rest = tuple(all_ - one for all_, one in zip(total, sum_of(list(named.values())), strict=True))
        without = [(("",) * len(by), rest)] if any(rest) else []
        return [*without, *sorted(named.items())], total


def shown(records: Sequence[UsageRecord]) -> list[tuple[Keys, Counts]]:
    for one in records:
        assert one.key == one.keys[0]
    return [(tuple(key or "" for key in one.keys), counts_of(one)) for one in records]


def query_of(by: Sequence[str], filters: Mapping[str, str], limit: int, **given: Any) -> GetUsageBy:
    return GetUsageBy(list(by), FIRST, LAST, dict(filters), limit=limit, **given)


@pytest.mark.rule("R90")
@pytest.mark.timeout(120)
async def test_every_grouping_pair_and_filter_is_exact_over_500_mixed_turns(store: Store) -> None:
    """With kills, turns with `store: false`, deletions and erasures. All tables sum to the same totals."""
    chance = random.Random(5)
    rows, gone = await record_500_turns(chance, store)
    sessions = await store.database.read("SELECT session, project FROM sessions WHERE tenant = 'ours'", {})
    oracle = Oracle(rows, gone, {one["session"]: one["project"] for one in sessions})
    # What the totals know of each name, also of deleted turns; test_bill.py compares them with the turns.
    names: dict[tuple[str, str], Counts] = {}
    for dimension in DIMENSIONS:
        found, total = await read_all(store, query_of([dimension], {}, 50))
        assert counts_of(total) == sum_of([counts_of(one) for one in found]) == oracle.every
        names |= {(dimension, one.key): counts_of(one) for one in found if one.key is not None}
    groupings = [*permutations(DIMENSIONS, 1), *permutations(DIMENSIONS, 2)]
    for by in groupings[len(DIMENSIONS) :]:
        limit = chance.choice((7, 200, 10_000))
        found, total = await read_all(store, query_of(by, {}, limit))
        assert (by, shown(found), counts_of(total)) == (by, *oracle.table(by, {}, oracle.every))
    filters = [name for name in names if name[0] != "day"]
    for dimension, name in filters:
        for by in chance.sample(groupings, 12):
            table = await read_all(store, query_of(by, {dimension: name}, chance.choice((3, 200))))
            expected, sum_of_name = oracle.table(by, {dimension: name}, names[dimension, name])
            assert counts_of(table[1]) == sum_of([counts_of(one) for one in table[0]]) == sum_of_name
            if {*by} <= {"day", dimension}:
                # The totals also have the days and the name of deleted turns.
                assert {keys for keys, _ in shown(table[0])} >= {keys for keys, _ in expected if any(keys)}
            else:
                assert (by, dimension, name, shown(table[0])) == (by, dimension, name, expected)
    for count in (2, 3, 8):
        for _ in range(40):
            row, by = chance.choice(rows), chance.choice(groupings)
            some = {one: oracle.name_in(row, one) for one in chance.sample(DIMENSIONS[1:], min(count, 7))}
            some = {one: value for one, value in some.items() if value}
            if len(some) > 1:
                table = await read_all(store, query_of(by, some, 50))
                assert (by, some, shown(table[0]), counts_of(table[1])) == (by, some, *oracle.table(by, some, None))
    for owner in ("ann", "bob"):
        for by in chance.sample(groupings, 12):
            for some in ({}, {"model": "m"}, {"session": "session-1"}, {"user": "bob", "metadata.team": "red"}):
                table = await read_all(store, query_of(by, some, 50, viewer=owner))
                expected_table = oracle.table(by, some, None, owner)
                assert (by, some, shown(table[0]), counts_of(table[1])) == (by, some, *expected_table)
    await delete(store, "tenant", OURS)
    for by in groupings[len(DIMENSIONS) :]:
        found, _ = await read_all(store, query_of(by, {}, 50))
        assert [(one.keys, counts_of(one)) for one in found] == [([None, None], oracle.every)]


@pytest.mark.rule("R91")
async def test_a_table_of_a_user_is_that_of_its_rows_while_the_user_is_erased(store: Store) -> None:
    """The totals have lost the name with the first turn. No record is negative, and none names an erased user."""
    chance = random.Random(2)
    rows = [new_row(chance, number, user="ann", labels='{"model":"m","user":"ann"}') for number in range(20)]
    await store.record(rows)
    await store.delete(OURS, DeleteResource("user", "ann", (TurnId(rows[0].turn),)))
    for by in (["model"], ["model", "day"], ["project"]):
        found, total = await read_all(store, query_of(by, {"user": "ann"}, 50))
        assert counts_of(total) == sum_of([counts_of(one) for one in found]) == counts_of_rows(rows[1:])
    await delete(store, "user", "ann")
    for text in ("user", "user,day", "day,user", "session,user"):
        found, total = await read_all(store, query_of(parse_by(text), {}, 50))
        assert (total.turns, "ann" in str(found)) == (20, False)
    assert await read_all(store, query_of(["model"], {"user": "ann"}, 50)) == await read_all(
        store, query_of(["user"], {"user": "ann"}, 50)
    )


async def test_more_than_31_days_of_turns_are_refused_and_totals_have_a_year(store: Store) -> None:
    chance, first = random.Random(3), LAST - timedelta(days=31)
    await store.record([new_row(chance, number) for number in range(30)])
    queries = UsageQueries(store, Queries(store, 60))
    for by, filters in (
        (["day", "model"], {}),
        (["day"], {"user": "ann", "model": "m"}),
        (["model"], {"user": "ann"}),
        (["day", "user"], {"model": "m"}),
    ):
        query = GetUsageBy(by, first, LAST, filters)
        with pytest.raises(Refused, match=r"`from` to `to` are 32 days: .* at most 31 at once") as refused:
            await queries.usage_by(OURS, query)
        assert (refused.value.code, refused.value.param) == ("request_invalid", "from")
        with pytest.raises(Refused):
            await queries.usage_by(OURS, msgspec.structs.replace(query, viewer="ann"))
        await queries.usage_by(OURS, msgspec.structs.replace(query, first=first + timedelta(days=1)))
    for by, filters in (
        (["model"], {}),
        (["day"], {"user": "ann"}),
        (["user"], {"user": "ann"}),
        (["user", "day"], {"user": "ann"}),
    ):
        page = await queries.usage_by(OURS, GetUsageBy(by, LAST - timedelta(days=365), LAST, filters))
        assert page.total is not None
        assert page.total.turns > 0


async def test_filters_read_only_the_turns_that_they_select(store: Store) -> None:
    """A tenant may have many others. One name by day reads no turns, but its totals."""
    chance, made, costs = random.Random(4), 0, []
    few = {"user": "few", "metadata.few": "yes", "key": "few"}
    for total in (40, 2000):
        rows = []
        for number in range(made, total):
            labels = {"model": "m", **(few if number < 5 else {"user": "many", "key": "many"})}
            name = "few" if number < 5 else "many"
            given = {"session": f"{name}-{number % 50}", "project": name, "user": name, "asked_by": name}
            rows.append(new_row(chance, number, **given, labels=msgspec.json.encode(labels).decode()))
        await store.record(rows)
        made = total
        if store.system == "postgresql":
            # PostgreSQL does that itself, a minute later.
            await store.database.read("ANALYZE", {})
        of_each = []
        for by, filters in (
            (["model", "day"], {"user": "few"}),
            (["model", "user"], {"metadata.few": "yes"}),
            (["user"], {"key": "few"}),
            (["user", "model"], {"session": "few-1"}),
            (["user", "model"], {"project": "few"}),
            (["day"], {"user": "many"}),
        ):
            async with counting_reads(store) as read:
                await read_all(store, query_of(by, filters, 50))
            of_each.append(sum(read))
        costs.append(of_each)
    assert [(few, many) for few, many in zip(*costs, strict=True) if many > 2 * few] == []


def test_an_older_persistence_process_is_never_asked_with_filters() -> None:
    """It would ignore them, and answer with the usage of all turns."""
    assert usage_query(["day"], {}, FIRST, LAST).query == GetUsage.query
    for by, filters in ((["day"], {"user": "ann"}), (["day", "user"], {})):
        assert usage_query(by, filters, FIRST, LAST).query == GetUsageBy.query != GetUsage.query


@pytest.mark.parametrize(
    "by", ["", "days", "day,", "day,day", "day,model,user", "metadata.", "day,tenant", "metadata.a,b"]
)
def test_dimensions_that_do_not_exist_are_refused(by: str) -> None:
    with pytest.raises(ValueError, match="`by` is"):
        parse_by(by)


async def test_records_and_total_are_of_one_moment_while_turns_end_and_are_deleted(store: Store) -> None:
    chance = random.Random(6)
    await store.record([new_row(chance, number, user="ann") for number in range(40)])

    async def change() -> None:
        for number in range(40, 140):
            await store.record([new_row(chance, number, user="ann")])
            if number % 3 == 0:
                gone = (TurnId(f"turn-{chance.randrange(number):03}"),)
                await store.delete(OURS, DeleteResource("session", "none", gone))

    changing, seen = asyncio.create_task(change()), set[int]()
    while not changing.done():
        for by, filters in (
            (["user", "model"], {}),
            (["session"], {"model": "m"}),
            (["day"], {"metadata.team": "red"}),
        ):
            found, total = await read_all(store, query_of(by, filters, 10_000))
            assert counts_of(total) == sum_of([counts_of(one) for one in found]), (by, filters)
            seen.add(total.turns)
    await changing
    assert len(seen) > 5
