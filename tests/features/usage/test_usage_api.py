"""Usage by day, model, project, session and API key: over HTTP and on the command line."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tailrace.deploy.cli.vendor_report import COST_PATH, USAGE_PATH
from tailrace.proto.ids import Tenant
from tests.harness.forks import run_command
from tests.harness.processes import Process
from tests.harness.report_server import KEY as ADMIN_KEY
from tests.harness.report_server import Api, serve
from tests.harness.requests import pages, post_until_ended
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

OTHER_KEY = "the-same-tenants-other-key"
FIELDS = ("turns", "message_count", "usage", "cost_usd", "total_tokens", "total_cost")


def name_of(key: str) -> str:
    return f"env_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


async def lines(gateway: Gateway, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await gateway.client.get(f"/v1/usage{query}")).json()["data"]
    return found


def totals(record: dict[str, Any]) -> dict[str, Any]:
    return {field: record[field] for field in FIELDS}


async def test_usage_is_grouped_by_day_model_and_project(gateway: Gateway) -> None:
    """Turns without a project have the key null."""
    turns = {
        "rivers": await post_until_ended(gateway, project="rivers", model="claude-haiku-5-5"),
        None: await post_until_ended(gateway, model="claude-sonnet-5-5"),
    }
    expected = {
        key: totals((await gateway.client.get(f"/v1/sessions/{turn['session']}")).json()) for key, turn in turns.items()
    }
    day, today = timedelta(days=1), datetime.now(UTC).date()
    answer = (await gateway.client.get("/v1/usage")).json()
    assert (answer["by"], answer["to"]) == ("day", str(today))
    (line,) = answer["data"]
    assert (line["key"], line["turns"]) == (str(today), 2)
    assert line["total_tokens"] == sum(one["total_tokens"] for one in expected.values())
    by_model = await lines(gateway, f"?by=model&from={today}&to={today}")
    assert {one["key"]: totals(one) for one in by_model} == {
        "claude-haiku-5-5": expected["rivers"],
        "claude-sonnet-5-5": expected[None],
    }
    by_project = await lines(gateway, "?by=project")
    assert [(one["key"], totals(one)) for one in by_project] == [(None, expected[None]), ("rivers", expected["rivers"])]
    assert await lines(gateway, f"?from={today - day}&to={today - day}") == []


@pytest.mark.timeout(60)
async def test_usage_by_key_and_session_over_http_and_as_a_table(
    system: System, generator: Process, persistence: Process, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """A key's line has its last use, and not the key itself. The command prints a line each, and a total."""
    second = f"{tenant}:{hashlib.sha256(OTHER_KEY.encode()).hexdigest()}"
    gateway = await new_gateway(system.nats_url, api_keys=f"{api_keys(tenant)}, {second}")
    turns: dict[str, list[dict[str, Any]]] = {KEY: [], OTHER_KEY: []}
    for key, count in ((KEY, 2), (OTHER_KEY, 1)):
        async with gateway.new_client() as client:
            client.headers["authorization"] = f"Bearer {key}"
            session: dict[str, str] = {}
            for _ in range(count):
                body = {"message": "#sim words=5 rate=0", **session}
                links = (await client.post("/v1/turns", json=body)).json()["links"]
                await client.get(links["events"])
                turns[key].append((await client.get(links["self"])).json())
                session = {"session": turns[key][-1]["session"]}

    by_key = {line["key"]: line for line in await lines(gateway, "?by=key")}
    assert set(by_key) == {name_of(KEY), name_of(OTHER_KEY)}
    for key, of_key in turns.items():
        line = by_key[name_of(key)]
        assert line["turns"] == len(of_key)
        assert line["cost_usd"] == pytest.approx(sum(turn["cost_usd"] for turn in of_key))
        assert line["usage"]["output_tokens"] == sum(turn["usage"]["output_tokens"] for turn in of_key)
        assert datetime.fromisoformat(line["last_used"]) == datetime.fromisoformat(of_key[-1]["asked_at"])
    assert KEY not in str(by_key)
    found = await pages(gateway, "/v1/usage", "data", 1, by="key")
    assert [one for page in found for one in page] == [by_key[name] for name in sorted(by_key)]
    by_session = {line["key"]: line["turns"] for line in await lines(gateway, "?by=session")}
    assert by_session == {of_key[0]["session"]: len(of_key) for of_key in turns.values()}

    async def table(*arguments: str) -> list[list[str]]:
        ran = await run_command("usage", "--tenant", tenant, *arguments, TAILRACE_NATS_URL=system.nats_url)
        assert ran.status == 0
        return [line.split() for line in ran.out.splitlines()]

    _, headings, *rows, total = await table("--by", "key")
    assert headings[:2] == ["KEY", "TURNS"]
    assert {row[0]: row[1] for row in rows} == {name_of(KEY): "2", name_of(OTHER_KEY): "1"}
    assert total[:2] == ["all", "3"]
    url = str(gateway.client.base_url)
    over_http = await run_command("usage", "--by", "key", TAILRACE_URL=url, TAILRACE_KEY=KEY)
    assert [line.split() for line in over_http.out.splitlines()][1:] == [headings, *rows, total]
    nats_url = {"TAILRACE_NATS_URL": "nats://127.0.0.1:1", "TAILRACE_KEY": KEY}
    refused = await run_command("usage", "--url", url, "--tenant", tenant, **nats_url)
    assert (refused.status, "admin" in refused.err) == (1, True)
    [[printed]] = await table("--by", "key", "--json")
    assert {one["key"]: one["turns"] for one in msgspec.json.decode(printed)} == {
        name_of(KEY): 2,
        name_of(OTHER_KEY): 1,
    }
    cost = sum(turn["cost_usd"] for of_key in turns.values() for turn in of_key)
    assert float(total[-1]) == pytest.approx(cost, abs=0.0001)
    assert [row[:2] for row in await table()][2:] == [[f"{datetime.now(UTC):%Y-%m-%d}", "3"], ["all", "3"]]
    (caption, absent) = await table("--from", "2020-01-01", "--to", "2020-01-31")
    assert " ".join(caption) == f"usage of tenant {tenant}, 2020-01-01 to 2020-01-31 (UTC)"
    assert " ".join(absent) == f"tenant {tenant}: no turn has ended on these days"


@pytest.mark.timeout(60)
async def test_reconcile_compares_the_usage_of_all_tenants_with_a_report(
    system: System, generator: Process, persistence: Process, gateway: Gateway
) -> None:
    """An empty report differs in each model of the day. Other tests of this system have turns, too."""
    await post_until_ended(gateway, model="claude-haiku-5-5")
    today = str(datetime.now(UTC).date())
    with serve(Api({USAGE_PATH: [[]], COST_PATH: [[]]})) as api:
        ran = await run_command(
            *("reconcile", "--from", today, "--to", today, "--api", api.url, "--json"),
            TAILRACE_NATS_URL=system.nats_url,
            ANTHROPIC_ADMIN_KEY=ADMIN_KEY,
        )
    assert (ran.status, ran.err) == (1, "")
    rows = {row["model"]: row for row in msgspec.json.decode(ran.out)["rows"]}
    assert not rows["claude-haiku-5-5"]["is_equal"]
    assert rows["claude-haiku-5-5"]["usage"]["output_tokens"] > 0
    assert rows["all"]["cost_usd"] >= rows["claude-haiku-5-5"]["cost_usd"] > 0
