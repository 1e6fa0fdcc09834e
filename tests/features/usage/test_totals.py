"""Usage and totals of sessions, projects, users and days."""

import random
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tailrace.features.projects.persistence import ProjectTable
from tailrace.features.usage.persistence import UsageTable
from tailrace.persistence.rows import MICROSECOND, TurnRow, build_row, micros, moment
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.resources import DeleteResource
from tailrace.proto.usage import Usage
from tests.harness.stored_turns import DIMENSIONS, OURS, THEIRS, key, running_row, session_of
from tests.harness.turn_builder import NOON, completed_turn


async def test_a_session_and_a_project_have_their_own_totals_although_other_things_have_their_name(
    store: Store,
) -> None:
    """A user, a model and metadata with the same name, and a session and project of another tenant."""
    row = build_row(key("turn-1"), completed_turn("Light").turn)
    labels = {"model": "same", "key": "same", "user": "same", "metadata.same": "same"}
    names = dict.fromkeys(("session", "project", "user", "model", "asked_by"), "same")
    row = msgspec.structs.replace(row, labels=msgspec.json.encode(labels).decode(), **names)
    await store.record([row, msgspec.structs.replace(row, tenant=THEIRS)])
    found = await ProjectTable(store).project(OURS, "same", NOON)
    assert found is not None
    assert ((await session_of(store, "same")).turns, found.turns) == (1, 1)


async def test_deleted_turns_stay_in_the_totals_of_their_tenant_and_project(store: Store) -> None:
    """Until the project is deleted as well, which leaves its usage without a project. No id is kept."""
    first = last = NOON.date()
    ended = completed_turn("Light").turn
    rows = [build_row(key(turn), ended) for turn in ("turn-1", "turn-2")]
    await store.record([msgspec.structs.replace(row, project="rivers", asked_by="key-1") for row in rows])
    groups = ("day", "model", "key", "project", "user")

    async def turns_by(group: str) -> list[tuple[str | None, int]]:
        return [(one.key, one.turns) for one in (await UsageTable(store).usage(OURS, group, first, last, "", 9))[0]]

    before = [(await UsageTable(store).usage(OURS, by, first, last, "", 9))[0] for by in groups]
    project = await ProjectTable(store).project(OURS, "rivers", NOON)
    for gone in rows[:1], rows[:1], rows[1:]:
        await store.delete(OURS, DeleteResource("session", "session-1", (TurnId(gone[0].turn),)))
        assert [(await UsageTable(store).usage(OURS, by, first, last, "", 9))[0] for by in groups] == before
        left = await ProjectTable(store).project(OURS, "rivers", NOON)
        assert project is not None
        assert left is not None
        assert (left.turns, left.cost_usd, left.usage) == (2, project.cost_usd, project.usage)
    assert await turns_by("session") == [(None, 2)]
    await store.delete(OURS, DeleteResource("project", "rivers"))
    assert await turns_by("project") == [(None, 2)]
    assert (await UsageTable(store).usage(THEIRS, "day", first, last, "", 9))[0] == []


async def totals_of(
    store: Store, tenant: Tenant, first: date, last: date
) -> dict[tuple[str, str | None], tuple[object, ...]]:
    """Returns the totals of some days, except those without turns."""
    return {
        (by, one.key): (one.turns, one.message_count, one.usage, round(one.cost_usd * 1e9), one.last_used)
        for by in DIMENSIONS
        for one in (await UsageTable(store).usage(tenant, by, first, last, "", 99))[0]
        if one.turns
    }


def sums(counted: Iterable[tuple[TurnRow, dict[str, str | None]]]) -> dict[tuple[str, str | None], tuple[object, ...]]:
    """Returns the totals of turns with their names, as `totals_of` does."""
    rows: dict[tuple[str, str | None], list[TurnRow]] = {}
    for row, names in counted:
        for name in names.items():
            rows.setdefault(name, []).append(row)
    return {
        name: (
            len(found),
            sum(row.messages for row in found),
            Usage(
                sum(row.input_tokens for row in found),
                sum(row.output_tokens for row in found),
                sum(row.cache_creation_input_tokens for row in found),
                sum(row.cache_read_input_tokens for row in found),
            ),
            sum(row.cost_nusd for row in found),
            moment(max(row.asked_at for row in found)),
        )
        for name, found in rows.items()
    }


@pytest.mark.rule("R90")
async def test_totals_are_the_sums_of_the_turns_after_any_changes(store: Store) -> None:
    """Turns begin, end, are written again, get a project late, and are deleted. Deleted ones have no session and no
    metadata."""
    chance = random.Random(7)
    kept: dict[str, TurnRow] = {}
    deleted: list[tuple[TurnRow, dict[str, str | None]]] = []
    first, theirs = NOON.date(), running_row("turn-1", session="session-1", metadata={"team": "c"})
    await store.record([msgspec.structs.replace(theirs, tenant=THEIRS)])
    before = await totals_of(store, THEIRS, first, first)

    def names_of(row: TurnRow, project: str | None) -> dict[str, str | None]:
        team = msgspec.json.decode(row.labels)["metadata.team"]
        names = {"model": row.model, "key": row.asked_by, "user": row.user, "metadata.team": team}
        return {**names, "day": str(moment(row.asked_at).date()), "session": row.session, "project": project}

    async def project_of(session: str) -> str | None:
        return (await session_of(store, session)).project_id

    for step in range(150):
        turn = f"turn-{chance.randrange(30)}"
        if turn in kept and chance.random() < 0.3:
            gone = kept.pop(turn)
            names = names_of(gone, await project_of(gone.session))
            deleted.append((gone, names | {"session": None, "metadata.team": None}))
            await store.delete(OURS, DeleteResource("session", gone.session, (TurnId(turn),)))
            continue
        given: dict[str, Any] = {"metadata": {"team": chance.choice("ab")}, "user": chance.choice(["ann", None])}
        row = kept.get(turn) or msgspec.structs.replace(
            running_row(turn, session=f"session-{chance.randrange(6)}", **given),
            asked_at=micros(NOON + timedelta(days=chance.randrange(2), seconds=step)),
            asked_by=chance.choice(("k", None)),
        )
        kept[turn] = msgspec.structs.replace(
            row,
            cursor=row.cursor + step,
            project=chance.choice([None, None, "rivers", "hills"]),
            messages=step % 3,
            input_tokens=step,
            output_tokens=2 * step,
            cache_creation_input_tokens=3 * step,
            cache_read_input_tokens=4 * step,
            cost_nusd=5 * step,
        )
        others = [row for row in kept.values() if row.turn != turn]
        await store.record([kept[turn], *chance.sample(others, min(2, len(others)))])
        projects = {session: await project_of(session) for session in {row.session for row in kept.values()}}
        counted = [*deleted, *[(row, names_of(row, projects[row.session])) for row in kept.values()]]
        last = first + timedelta(days=1)
        for begin, end in ((first, first), (last, last), (first, last)):
            expected = sums(one for one in counted if begin <= moment(one[0].asked_at).date() <= end)
            found = await totals_of(store, OURS, begin, end)
            # The last use is also that of turns that have left a total.
            assert {name: total[:4] for name, total in found.items()} == {
                name: total[:4] for name, total in expected.items()
            }
            always = [name for name in expected if name[0] in ("day", "model", "key", "user")]
            assert [found[name][4] for name in always] == [expected[name][4] for name in always]
    assert len(deleted) > 5
    assert await totals_of(store, THEIRS, first, first) == before


async def test_usage_is_grouped_by_utc_day(store: Store) -> None:
    """A turn a microsecond before midnight belongs to the day that ends."""
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    times = {"turn-1": midnight - MICROSECOND, "turn-2": midnight, "turn-3": midnight + timedelta(days=1)}
    await store.record(
        [msgspec.structs.replace(running_row(turn), asked_at=micros(at), input_tokens=7) for turn, at in times.items()]
    )

    async def days(first: datetime, last: datetime, after: str = "") -> list[tuple[str | None, int]]:
        totals = (await UsageTable(store).usage(OURS, "day", first.date(), (last - MICROSECOND).date(), after, 9))[0]
        return [(one.key, one.total_tokens) for one in totals]

    assert await days(midnight - timedelta(days=1), midnight) == [("2026-01-01", 7)]
    assert await days(midnight, midnight + timedelta(days=1)) == [("2026-01-02", 7)]
    assert await days(midnight, midnight + timedelta(days=9), "2026-01-02\0") == [("2026-01-03", 7)]
    assert (await UsageTable(store).usage(THEIRS, "day", NOON.date(), midnight.date(), "", 9))[0] == []
