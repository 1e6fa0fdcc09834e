"""Usage over HTTP and on the command line."""

import asyncio
import hashlib
import sys
from asyncio.subprocess import PIPE
from datetime import UTC, datetime
from typing import Any

import pytest

from tailrace.proto.ids import Tenant
from tests.harness.processes import CHECKOUT, Process
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

OTHER_KEY = "the-same-tenants-other-key"


def name_of(key: str) -> str:
    return f"env_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


@pytest.fixture
async def used(
    system: System, generator: Process, persistence: Process, new_gateway: NewGateway, tenant: Tenant
) -> tuple[Gateway, dict[str, list[dict[str, Any]]]]:
    """A gateway with two keys, and the turns that each has asked: two in one session, and one."""
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
    return gateway, turns


async def test_usage_by_key_has_the_time_of_the_last_use(
    used: tuple[Gateway, dict[str, list[dict[str, Any]]]],
) -> None:
    """Requests, tokens and cost of each, and nothing of a key itself."""
    gateway, turns = used
    answer = await gateway.client.get("/v1/usage?by=key")
    lines = {line["key"]: line for line in answer.json()["data"]}
    assert set(lines) == {name_of(KEY), name_of(OTHER_KEY)}
    for key, asked in turns.items():
        line = lines[name_of(key)]
        assert line["turns"] == len(asked)
        assert line["cost_usd"] == pytest.approx(sum(turn["cost_usd"] for turn in asked))
        assert line["usage"]["output_tokens"] == sum(turn["usage"]["output_tokens"] for turn in asked)
        assert datetime.fromisoformat(line["last_used"]) == datetime.fromisoformat(asked[-1]["asked_at"])
    assert KEY not in answer.text
    by_session = (await gateway.client.get("/v1/usage?by=session")).json()["data"]
    assert {line["key"]: line["turns"] for line in by_session} == {
        turns[KEY][0]["session"]: 2,
        turns[OTHER_KEY][0]["session"]: 1,
    }
    first = (await gateway.client.get("/v1/usage?by=key&limit=1")).json()
    second = (await gateway.client.get(f"/v1/usage?by=key&limit=1&after={first['next']}")).json()
    assert [*first["data"], *second["data"]] == [lines[name] for name in sorted(lines)]
    assert not second["has_more"]


@pytest.mark.timeout(60)
async def test_the_command_prints_usage_as_a_table(
    used: tuple[Gateway, dict[str, list[dict[str, Any]]]], system: System, tenant: Tenant
) -> None:
    """A line each, and one of all of them."""

    async def said(*arguments: str) -> list[list[str]]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tailrace", "usage", "--tenant", tenant, *arguments),
            cwd=CHECKOUT,
            env={"TAILRACE_NATS_URL": system.nats_url},
            stdout=PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        return [line.split() for line in out.decode().splitlines()]

    _, turns = used
    headings, *lines, total = await said("--by", "key")
    assert headings[:2] == ["KEY", "TURNS"]
    assert {line[0]: line[1] for line in lines} == {name_of(KEY): "2", name_of(OTHER_KEY): "1"}
    cost = sum(turn["cost_usd"] for asked in turns.values() for turn in asked)
    assert total[:2] == ["all", "3"]
    assert float(total[-1]) == pytest.approx(cost, abs=0.0001)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert [line[:2] for line in await said()][1:] == [[today, "3"], ["all", "3"]]
    assert [line[:2] for line in await said("--from", "2020-01-01", "--to", "2020-01-31")][1:] == [["all", "0"]]
