"""The lists for operators: the use of keys and budgets, filters, and the usage of all tenants by day and model."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tailrace.deploy.cli.keys import create
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.limits import soft_limits
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import TurnLog
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.turn_writer import write_turn
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, NewGateway

ACME, ZETA = Tenant("acme"), Tenant("zeta")
TURN = {"message": "#sim words=100 rate=0", "max_tokens": 200}


class Operator:
    """A client with an admin key."""

    def __init__(self, client: httpx2.AsyncClient, secret: str) -> None:
        self._client = client
        self._headers = {"authorization": f"Bearer {secret}"}

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self._client.get(path, headers=self._headers)
        found: dict[str, Any] = answer.json()
        return found | {"status": answer.status_code}

    async def post(self, path: str, **body: object) -> dict[str, Any]:
        answer = await self._client.post(path, json=body, headers=self._headers)
        found: dict[str, Any] = answer.json()
        return found | {"status": answer.status_code}

    async def delete(self, path: str) -> int:
        return (await self._client.delete(path, headers=self._headers)).status_code

    async def set_limits(self, tenant: str, **limits: float) -> dict[str, Any]:
        path = f"/v1/admin/tenants/{tenant}/limits"
        found: dict[str, Any] = (await self._client.put(path, json={"limits": limits}, headers=self._headers)).json()
        return found

    async def ids(self, query: str = "") -> list[str]:
        return [key["id"] for key in (await self.get(f"/v1/admin/keys{query}"))["data"]]


async def operator_of(gateway: Gateway, server: NatsServer) -> Operator:
    made, _ = await create(server.url, Tenant("operators"), "panel", ["admin"])
    return Operator(gateway.client, made.secret)


@pytest.fixture(autouse=True)
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_limits, "EVERY_S", 0.2)
    monkeypatch.setattr(soft_limits, "PAUSE_S", 0.05)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_keys_are_listed_with_their_last_use_and_all_tenants_have_one_sum_by_day_model_and_tenant(
    own_server: NatsServer,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tmp_path: Path,
    kind: str,
    postgresql: PostgreSQLServer,
) -> None:
    """In both databases. A key that has made no turn has no last use."""
    database = await postgresql.new_database() if kind == "postgresql" else tmp_path / "tailrace.db"
    gateway = await new_gateway(own_server.url)
    operator = await operator_of(gateway, own_server)
    used, unused = [await operator.post("/v1/admin/keys", tenant="acme", name=name) for name in ("used", "unused")]
    # Without persistence, keys are listed without their use.
    listed = await operator.get("/v1/admin/keys?tenant=acme&q=use&limit=1")
    assert (listed["status"], listed["data"][0]["last_used"], listed["data"][0]["month_usd"]) == (200, None, None)
    async with Persistence(own_server.url, database):
        await write_turn(own_log, "a", tenant=ACME, by=used["id"])
        await write_turn(own_log, "b", tenant=ACME, by=used["id"], model="claude-haiku-5-5")
        await write_turn(own_log, "c", tenant=ZETA)

        async def use() -> dict[str, Any]:
            return {one["id"]: one for one in (await operator.get("/v1/admin/keys?tenant=acme"))["data"]}

        async def is_counted() -> bool:
            return bool((await use())[used["id"]]["month_usd"])

        await until(is_counted)
        found = await use()
        age = datetime.now(UTC) - datetime.fromisoformat(found[used["id"]]["last_used"])
        assert abs(age.total_seconds()) < 60
        assert (found[unused["id"]]["last_used"], found[unused["id"]]["month_usd"]) == (None, 0)
        assert {one["budgets"] for one in found.values()} == {None}

        async def turns(by: str) -> list[int]:
            return [one["turns"] for one in (await operator.get(f"/v1/admin/usage?by={by}"))["data"]]

        await until_equal(lambda: turns("tenant"), [2, 1])
        by_day, by_model = [await operator.get(f"/v1/admin/usage?by={by}") for by in ("day", "model")]
        assert [one["key"] for one in by_day["data"]] == [datetime.now(UTC).date().isoformat()]
        assert sorted(one["turns"] for one in by_model["data"]) == [1, 2]
        assert by_day["total"] == by_model["total"]
        sums = [
            sum(one["cost_usd"] for one in page["data"])
            for page in (by_day, by_model, await operator.get("/v1/admin/usage"))
        ]
        assert sums == pytest.approx([by_day["total"]["cost_usd"]] * 3, abs=1e-12)
        first = await operator.get("/v1/admin/usage?by=model&limit=1")
        second = await operator.get(f"/v1/admin/usage?by=model&limit=1&after={first['next']}")
        assert [*first["data"], *second["data"]] == by_model["data"]
        assert (second["next"], first["total"]) == (None, by_model["total"])
        empty = await operator.get("/v1/admin/usage?by=day&to=2020-01-31")
        assert (empty["data"], empty["total"]["turns"]) == ([], 0)
        # A name of a user means something in its tenant only.
        refused = await operator.get("/v1/admin/usage?by=user")
        assert (refused["status"], refused["error"]["param"]) == (400, "by")


async def test_keys_and_tenants_are_found_by_text_and_state(own_server: NatsServer, new_gateway: NewGateway) -> None:
    """Newest first, too. A filter leaves the pages complete."""
    gateway = await new_gateway(own_server.url)
    operator = await operator_of(gateway, own_server)
    shop = (await operator.post("/v1/admin/keys", tenant="acme", name="Web Shop"))["id"]
    old = (await operator.post("/v1/admin/keys", tenant="acme", name="old"))["id"]
    zeta = (await operator.post("/v1/admin/keys", tenant="zeta"))["id"]
    (panel,) = await operator.ids("?tenant=operators")
    assert await operator.delete(f"/v1/admin/keys/{old}") == 200
    assert await operator.ids("?q=web%20s") == [shop]
    assert await operator.ids(f"?q={zeta[4:]}") == [zeta]
    assert await operator.ids("?state=ended") == [old]
    assert sorted(await operator.ids("?state=valid")) == sorted([panel, shop, zeta])
    newest = await operator.ids("?order=desc")
    assert newest == (await operator.ids())[::-1]
    page = await operator.get("/v1/admin/keys?order=desc&limit=2")
    assert await operator.ids(f"?order=desc&after={page['next']}") == newest[2:]
    # The last key of a page is revoked before the next page is read.
    first = await operator.get("/v1/admin/keys?state=valid&tenant=acme&limit=1")
    assert (first["data"][0]["id"], first["next"]) == (shop, None)
    (last,) = await operator.ids("?state=valid&order=desc&limit=1")
    rest = [key for key in await operator.ids("?state=valid&order=desc") if key != last]
    assert await operator.delete(f"/v1/admin/keys/{zeta}") == 200
    assert await operator.ids(f"?state=valid&order=desc&after={last}") == [key for key in rest if key != zeta]
    assert await operator.ids(f"?state=valid&after={zeta}") == [
        key for key in (await operator.ids("?state=valid")) if newest.index(key) < newest.index(zeta)
    ]
    assert (await operator.get("/v1/admin/keys?state=sleepy"))["error"]["param"] == "state"
    assert [one["tenant"] for one in (await operator.get("/v1/admin/tenants?q=ET"))["data"]] == ["zeta"]


@pytest.mark.timeout(60)
async def test_reached_budgets_of_a_tenant_and_of_its_keys_are_listed_until_they_are_raised_or_the_key_ends(
    own: OwnSystem, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """A budget below what is spent is reached at once."""
    async with own.running_generator(), Persistence(own.server.url, tmp_path / "tailrace.db"):
        gateway = await new_gateway(own.server.url)
        operator = await operator_of(gateway, own.server)
        poor = await operator.post("/v1/admin/keys", tenant="zeta", limits={"usd_day": 0.01})
        rich = await operator.post("/v1/admin/keys", tenant="acme")

        async def ask(key: str) -> int:
            """Creates a turn and waits for its end; returns the status of the POST."""
            headers = {"authorization": f"Bearer {key}"}
            answer = await gateway.client.post("/v1/turns", json=TURN, headers=headers)
            if answer.is_success:
                await gateway.client.get(answer.json()["links"]["events"], headers=headers)
            return answer.status_code

        assert await ask(rich["key"]) == 202
        statuses = [await ask(poor["key"])]
        while statuses[-1] != 402 and len(statuses) < 20:
            statuses.append(await ask(poor["key"]))
        assert statuses[-1] == 402
        await operator.set_limits("acme", usd_month=0.0001)

        async def reached() -> dict[str, list[tuple[str, int, bool]]]:
            page = await operator.get("/v1/admin/tenants?reached=true")
            return {
                tenant["tenant"]: [(one["budget"], one["percent"], one["is_refused"]) for one in tenant["reached"]]
                for tenant in page["data"]
            }

        await until_equal(reached, {"acme": [("usd_month", 100, False)], "zeta": [("usd_day", 100, True)]})
        (shown,) = (await operator.get(f"/v1/admin/keys?id={poor['id']}"))["data"]
        (budget,) = shown["budgets"]
        assert (budget["name"], budget["limit"]) == ("usd_day", 0.01)
        assert 0 < budget["spent"] == pytest.approx(shown["month_usd"])
        listed = {one["tenant"]: one["reached"] for one in (await operator.get("/v1/admin/tenants"))["data"]}
        assert {tenant: len(found) for tenant, found in listed.items()} == {"acme": 1, "operators": 0, "zeta": 1}
        # The key that replaces the poor one shares its budget.
        replaced = await operator.post(f"/v1/admin/keys/{poor['id']}/rotate")
        assert list(await reached()) == ["acme", "zeta"]
        await operator.delete(f"/v1/admin/keys/{replaced['id']}")
        assert list(await reached()) == ["acme"]
        await operator.set_limits("acme", usd_month=50)
        assert await reached() == {}
