"""Usage with filters and by two dimensions over HTTP: equal sums over turns with kills, and CSV."""

import asyncio
import csv
import io
import random
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.usage.csv_table import COUNTS
from tailrace.features.usage.persistence import UsageQueries
from tailrace.features.usage.records import GetUsageBy
from tailrace.proto.ids import SessionId, Tenant, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_writer import write_turn
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

TURNS, KILLS, AT_ONCE = 500, 4, 50
USERS, MODELS = ("ann", "bob", "eve", None), ("claude-haiku-5-5", "claude-sonnet-5-5")
DIMENSIONS = ("day", "model", "key", "user", "session", "project", "metadata.team")
FORMULA = "=1+1"


def sums(records: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """Returns turns, tokens, and the cost in nano-dollars."""
    listed = list(records)
    return tuple(
        sum(numbers)
        for numbers in zip(
            *((one["turns"], one["total_tokens"], round(one["cost_usd"] * 1e9)) for one in listed), strict=True
        )
    ) or (0, 0, 0)


async def get_table(gateway: Gateway, **query: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns all records and the total of a table. Their sums are equal."""
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        answer = await gateway.client.get("/v1/usage", params={"limit": "200", **query, **after})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["data"]
        if page["next"] is None:
            assert sums(found) == sums([page["total"]]), query
            return found, page["total"]
        after = {"after": page["next"]}


async def write_mixed_turn(chance: random.Random, log: TurnLog, tenant: Tenant) -> TurnKey:
    given: dict[str, Any] = {"model": chance.choice(MODELS), "user": chance.choice(USERS), "by": chance.choice("kl")}
    if chance.random() < 0.1:
        return await write_turn(log, "a", tenant=tenant, store=False, session=SessionId(f"s-{new_id()}"), **given)
    session = f"session-{chance.randrange(30)}"
    metadata = {"team": chance.choice(("red", "blue"))} if chance.random() < 0.7 else {}
    project = chance.choice((None, None, "rivers"))
    texts = "a" * chance.randrange(1, 4)
    return await write_turn(
        log, *texts, tenant=tenant, session=SessionId(session), project=project, metadata=metadata, **given
    )


@pytest.mark.rule("R90")
@pytest.mark.timeout(180)
async def test_all_tables_of_500_turns_have_equal_sums_after_kills_deletions_and_erasures(
    own_server: NatsServer,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tenant: Tenant,
    either_database: Path | str,
    tmp_path: Path,
) -> None:
    """Persistence is killed while it records. It answers "What did bob cost, by model?" with the sums of his turns."""
    chance, gateway = random.Random(7), await new_gateway(own_server.url)
    environ = {"TAILRACE_DATABASE": either_database}
    async with processes.persistence(tmp_path, own_server.url, **environ) as persistence:
        written = list[TurnKey]()
        for batch in range(TURNS // AT_ONCE):
            written += await asyncio.gather(*(write_mixed_turn(chance, own_log, tenant) for _ in range(AT_ONCE)))
            if batch < KILLS:
                await persistence.stop(SIGKILL)
                await persistence.start()
        # What the killed processes have not acknowledged is delivered again later.
        await until(lambda: has_caught_up(gateway), 90)
        turns = [one async for one in all_turns(gateway)]
        for number in (1, 2):
            assert (await gateway.client.delete(f"/v1/sessions/session-{number}")).is_success
        for turn in [one for one in turns if one["session"] not in ("session-1", "session-2")][:5]:
            await gateway.client.delete(f"/v1/turns/{turn['turn']}")
        assert (await gateway.client.delete("/v1/users", params={"user": "eve"})).json()["complete"]
        left = [one async for one in all_turns(gateway)]
        assert 200 < len(left) < len(turns) < TURNS
        (total,) = {sums([(await get_table(gateway, by=by))[1]]) for by in DIMENSIONS}
        assert total[0] == TURNS
        for pair in combinations(DIMENSIONS, 2):
            records, _ = await get_table(gateway, by=",".join(pair))
            assert sums(records) == total
            assert "eve" not in str(records)
        for name in ("user", "model", "key", "project", "session"):
            values = {one["key"]: one for one in (await get_table(gateway, by=name))[0]}
            for value, one in values.items():
                for by in chance.sample(DIMENSIONS, 3) if value is not None else ():
                    assert sums((await get_table(gateway, by=by, **{name: value}))[0]) == sums([one]), (name, by)
        by_model, _ = await get_table(gateway, by="model", user="bob")
        for model in MODELS:
            mine = [one for one in left if (one["user"], one["model"]) == ("bob", model)]
            (row,) = [one for one in by_model if one["key"] == model]
            assert (row["turns"], row["cost_usd"]) == (len(mine), pytest.approx(sum(one["cost_usd"] for one in mine)))
        today = str(datetime.now(UTC).date())
        answer = await gateway.client.get("/v1/turns", params={"order": "-cost_usd", "from": today, "user": "bob"})
        costs = sorted((one["cost_usd"] for one in left if one["user"] == "bob"), reverse=True)
        assert [one["cost_usd"] for one in answer.json()["data"]] == costs[:50]


async def has_caught_up(gateway: Gateway) -> bool:
    return (await gateway.client.get("/v1/usage")).is_success


async def all_turns(gateway: Gateway) -> Any:
    after: dict[str, str] = {}
    while True:
        answer = await gateway.client.get("/v1/turns", params={"limit": "200", **after})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        for one in page["data"]:
            yield one
        if page["next"] is None:
            return
        after = {"after": page["next"]}


@pytest.fixture
async def gateway(
    own_server: NatsServer, own_log: TurnLog, own_gateway: Gateway, tenant: Tenant, tmp_path: Path
) -> Any:
    """A gateway with four turns of three users and two models."""
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        for user, model in (("ann", MODELS[0]), ("ann", MODELS[1]), (FORMULA, MODELS[0]), (None, MODELS[1])):
            await write_turn(own_log, "a", tenant=tenant, user=user, model=model, metadata={"team": user or "none"})
        yield own_gateway


async def test_usage_as_csv_has_all_records_and_the_exact_cost(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cell is computed by a spreadsheet. A longer table is refused."""
    for query in ({"by": "user"}, {"by": "user,model"}, {"by": "metadata.team", "model": MODELS[0]}):
        answer = await gateway.client.get("/v1/usage", params={**query, "format": "csv"})
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"].startswith('attachment; filename="usage-by-')
        heading, *rows = csv.reader(io.StringIO(answer.text))
        by = query["by"].split(",")
        assert heading == [*by, *COUNTS, "cost_usd", "last_used"]
        records, _ = await get_table(gateway, **query)
        cell = {None: "-", FORMULA: f"'{FORMULA}"}
        assert [row[: len(by)] for row in rows] == [[cell.get(key, key) for key in one["keys"]] for one in records]
        costs = [row[heading.index("cost_usd")] for row in rows]
        assert costs == [f"{round(one['cost_usd'] * 1e9) / 1e9:.9f}" for one in records]
    monkeypatch.setattr("tailrace.features.usage.gateway.ROWS_MAX", 2)
    refused = await gateway.client.get("/v1/usage?by=user&format=csv")
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        400,
        "`format=csv` has at most 2 rows, and this table has more: send fewer days or a filter",
    )


async def test_usage_of_one_user_by_model_and_of_one_day(gateway: Gateway) -> None:
    """By one name and the day, the totals answer for a year."""
    today = datetime.now(UTC).date()
    records, total = await get_table(gateway, by="model", user="ann")
    assert ([(one["keys"], one["turns"]) for one in records], total["turns"]) == (
        [([model], 1) for model in MODELS],
        2,
    )
    records, _ = await get_table(gateway, **{"by": "day,user", "metadata[team]": "ann", "from": str(today)})
    assert [(one["key"], one["keys"], one["turns"]) for one in records] == [(str(today), [str(today), "ann"], 2)]
    records, total = await get_table(gateway, by="model", user="ann", model=MODELS[0])
    assert ([(one["key"], one["turns"]) for one in records], total["turns"]) == ([(MODELS[0], 1)], 1)
    year = str(today - timedelta(days=365))
    for query in ({"by": "user"}, {"by": "user", "user": "ann"}, {"by": "day", "user": "ann"}):
        assert (await get_table(gateway, **query, **{"from": year}))[0]


async def test_other_dimensions_filters_and_formats_are_refused_with_their_name(gateway: Gateway) -> None:
    today = datetime.now(UTC).date()
    for query, param in (
        ({"by": "day,day"}, "by"),
        ({"by": "day,model,user"}, "by"),
        ({"by": "tenant"}, "by"),
        ({"user": ""}, "user"),
        ({"metadata[team]": ""}, "metadata[team]"),
        ({"metadata": "red"}, "metadata"),
        ({"format": "xml"}, "format"),
        ({"format": "csv", "limit": "7"}, "format"),
        ({"by": "day,model", "from": str(today - timedelta(days=31))}, "from"),
        ({"user": "ann", "by": "day,model", "from": str(today - timedelta(days=31)), "format": "csv"}, "from"),
        ({"by": "day,model", "after": "x"}, "after"),
    ):
        refused = await gateway.client.get("/v1/usage", params=query)
        assert (refused.status_code, refused.json()["error"].get("param")) == (400, param), (query, refused.text)
    # A cursor of a table by one dimension names nothing in one by two.
    one = (await gateway.client.get("/v1/usage", params={"by": "user", "limit": "1"})).json()["next"]
    refused = await gateway.client.get("/v1/usage", params={"by": "user,model", "after": one})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "cursor_invalid")


async def test_a_persistence_process_of_an_older_version_answers_only_what_it_knows(
    own_server: NatsServer, own_gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know `usage_by`: no table with a filter has the sums of all turns."""
    handlers = UsageQueries.handlers
    monkeypatch.setattr(
        UsageQueries, "handlers", lambda queries: [one for one in handlers(queries) if one[0] is not GetUsageBy]
    )
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        assert (await own_gateway.client.get("/v1/usage?by=user")).status_code == 200
        for query in ("by=user&user=ann", "by=user,day", "by=user&format=csv"):
            refused = await own_gateway.client.get(f"/v1/usage?{query}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "persistence_unavailable")
