"""The comparison of counters and slots with the database, by a running persistence process (R148).

Here the times are shorter than those of PROTOCOL. test_healed_budgets.py has the faults of gateways and batches.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from tailrace.features.limits.budget_reader import BudgetReader
from tailrace.features.limits.records import TENANT
from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnKey, new_id
from tailrace.proto.nats import Connection, Counters, Slots
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.nats.stream_configs import INCREMENTS_KEPT
from tailrace.proto.subjects import BUDGETS, recorded_cost
from tests.conftest import apply_streams
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.reconciler_times import shorten_times
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, NewGateway

SHORT: dict[str, Any] = {"message": "#sim words=3 rate=0", "max_tokens": 300}
LONG = SHORT | {"message": "#sim words=3 wait=3600"}
CORRECTED = "the counter of a budget was corrected"


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"APPENDED_WITHIN": 2.0, "SETTLED_WITHIN": 0.8, "CLOCKS_DIFFER": 0.1, "MARK_EVERY": 0.1, "DEAD_EVERY": 0.3}
    shorten_times(monkeypatch, 0.2, **times, AGAIN_AFTER=0.5, REPEATED_EVERY=0.5)


@dataclass
class Budgeted:
    """A gateway whose tenant has a budget and two slots."""

    own: OwnSystem
    gateway: Gateway
    tenant: Tenant
    database: Path

    @property
    def client(self) -> httpx2.AsyncClient:
        return self.gateway.client

    @property
    def subject(self) -> str:
        return subjects.budget(self.tenant, TENANT, "usd_month", f"{datetime.now(UTC):%Y-%m}")

    @property
    def counters(self) -> Counters:
        return Counters(self.own.connection)

    def persistence(self) -> Persistence:
        return Persistence(self.own.server.url, self.database)

    async def post(self, body: dict[str, Any] = SHORT) -> TurnKey:
        answer = await self.client.post("/v1/turns", json=body)
        assert answer.status_code == 202, answer.text
        return TurnKey(self.tenant, answer.json()["turn"])

    async def counted(self) -> int:
        return await self.counters.read(self.subject)

    async def cost(self) -> int:
        rows = (await self.client.get("/v1/usage?by=day")).json()["data"]
        cost_usd = sum(float(row["cost_usd"]) for row in rows)
        return round(cost_usd * 1e9)

    async def left(self, name: str) -> float:
        rests = (await self.client.get("/v1/limits")).json()["data"]
        return next(float(rest["left"]) for rest in rests if rest["name"] == name)


@pytest.fixture
async def budgeted(own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path) -> Budgeted:
    gateway = await new_gateway(own.server.url, limits_tenant="usd_month=500, running=2")
    return Budgeted(own, gateway, tenant, tmp_path / "tailrace.db")


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_a_slot_without_a_turn_is_freed_also_after_a_restart(budgeted: Budgeted) -> None:
    """The slot of a running turn is not. What is left is shown."""
    slots = Slots(budgeted.own.connection)
    running = await budgeted.post(LONG)
    assert await slots.acquire(budgeted.tenant, TENANT, "running", 2, new_id()) is not None
    assert await budgeted.left("running") == 0
    async with budgeted.persistence():
        await until_equal(lambda: budgeted.left("running"), 1.0)
    async with budgeted.persistence():
        assert await slots.acquire(budgeted.tenant, TENANT, "running", 2, new_id()) is not None
        await until_equal(lambda: budgeted.left("running"), 1.0)
        (held,) = await slots.list_held(budgeted.tenant, TENANT, "running")
        assert held.holder == running.turn


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_the_counter_of_a_lost_stream_has_costs_and_running_turns_again(budgeted: Budgeted) -> None:
    """No turn asks for it. A second loss is noticed, too."""
    async with budgeted.own.running_generator(), budgeted.persistence():
        await budgeted.own.wait_until_settled(await budgeted.post())
        reserved = -await budgeted.counted()
        await budgeted.post(LONG)
        expected = await budgeted.counted()
        reserved += expected
        assert expected == await budgeted.cost() + reserved
        for _ in range(2):
            await budgeted.own.connection.jetstream.delete_stream(BUDGETS)
            await apply_streams(budgeted.own.server.url)
            await budgeted.counters.add(budgeted.subject, 0)
            await until_equal(budgeted.counted, expected)


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_a_counter_is_raised_at_once_and_lowered_later(budgeted: Budgeted) -> None:
    """With a log line. After a restart of everything but NATS, too. Running turns keep what they have reserved."""
    async with budgeted.persistence():
        await budgeted.post(LONG)
        expected = await budgeted.counted()
        with capture_logs() as logs:
            await budgeted.counters.add(budgeted.subject, -7)
            await until_equal(budgeted.counted, expected)
            await budgeted.counters.add(budgeted.subject, 2 * 10**9)
            await until_equal(budgeted.counted, expected)
        lines = [(one["dollars"], one["subject"]) for one in logs if one["event"] == CORRECTED]
        assert lines == [(7e-9, budgeted.subject), (-2.0, budgeted.subject)]
    await budgeted.counters.add(budgeted.subject, 10**9)
    async with budgeted.persistence():
        await until_equal(budgeted.counted, expected)


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_a_lost_database_lowers_no_budget(budgeted: Budgeted) -> None:
    """The new one lacks turns that have left the log. What no turn has bought is still subtracted."""
    spent = 0
    async with budgeted.own.running_generator():
        for _ in range(3):
            async with budgeted.persistence():
                key = await budgeted.post()
                turn = await budgeted.own.wait_until_settled(key)
                assert turn.end is not None
                spent += turn.end.cost_nano_usd
                await budgeted.counters.add(budgeted.subject, 10**9)
                await until_equal(budgeted.counted, spent)
                await until_equal(lambda: budgeted.counters.read(recorded_cost(budgeted.subject)), spent)
            await budgeted.own.log.purge(key)
            for file in budgeted.database.parent.glob(f"{budgeted.database.name}*"):
                file.unlink()


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_a_turn_that_is_not_stored_holds_its_reservation_while_it_runs(budgeted: Budgeted) -> None:
    """Its row is a note without content. When it has left the log, its reservation is free."""
    async with budgeted.persistence():
        turn = await budgeted.post(LONG | {"store": False})
        reserved = await budgeted.counted()
        assert reserved > 0
        await budgeted.counters.add(budgeted.subject, 5)
        await until_equal(budgeted.counted, reserved)
        await budgeted.own.log.purge(turn)
        await until_equal(budgeted.counted, 0)
    async with budgeted.own.running_generator(), budgeted.persistence():
        await budgeted.own.wait_until_settled(await budgeted.post(SHORT | {"store": False}))
        await until(budgeted.cost)
        await budgeted.counters.add(budgeted.subject, 5)
        await until_equal(budgeted.counted, await budgeted.cost())


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_a_turn_whose_generator_has_died_before_the_settlement_is_settled_once(
    budgeted: Budgeted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While other turns run. A later settlement by a generator changes nothing."""
    later = list[Any]()

    async def die(_: Settlement, *given: Any) -> None:
        later.append(given)

    async with budgeted.own.running_generator(), budgeted.persistence():
        with monkeypatch.context() as patch:
            patch.setattr(Settlement, "settle", die)
            await budgeted.own.wait_until_settled(await budgeted.post())
        before = await budgeted.counted()
        await budgeted.post(LONG)
        running = await budgeted.counted() - before
        expected = await budgeted.cost() + running
        assert before + running > expected
        await until_equal(budgeted.counted, expected)
        for given in later:
            await Settlement(budgeted.counters, Slots(budgeted.own.connection)).settle(*given)
        assert await budgeted.counted() == expected


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_a_settlement_whose_name_the_server_has_forgotten_is_not_repeated(budgeted: Budgeted) -> None:
    """After a restart, nats-server knows the names of the increments that it still stores."""
    async with budgeted.own.running_generator():
        await budgeted.own.wait_until_settled(await budgeted.post())
        spent = await budgeted.counted()
        for _ in range(INCREMENTS_KEPT):
            await budgeted.counters.add(budgeted.subject, 0)
        await budgeted.own.server.stop()
        await budgeted.own.server.start()

        async def is_back() -> bool:
            with suppress(LogUnavailable):
                return await budgeted.counted() == spent
            return False

        await until(is_back)
        await budgeted.counters.add(budgeted.subject, 10**9)
        with capture_logs() as logs:
            async with budgeted.persistence():
                await until_equal(budgeted.counted, spent)
        assert [one["dollars"] for one in logs if one["event"] == CORRECTED] == [-1.0]


@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_of_two_processes_with_one_database_one_corrects(
    budgeted: Budgeted, postgresql: PostgreSQLServer
) -> None:
    """Whichever is left."""
    url = await postgresql.new_database()
    one, other = (Persistence(budgeted.own.server.url, url) for _ in range(2))
    async with one:
        async with other:
            await budgeted.post(LONG)
            expected = await budgeted.counted()
            with capture_logs() as logs:
                await budgeted.counters.add(budgeted.subject, 9)
                await until_equal(budgeted.counted, expected)
            assert [line["dollars"] for line in logs if line["event"] == CORRECTED] == [-9e-9]
        await budgeted.counters.add(budgeted.subject, -9)
        await until_equal(budgeted.counted, expected)


@pytest.fixture
async def many(own_connection: Connection, tenant: Tenant) -> list[str]:
    """More counters than one read returns."""
    names = [subjects.budget(tenant, f"k_{number}", "usd_day", "2026-01-01") for number in range(1100)]
    counters = Counters(own_connection)
    for number, name in enumerate(names):
        await counters.add(name, number)
    return names


@pytest.mark.timeout(90)
async def test_all_counters_are_read_and_then_those_that_have_changed(
    own_connection: Connection, tenant: Tenant, many: list[str]
) -> None:
    def filters(_: datetime) -> list[str]:
        return ["budgets.*.*.usd_day.2026-01-01"]

    reader = BudgetReader(own_connection, DirectReader(own_connection, BUDGETS))
    first = await reader.read_changed(filters)
    assert first.is_new
    assert {name: counted.value for name, counted in first.counted.items()} == {name: n for n, name in enumerate(many)}
    await Counters(own_connection).add(many[7], 3)
    await Counters(own_connection).add(subjects.budget(tenant, "k_7", "usd_day", "2026-01-02"), 3)
    second = await reader.read_changed(filters)
    assert {name: counted.value for name, counted in second.counted.items()} == {many[7]: 10}
    third = await reader.read_changed(filters)
    assert (third.counted, third.is_new) == ({}, False)
