"""Soft limits: each share of a budget is noted once, as a webhook, a metric and a log line."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.web import Request, StreamResponse
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from tailrace.deploy.cli.keys import create
from tailrace.deploy.cli.limits import describe_budget
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.limits import soft_limits
from tailrace.features.limits.percents import parse_percents
from tailrace.features.limits.persistence import BudgetQueries
from tailrace.features.limits.records import BudgetState, CheckBudget
from tailrace.features.limits.reservations import Budget, ReservationTable
from tailrace.persistence.rows import TurnRow
from tailrace.persistence.store import Store
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Counters
from tailrace.proto.ownership import name_token
from tailrace.proto.resources import DeleteResource
from tailrace.proto.subjects import BUDGETS, KEYS, limits_of_tenant
from tests.conftest import apply_streams
from tests.harness import jwts
from tests.harness.forks import run_command
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.stored_turns import OURS, THEIRS, running_row
from tests.harness.turn_builder import NOON
from tests.harness.until import until, until_equal
from tests.harness.webhook_receiver import ReceivedWebhook, Receiver, answer_with
from tests.integration.conftest import Gateway, NewGateway

ACME = Tenant("acme")
TURN = {"message": "#sim words=100 rate=0", "max_tokens": 200}


def count_reached(percent: int) -> float:
    named = {"percent": str(percent)}
    return REGISTRY.get_sample_value("tailrace_persistence_budgets_reached_total", named) or 0.0


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_limits, "EVERY_S", 0.2)
    monkeypatch.setattr(soft_limits, "PAUSE_S", 0.05)


class Company:
    """A tenant with a key, an operator, and the processes of both."""

    def __init__(self, server: NatsServer, receiver: Receiver, folder: Path) -> None:
        self.server = server
        self.receiver = receiver
        self.database: Path | str = folder / "tailrace.db"
        self.failed = 0

    async def create_keys(self, limits: dict[str, float] | None = None) -> None:
        admin, _ = await create(self.server.url, Tenant("operators"), "me", ["admin"])
        self.admin = admin.secret
        self.key = await self.create_key(limits)

    async def create_key(self, limits: dict[str, float] | None = None) -> str:
        made, _ = await create(self.server.url, ACME, "app", ["read", "write", "manage"], limits)
        return made.secret

    def persistence(self, **given: object) -> Persistence:
        settings: dict[str, object] = {
            "webhook_key": "a-key-that-only-this-test-has-0123",
            "webhook_private_hosts": "127.0.0.1",
            "webhook_wait_s": 0.02,
            "webhook_urls": f"acme={self.receiver.url}",
        }
        return Persistence(self.server.url, self.database, **settings | given)

    async def post(self, gateway: Gateway, key: str = "") -> int:
        """Creates a turn and waits for its end; returns the status of the POST."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        answer = await gateway.client.post("/v1/turns", json=TURN, headers=headers)
        if answer.status_code == 202:
            await gateway.client.get(answer.json()["links"]["events"], headers=headers)
        return answer.status_code

    async def cost(self, gateway: Gateway) -> float:
        headers = {"authorization": f"Bearer {self.admin}"}
        found = (await gateway.client.get("/v1/admin/tenants/acme/usage", headers=headers)).json()
        return float(found["total"]["cost_usd"])

    async def spent_by(self, gateway: Gateway, key: str) -> float:
        headers = {"authorization": f"Bearer {self.admin}"}
        (found,) = (await gateway.client.get(f"/v1/admin/tenants/acme/usage?by=key&key={key}", headers=headers)).json()[
            "data"
        ]
        return float(found["cost_usd"])

    async def set_limits(self, gateway: Gateway, **limits: float) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.admin}"}
        path = "/v1/admin/tenants/acme/limits"
        answer = await gateway.client.put(path, json={"limits": limits}, headers=headers)
        found: dict[str, Any] = answer.json()
        return found

    async def get_tenant(self, gateway: Gateway) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.admin}"}
        found: dict[str, Any] = (await gateway.client.get("/v1/admin/tenants/acme/limits", headers=headers)).json()
        return found

    def of_budgets(self) -> list[ReceivedWebhook]:
        """The webhooks about budgets. The URL of a tenant also receives those of its turns."""
        return [one for one in self.receiver.received if one.turn.startswith("budget_")]

    async def fail_twice(self, webhook: ReceivedWebhook, request: Request) -> StreamResponse:
        """Answers the first two attempts of webhooks about budgets with errors."""
        is_failing = webhook.turn.startswith("budget_") and self.failed < 2
        self.failed += is_failing
        return await answer_with(503 if is_failing else 204)(webhook, request)

    def noted(self) -> list[tuple[str, str, int, float]]:
        """The owner, budget, share and limit of each webhook, without repetitions of one webhook."""
        payloads = {one.turn: one.payload for one in self.of_budgets()}
        data = [one["data"] for one in payloads.values()]
        return sorted((one["of"], one["budget"], one["percent"], one["limit_usd"]) for one in data)


@pytest.fixture
async def company(own_server: NatsServer, receiver: Receiver, tmp_path: Path) -> Company:
    return Company(own_server, receiver, tmp_path)


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
async def test_each_share_of_a_budget_is_noted_once_before_the_budget_refuses(
    own: OwnSystem, company: Company, new_gateway: NewGateway, postgresql: PostgreSQLServer
) -> None:
    """Over a restart of the gateway and of persistence, with two processes of each. The first webhook fails."""
    company.database = await postgresql.new_database()
    await company.create_keys()
    before = {percent: count_reached(percent) for percent in (80, 100)}
    company.receiver.answer = company.fail_twice
    async with own.running_generator(), company.persistence(), company.persistence():
        gateway, other = await new_gateway(own.server.url), await new_gateway(own.server.url)
        assert await company.post(gateway) == 202
        each = await company.cost(gateway)
        limit = round(20 * each, 6)
        (budget,) = (await company.set_limits(gateway, usd_month=limit))["budgets"]
        assert (budget["name"], budget["spent"]) == ("usd_month", pytest.approx(each))
        with capture_logs() as logs:
            statuses = list[int]()
            while 402 not in statuses and len(statuses) < 40:
                statuses.append(await company.post(other if len(statuses) % 2 else gateway))
            assert statuses[-1] == 402
            await until_equal(company.noted, [("tenant", "usd_month", percent, limit) for percent in (80, 100)])
        lines = [one for one in logs if one["event"] == "a share of a budget is reached"]
        assert [(one["percent"], one["tenant"], one["of"]) for one in lines] == [
            *((80, "acme", "tenant"), (100, "acme", "tenant"))
        ]
    async with company.persistence():
        gateway = await new_gateway(own.server.url)
        assert await company.post(gateway) == 402
        await asyncio.sleep(2)
    assert len(company.noted()) == 2
    # Two attempts failed; each webhook was accepted once.
    assert len(company.of_budgets()) == 4
    assert {percent: count_reached(percent) - before[percent] for percent in (80, 100)} == {80: 1, 100: 1}


@pytest.mark.timeout(90)
async def test_a_budget_counts_what_was_spent_before_it_was_set(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    """Over two gateways. A budget below that is noted when it is set, and refuses turns at once."""
    await company.create_keys()
    async with own.running_generator(), company.persistence():
        gateway, other = await new_gateway(own.server.url), await new_gateway(own.server.url)
        assert await company.post(gateway) == 202
        each = await company.cost(gateway)
        (budget,) = (await company.set_limits(gateway, usd_month=1.0))["budgets"]
        assert (budget["spent"], budget["left"]) == (pytest.approx(each), pytest.approx(1 - each))
        (read,) = (await company.get_tenant(other))["budgets"]
        assert read == budget
        limit = round(each / 2, 6)
        environ = {"TAILRACE_URL": str(gateway.client.base_url), "TAILRACE_KEY": company.admin}
        ran = await run_command("limits", "acme", "--set", f"usd_month={limit}", **environ)
        assert f"usd_month: ${each:.4f} of ${limit:g} is spent, $0.0000 is left" in ran.out
        assert "new turns are refused" in ran.out
        assert await company.post(other) == 402
        await until_equal(company.noted, [("tenant", "usd_month", percent, limit) for percent in (80, 100)])
        # The same budget again says nothing; another budget does.
        await company.set_limits(gateway, usd_month=limit)
        (budget,) = (await company.set_limits(gateway, usd_month=0.0))["budgets"]
        assert (budget["left"], "new turns are refused" in describe_budget(budget)) == (0, True)
        await until(lambda: len(company.noted()) == 4)
    assert {one[3] for one in company.noted()} == {0.0, limit}


@pytest.mark.timeout(90)
async def test_a_receiver_of_budgets_gets_no_turns(
    own: OwnSystem, company: Company, new_gateway: NewGateway, receiver: Receiver
) -> None:
    async with Receiver() as of_budgets:
        urls = f"acme={of_budgets.url}"
        await company.create_keys()
        async with own.running_generator(), company.persistence(budget_webhook_urls=urls):
            gateway = await new_gateway(own.server.url)
            assert await company.post(gateway) == 202
            await company.set_limits(gateway, usd_month=0.0)
            await until(lambda: len(of_budgets.received) == 2 and receiver.received)
        assert {one.payload["type"] for one in of_budgets.received} == {"budget.reached"}
        assert [one.payload["type"] for one in receiver.received] == ["turn.completed"]


@pytest.mark.timeout(90)
async def test_a_private_user_learns_nothing_of_the_budget_of_its_tenant(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    """It tells what others have spent. A budget of the user's token is shown, and operators see that it is reached."""
    await company.create_keys()
    async with own.running_generator(), company.persistence():
        of_tokens = jwts.settings(jwt_tenant_claim="org", jwt_scopes_claim="scopes")
        gateway = await new_gateway(own.server.url, limits_key="usd_day=0.01", **of_tokens)
        bearer = jwts.token(org="acme", sub="ann", scopes="read write").decode()
        operator = {"authorization": f"Bearer {company.admin}"}
        await company.set_limits(gateway, usd_month=1.0)

        async def budgets() -> list[tuple[str, str]]:
            answer = await gateway.client.get("/v1/limits", headers={"authorization": f"Bearer {bearer}"})
            return [(one["of"], one["name"]) for one in answer.json()["data"]]

        assert await budgets() == [("key", "usd_day"), ("tenant", "usd_month")]
        answer = await gateway.client.put("/v1/admin/tenants/acme", json={"users": "private"}, headers=operator)
        assert answer.status_code == 200, answer.text
        assert await budgets() == [("key", "usd_day")]
        while await company.post(gateway, bearer) != 402:
            pass

        async def reached() -> list[dict[str, Any]]:
            path = "/v1/admin/tenants?reached=true"
            found = (await gateway.client.get(path, headers=operator)).json()["data"]
            return [one for tenant in found for one in tenant["reached"] if one["is_refused"]]

        await until(reached)
        (one,) = await reached()
        assert (one["tenant"], one["of"], one["key"]) == ("acme", "key", name_token("ann"))
        await company.set_limits(gateway, usd_month=0.0)
        bob = jwts.token(org="acme", sub="bob", scopes="read write").decode()
        headers = {"authorization": f"Bearer {bob}"}
        refused = (await gateway.client.post("/v1/turns", json=TURN, headers=headers)).json()["error"]["message"]
        assert refused.startswith("The budget of this tenant for the month is nearly spent, and this turn reserves $")


@pytest.mark.timeout(90)
async def test_turns_at_once_do_not_exceed_a_budget_that_the_settings_begin(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    """A user who has spent it before the restart has nothing left, also before the first turn."""
    await company.create_keys()
    of_tokens = jwts.settings(jwt_tenant_claim="org", jwt_scopes_claim="scopes")
    bearer = jwts.token(org="acme", sub="gus", scopes="read write").decode()
    async with own.running_generator(), company.persistence():
        gateway = await new_gateway(own.server.url, **of_tokens)
        assert [await company.post(gateway, bearer) for _ in range(2)] == [202, 202]
        spent = await company.cost(gateway)
        limits = f"usd_month={spent / 2:.6f}"
        first, second = [await new_gateway(own.server.url, limits_key=limits, **of_tokens) for _ in range(2)]
        for one in (first, second):
            answer = await one.client.get("/v1/limits", headers={"authorization": f"Bearer {bearer}"})
            assert [rest["left"] for rest in answer.json()["data"]] == [0]
        third = await new_gateway(own.server.url, limits_key=limits, **of_tokens)
        assert set(await asyncio.gather(*(company.post(third, bearer) for _ in range(6)))) == {402}
        larger = await new_gateway(own.server.url, limits_key=f"usd_month={spent * 20:.6f}", **of_tokens)
        assert set(await asyncio.gather(*(company.post(larger, bearer) for _ in range(3)))) == {202}
        headers = {"authorization": f"Bearer {bearer}"}

        async def is_settled() -> bool:
            (rest,) = (await larger.client.get("/v1/limits", headers=headers)).json()["data"]
            return bool(rest["limit"] - rest["left"] == pytest.approx(await company.cost(larger), abs=1e-8))

        await until(is_settled)


@pytest.mark.rule("R108")
@pytest.mark.timeout(90)
async def test_a_tenant_whose_limits_cannot_be_read_is_refused_until_they_are_set_again(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    """By a gateway that has never read them. The error names the command, which works."""
    await company.create_keys()
    bucket = await own.connection.jetstream.key_value(KEYS)
    await bucket.put(limits_of_tenant(ACME), b"usd_month=1")
    async with own.running_generator(), company.persistence():
        gateway = await new_gateway(own.server.url)
        headers = {"authorization": f"Bearer {company.key}"}
        refused = await gateway.client.post("/v1/turns", json=TURN, headers=headers)
        assert refused.status_code == 503
        assert "tailrace limits acme --set" in refused.json()["error"]["message"]
        environ = {"TAILRACE_URL": str(gateway.client.base_url), "TAILRACE_KEY": company.admin}
        ran = await run_command("limits", "acme", "--set", "usd_month=1", **environ)
        assert (ran.status, "usd_month=1" in ran.out) == (0, True), ran
        await until(lambda: is_accepted(company, gateway))


async def is_accepted(company: Company, gateway: Gateway) -> bool:
    return await company.post(gateway) == 202


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
async def test_a_budget_whose_counter_is_lost_is_not_granted_again(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    """In the gateway that has spent it, in another one, and in one that starts later."""
    await company.create_keys({"usd_day": 0.004})
    async with own.running_generator(), company.persistence():
        gateway, other = await new_gateway(own.server.url), await new_gateway(own.server.url)
        while await company.post(gateway) != 402:
            pass
        assert await company.post(other) == 402
        spent = await company.cost(gateway)
        jetstream = own.connection.jetstream
        counters = (await jetstream.stream_info(BUDGETS, subjects_filter=">")).state.subjects
        assert counters is not None
        (counter,) = [subject for subject in counters if ".usd_day." in subject]
        for one, settled in ((gateway, 0), (other, -1000), (gateway, 1000), (await new_gateway(own.server.url), 0)):
            await jetstream.delete_stream(BUDGETS)
            await apply_streams(own.server.url)
            # Of a turn that was running.
            await Counters(own.connection).add(counter, settled)
            assert await company.post(one) == 402
        assert await company.cost(gateway) == spent


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
async def test_a_budget_whose_counter_is_lost_is_not_granted_to_many_turns_at_once(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    """Each of them finds the others in the new counter."""
    await company.create_keys({"usd_day": 0.02})
    async with own.running_generator(), company.persistence():
        gateway = await new_gateway(own.server.url)
        while await company.post(gateway) != 402:
            pass
        spent = await company.cost(gateway)
        # This refusal compares the budget with all turns, which are recorded now.
        assert await company.post(gateway) == 402
        await own.connection.jetstream.delete_stream(BUDGETS)
        await apply_streams(own.server.url)
        assert set(await asyncio.gather(*(company.post(gateway) for _ in range(30)))) == {402}
        assert await company.cost(gateway) == spent


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
async def test_a_budget_whose_counter_is_lost_is_not_granted_again_while_persistence_is_away(
    own: OwnSystem, company: Company, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests can be repeated."""
    monkeypatch.setattr(soft_limits, "LOST_WAIT_S", 0.3)
    await company.create_keys({"usd_day": 0.02})
    async with own.running_generator():
        async with company.persistence():
            gateway = await new_gateway(own.server.url)
            while await company.cost(gateway) < 0.01:
                assert await company.post(gateway) == 202
            spent = await company.cost(gateway)
        await own.connection.jetstream.delete_stream(BUDGETS)
        await apply_streams(own.server.url)
        assert set(await asyncio.gather(*(company.post(gateway) for _ in range(9)))) == {503}
        async with company.persistence():
            assert await company.post(gateway) == 202
            assert spent < await company.cost(gateway)
            statuses = await asyncio.gather(*(company.post(gateway) for _ in range(9)))
            assert set(statuses) == {202, 402}
            assert await company.cost(gateway) <= 0.02


@pytest.mark.timeout(90)
async def test_a_budget_that_is_removed_and_set_again_counts_what_was_spent_meanwhile(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    await company.create_keys()
    async with own.running_generator(), company.persistence():
        gateway = await new_gateway(own.server.url)
        for _ in range(3):
            await company.set_limits(gateway)
            assert await company.post(gateway) == 202
            spent = await company.cost(gateway)
            (budget,) = (await company.set_limits(gateway, usd_month=1.0))["budgets"]
            assert (budget["spent"], budget["left"]) == (pytest.approx(spent), pytest.approx(1 - spent))


@pytest.mark.timeout(90)
async def test_without_persistence_a_turn_does_not_wait_for_its_budget(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    await company.create_keys({"usd_day": 1.0})
    async with own.running_generator():
        gateway = await new_gateway(own.server.url)
        assert [await company.post(gateway) for _ in range(2)] == [202, 202]


@pytest.mark.timeout(90)
async def test_a_rotated_key_shares_the_soft_limits_of_its_budget(
    own: OwnSystem, company: Company, new_gateway: NewGateway
) -> None:
    """The usage of the old key counts, and the webhook names the key that is in use."""
    await company.create_keys({"usd_day": 0.01})
    async with own.running_generator(), company.persistence():
        gateway = await new_gateway(own.server.url)
        admin = {"authorization": f"Bearer {company.admin}"}
        assert await company.post(gateway) == 202
        (mine,) = (await gateway.client.get("/v1/admin/keys?tenant=acme", headers=admin)).json()["data"]
        path = f"/v1/admin/keys/{mine['id']}/rotate"
        rotated = (await gateway.client.post(path, json={}, headers=admin)).json()
        for _ in range(40):
            if await company.post(gateway, rotated["key"]) == 402:
                break
            if await company.cost(gateway) >= 0.008:
                # No further turn is needed.
                await until(lambda: len(company.noted()) == 1)
        await until_equal(company.noted, [("key", "usd_day", percent, 0.01) for percent in (80, 100)])
        eighty, hundred = sorted((one.payload["data"] for one in company.of_budgets()), key=lambda one: one["percent"])
        assert eighty["key"] == rotated["id"]
        assert (eighty["is_refused"], hundred["is_refused"]) == (False, True)
        of_both = [await company.spent_by(gateway, one) for one in (mine["id"], rotated["id"])]
        assert min(of_both) > 0
        assert max(of_both) < eighty["spent_usd"] <= sum(of_both)


def row_of(turn: str, key: str, cost_nusd: int) -> TurnRow:
    row = running_row(turn)
    return msgspec.structs.replace(row, asked_by=key, cost_nusd=cost_nusd, outcome="completed")


BUDGET = f"budgets.ours.{{}}.usd_month.{NOON:%Y-%m}"


def query_of(limit: int, **given: object) -> CheckBudget:
    query = CheckBudget(
        name=BUDGET.format("tenant"),
        budget="usd_month",
        limit_nano_usd=limit,
        first=NOON.date(),
        last=NOON.date(),
        renews_at=datetime.now(UTC) + timedelta(days=1),
        percents=[50, 90],
    )
    return msgspec.structs.replace(query, **given)


async def notices_of(store: Store) -> list[str]:
    return [row["body"] for row in await store.database.read("SELECT body FROM notices ORDER BY noted_at", {})]


async def test_persistence_compares_the_usage_of_a_tenant_and_of_keys(store: Store) -> None:
    """Each share, budget and owner is stored once. The period's end, and an erasure of the tenant, delete it."""
    table = ReservationTable(store)

    async def read_cost(budget: Budget) -> int:
        return (await table.read(budget, NOON)).cost

    queries = BudgetQueries(store, read_cost)
    await store.record([row_of("turn-1", "a", 40), row_of("turn-2", "b", 50), row_of("turn-3", "c", 9)])
    assert await queries.check(OURS, query_of(200)) == BudgetState(99, 0)
    assert await queries.check(OURS, query_of(198)) == BudgetState(99, 50)
    assert await queries.check(OURS, query_of(198)) == BudgetState(99, 50)
    of_keys = query_of(110, name=BUDGET.format("k_a"), keys=["a", "b", "x"])
    assert await queries.check(OURS, of_keys) == BudgetState(90, 50)
    assert await queries.check(OURS, query_of(100, name=BUDGET.format("k_n"), keys=[])) == BudgetState(0, 0)
    assert await queries.check(THEIRS, query_of(1)) == BudgetState(0, 0)
    tomorrow = f"budgets.ours.tenant.usd_day.{NOON + timedelta(days=1):%Y-%m-%d}"
    assert await queries.check(OURS, query_of(9, name=tomorrow)) == BudgetState(0, 0)
    assert len(await notices_of(store)) == 2
    assert await queries.check(OURS, query_of(200, is_refused=True)) == BudgetState(99, 90)
    assert len(await notices_of(store)) == 4
    past = datetime.now(UTC) - timedelta(days=9)
    await queries.check(OURS, query_of(97, renews_at=past))
    assert len(await notices_of(store)) == 5
    await queries.check(OURS, query_of(96))
    assert len(await notices_of(store)) == 6
    purged = tuple(one.turn for one in await store.turns_to_delete(OURS, DeleteResource("tenant", OURS)))
    await store.delete(OURS, DeleteResource("tenant", OURS, purged))
    assert await notices_of(store) == []


@pytest.mark.parametrize("text", ["0", "105", "80%", "a", "-5", "7", "1.5", "²"])
def test_soft_limits_are_percents_in_steps_of_5(text: str) -> None:
    with pytest.raises(SettingsInvalid, match="TAILRACE_SOFT_LIMITS"):
        parse_percents(text)


def test_soft_limits_are_sorted_and_may_be_empty() -> None:
    assert (parse_percents("100, 80,80"), parse_percents("")) == ([80, 100], [])
