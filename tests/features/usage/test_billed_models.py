"""Usage and cost by the model that is billed, and since when they are whole."""

from datetime import timedelta

import msgspec

from tailrace.features.usage.persistence import TABLES, UsageQueries, UsageTable
from tailrace.features.usage.records import BilledUsage, GetBilledUsage, GetUsage
from tailrace.persistence.queries import Queries
from tailrace.persistence.rows import TurnRow, build_row, turn_record
from tailrace.persistence.store import Store
from tailrace.proto.end_entry import build_end
from tailrace.proto.records import ModelShare, record_from_fold
from tailrace.proto.usage import ModelUsage, Usage
from tests.harness.stored_turns import OURS, THEIRS, key
from tests.harness.turn_builder import MODEL, NOON, completed_turn, started_turn

TODAY = NOON.date()
BY_MODEL = {
    MODEL: ModelUsage(10, 2, cost_nano_usd=40),
    "claude-opus-4-8": ModelUsage(5, 1, 3, 4, cost_nano_usd=9, cost_is_unknown=True),
}
TOTAL = Usage(15, 3, 3, 4)


def billed_row(turn: str, **given: object) -> TurnRow:
    """The row of an ended turn for which two models have worked."""
    log = started_turn("Light")
    fields: dict[str, object] = {"by_model": BY_MODEL, "usage": TOTAL, "cost_nano_usd": 49, "answered_by": "x"}
    log.store(msgspec.structs.replace(build_end(log.turn, "completed"), **(fields | given)))
    return build_row(key(turn), log.turn, [TABLES.rows])


async def test_a_record_has_the_model_that_answered_and_the_usage_of_each(store: Store) -> None:
    """From the log as from the database."""
    log = started_turn("Light")
    log.store(msgspec.structs.replace(build_end(log.turn, "completed"), by_model=BY_MODEL, answered_by="x"))
    await store.record([build_row(key("turn-1"), log.turn)])
    stored = await store.turn(key("turn-1"))
    assert stored == record_from_fold(key("turn-1"), log.turn)
    assert stored is not None
    assert stored.answered_by == "x"
    assert stored.by_model == {
        MODEL: ModelShare(10, 2, cost_usd=4e-8),
        "claude-opus-4-8": ModelShare(5, 1, 3, 4, cost_usd=None),
    }


async def test_the_billed_usage_has_each_model_with_what_it_is_billed_for(store: Store) -> None:
    """Also of turns that are recorded again, and deleted ones; the usage by model is that of the requested one."""
    plain = build_row(key("turn-0"), completed_turn("Light").turn)
    running = build_row(key("turn-1"), started_turn("Light").turn)
    for rows in ([plain], [running], [billed_row("turn-1")], [billed_row("turn-1"), plain]):
        await store.record(rows)
    own = Usage(plain.input_tokens + 10, plain.output_tokens + 2)
    expected = [
        BilledUsage(TODAY, "claude-opus-4-8", 1, Usage(5, 1, 3, 4), 9),
        BilledUsage(TODAY, MODEL, 2, own, plain.cost_nusd + 40),
    ]
    assert await UsageTable(store).billed_usage(OURS, TODAY, TODAY) == expected
    (by_model,) = (await UsageTable(store).usage(OURS, "model", TODAY, TODAY, "", 9))[0]
    assert (by_model.key, by_model.turns, by_model.usage) == (MODEL, 2, Usage(*plain_counts(plain)) + TOTAL)
    assert await UsageTable(store).billed_usage(THEIRS, TODAY, TODAY) == []
    assert await UsageTable(store).billed_usage(OURS, TODAY + timedelta(days=1), TODAY + timedelta(days=9)) == []
    await store.record([msgspec.structs.replace(plain, tenant=THEIRS)])
    assert await UsageTable(store).tenants_with_usage("", 9) == [OURS, THEIRS]
    assert await UsageTable(store).tenants_with_usage(OURS, 9) == [THEIRS]


def plain_counts(row: TurnRow) -> tuple[int, ...]:
    return tuple(getattr(row, name) for name in Usage.__struct_fields__)


async def test_turns_of_older_versions_say_since_when_the_cost_is_whole(store: Store) -> None:
    """The `end` of an older version has no date of the price list. A turn without tokens is whole in any version."""
    assert await UsageTable(store).whole_since(OURS) is None
    await store.record([billed_row("turn-1"), billed_row("turn-2", price_date=None, usage=Usage())])
    assert await UsageTable(store).whole_since(OURS) is None
    old = billed_row("turn-3", price_date=None)
    for seconds in (9, 5):
        await store.record([msgspec.structs.replace(old, turn=f"turn-{seconds}", asked_at=old.asked_at + seconds)])
    since = await UsageTable(store).whole_since(OURS)
    assert since is not None
    assert since - NOON == timedelta(seconds=1, microseconds=9)
    queries = UsageQueries(store, Queries(store, 60))
    assert (await queries.usage(OURS, GetUsage("day", TODAY, TODAY))).whole_since == since
    assert (await queries.billed(OURS, GetBilledUsage(TODAY, TODAY))).whole_since == since
    assert await UsageTable(store).whole_since(THEIRS) is None


def test_a_row_without_the_columns_of_the_models_is_a_record() -> None:
    """As older versions have written it."""
    row = build_row(key("turn-1"), completed_turn("Light").turn)
    columns = msgspec.structs.asdict(row)
    assert (row.answered_by, row.by_model) == (None, None)
    assert turn_record(columns).by_model is None
