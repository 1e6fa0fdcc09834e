"""What a budget holds after each fault in which a reservation is left over: what is recorded, and no more (R148).

The faults with kills of processes are in tests/kills. Here the times are shorter than those of PROTOCOL.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tailrace.features.limits import limiter
from tailrace.features.limits.records import TENANT
from tailrace.gateway.turns import deleted_parent
from tailrace.proto import subjects
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Counters, Slots, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import budget_at
from tests.harness.batch_client import post_batch
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.reconciler_times import shorten_times
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

RIGHT_WITHIN_S = 30.0
TURN = {"message": "#sim words=3 rate=0", "max_tokens": 300}
KEY = {"idempotency-key": "one"}


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "RESERVED_WITHIN_S", 2.0)
    times = {"RESERVED_WITHIN": 2.0, "APPENDED_WITHIN": 3.0, "SETTLED_WITHIN": 1.0, "CLOCKS_DIFFER": 0.2}
    shorten_times(monkeypatch, 0.3, **times, MARK_EVERY=0.2, DEAD_EVERY=0.5, AGAIN_AFTER=1.0)


@dataclass
class Budgeted:
    """A system whose gateway has budgets and slots of its tenant."""

    own: OwnSystem
    gateway: Gateway
    tenant: Tenant
    monkeypatch: pytest.MonkeyPatch

    @property
    def client(self) -> httpx2.AsyncClient:
        return self.gateway.client

    async def post(self, **headers: str) -> httpx2.Response:
        return await self.client.post("/v1/turns", json=TURN, headers=headers)

    async def post_turn(self) -> TurnKey:
        return TurnKey(self.tenant, (await self.post()).json()["turn"])

    async def wait_for_message_batch(self, batch: dict[str, Any]) -> None:
        async def is_submitted() -> bool:
            turn = await self.own.log.read_turn(ScopedKey.whole(TurnKey(self.tenant, batch["batch"])))
            return turn.progress is not None and turn.progress.message_batch is not None

        await until(is_submitted)

    async def held(self) -> dict[str, int]:
        """Returns the counters of the budgets, and the number of slots."""
        now = await self.own.log.now()
        counters, found = Counters(self.own.connection), dict[str, int]()
        for what, period in (("usd_day", "2026-01-01"), ("usd_month", "2026-01")):
            subject = budget_at(subjects.budget(self.tenant, TENANT, what, period), now)
            found[what] = await counters.read(subject)
        found["running"] = len(await Slots(self.own.connection).list_held(self.tenant, TENANT, "running"))
        return found

    async def recorded(self) -> dict[str, int]:
        """Returns what the budgets have to be when no turn runs."""
        rows = (await self.client.get("/v1/usage?by=day")).json()["data"]
        cost = round(sum(row["cost_usd"] for row in rows) * 1e9)
        return {"usd_day": cost, "usd_month": cost, "running": 0}


Fault = Callable[[Budgeted], Awaitable[None]]


async def unclear_append(system: Budgeted) -> None:
    """Its turn is not stored."""
    with system.monkeypatch.context() as patch:
        _fail(patch, TurnLog, "append", lambda _, __, ___, entry: isinstance(entry, Request))
        assert (await system.post()).status_code == 503
        batch = {"requests": [{"custom_id": f"c{number}", "params": TURN} for number in range(30)]}
        assert (await system.client.post("/v1/turn-batches", json=batch)).status_code == 503


async def lost_answer_of_a_counter(system: Budgeted) -> None:
    with system.monkeypatch.context() as patch:
        _fail(
            patch,
            Counters,
            "increment",
            lambda _, subject, amount: "usd_month." in subject and amount > 0,
            is_done=True,
        )
        assert (await system.post()).status_code == 503


async def repetitions_of_a_post_that_is_not_stored(system: Budgeted) -> None:
    """Each has reserved for itself, under the turn of the first. The last one stores the turn."""
    with system.monkeypatch.context() as patch:
        _fail(patch, TurnLog, "append", lambda _, __, ___, entry: isinstance(entry, Request))
        assert [(await system.post(**KEY)).status_code for _ in range(3)] == [503] * 3
    accepted = await system.post(**KEY)
    assert accepted.status_code == 202
    async with system.own.running_generator():
        await system.own.wait_until_settled(TurnKey(system.tenant, accepted.json()["turn"]))


async def turn_that_leaves_the_log_without_an_end(system: Budgeted) -> None:
    await system.own.log.purge(await system.post_turn())


async def deleted_parent_of_a_new_turn(system: Budgeted) -> None:
    """Its deletion settles the turn."""
    async with system.own.running_generator():
        parent = await system.post_turn()
        await system.own.wait_until_settled(parent)
    with system.monkeypatch.context() as patch:

        async def is_deleted(*_: object) -> bool:
            return True

        patch.setattr(deleted_parent, "is_deleted", is_deleted)
        refused = await system.client.post("/v1/turns", json=TURN | {"parent": parent.turn})
        assert refused.json()["error"]["code"] == "parent_not_found"


async def inputs_of_an_erased_user(system: Budgeted) -> None:
    """The batch of another user leaves them out."""
    inputs = [
        {"custom_id": f"c{number}", "params": TURN | {"user": "ann" if number % 2 else "bob"}} for number in range(20)
    ]
    batch = await post_batch(system.gateway, inputs)
    assert (await system.client.delete("/v1/users?user=ann")).status_code == 200
    async with system.own.running_generator():
        await system.own.wait_until_settled(TurnKey(system.tenant, batch["batch"]))


async def cancelled_batch_after_a_restart_of_nats(system: Budgeted) -> None:
    """The restarted server remembers only the last increments of a counter, and the batch is delivered again."""
    batch = await post_batch(system.gateway, [{"custom_id": f"c{n}", "params": TURN} for n in range(200)])
    await system.client.post(batch["links"]["cancel"])
    for _ in range(2):
        async with system.own.running_generator():
            await system.own.wait_until_acknowledged()
        await system.own.server.stop()
        await system.own.server.start()
        await until(lambda: system.own.connection.client.is_connected)


async def cancelled_message_batch(system: Budgeted) -> None:
    """One input is answered by then."""
    lines = ("words=2 rate=0", "words=2 wait=3600")
    inputs = [{"custom_id": f"c{number}", "params": {"message": f"#sim {line}"}} for number, line in enumerate(lines)]
    batch = await post_batch(system.gateway, inputs, via="message_batches")
    async with system.own.running_generator():
        await system.wait_for_message_batch(batch)
        await system.client.post(batch["links"]["cancel"])
        await system.own.wait_until_acknowledged()


async def deleted_turn_that_no_generator_has_settled(system: Budgeted) -> None:
    turn = await system.post_turn()
    with system.monkeypatch.context() as patch:

        async def die(*_: object) -> None:
            """Leaves the reservation, as a kill does."""

        patch.setattr(Settlement, "settle", die)
        async with system.own.running_generator():
            await system.own.wait_until_settled(turn)
    assert (await system.client.delete(f"/v1/turns/{turn.turn}")).status_code == 200


def _fail(
    patch: pytest.MonkeyPatch, kind: type, name: str, where: Callable[..., bool], *, is_done: bool = False
) -> None:
    """Makes a method raise LogUnavailable where `where` says so; with `is_done` after it has done its work."""
    method = getattr(kind, name)

    async def call_or_fail(*given: Any, **named: Any) -> Any:
        fails = where(*given)
        result = await method(*given, **named) if is_done or not fails else None
        if fails:
            raise LogUnavailable("no answer")
        return result

    patch.setattr(kind, name, call_or_fail)


@pytest.fixture
async def system(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Budgeted]:
    gateway = await new_gateway(own.server.url, limits_tenant="usd_day=50, usd_month=500, running=8")
    async with Persistence(own.server.url, tmp_path / "tailrace.db"):
        yield Budgeted(own, gateway, tenant, monkeypatch)


@pytest.mark.rule("R148")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "fault",
    [
        unclear_append,
        lost_answer_of_a_counter,
        repetitions_of_a_post_that_is_not_stored,
        turn_that_leaves_the_log_without_an_end,
        deleted_parent_of_a_new_turn,
        inputs_of_an_erased_user,
        cancelled_batch_after_a_restart_of_nats,
        cancelled_message_batch,
        deleted_turn_that_no_generator_has_settled,
    ],
    ids=lambda fault: fault.__name__,
)
async def test_after_a_fault_a_budget_holds_what_is_recorded(system: Budgeted, fault: Fault) -> None:
    await fault(system)
    held = await system.held()
    assert all(held[what] >= least for what, least in (await system.recorded()).items())

    async def is_exact() -> bool:
        return await system.held() == await system.recorded()

    await until(is_exact, RIGHT_WITHIN_S)


@pytest.mark.rule("R67")
@pytest.mark.rule("R148")
@pytest.mark.timeout(90)
async def test_a_message_batch_that_is_deleted_before_its_results_keeps_its_reservation(system: Budgeted) -> None:
    """Anthropic bills what it has answered. A loop that creates and deletes batches would spend without a limit."""
    inputs = [{"custom_id": "a", "params": {"message": "#sim words=2 wait=3600"}}]
    batch = await post_batch(system.gateway, inputs, via="message_batches")
    reserved = (await system.held())["usd_day"]
    async with system.own.running_generator():
        await system.wait_for_message_batch(batch)
        assert (await system.client.delete(f"/v1/turns/{batch['batch']}")).status_code == 200
        await system.own.wait_until_acknowledged()

        async def is_kept_alone() -> bool:
            return (await system.held())["usd_day"] == reserved

        # What later requests have left is given back.
        for _ in range(2):
            await unclear_append(system)
            assert (await system.held())["usd_day"] > reserved
            await until(is_kept_alone, RIGHT_WITHIN_S)
    assert (await system.recorded())["usd_day"] == 0
