"""Every place that shows a budget shows the same numbers: the API, the admin page's data, the commands, and the 402."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tailrace.deploy.cli.keys import create
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.administration import Administration
from tailrace.features.limits import persistence, reconciler
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Counters, Slots
from tailrace.proto.subjects import BUDGETS
from tests.harness.budget_audit import RIGHT_WITHIN_S, TENANT
from tests.harness.forks import run_command
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

ACME = Tenant("acme")
TURN = {"message": "#sim words=100 rate=0", "max_tokens": 200}
BUDGET = "usd_month"
RUNNING = 300
# More than a gateway looks at when no slot is free.
DEAD = 90


class Shown(NamedTuple):
    """What a place says of a budget, in dollars; None: it does not say it."""

    limit: float | None
    spent: float | None
    left: float | None


class Places:
    """The places that show the budgets of a tenant and of its key."""

    def __init__(self, gateway: Gateway, nats_url: str, operator: str, key: str, key_id: str) -> None:
        self.gateway = gateway
        self._nats_url = nats_url
        self._operator = {"authorization": f"Bearer {operator}"}
        self._key = {"authorization": f"Bearer {key}"}
        self._key_id = key_id
        self._environ = {"TAILRACE_URL": str(gateway.client.base_url), "TAILRACE_KEY": operator}

    async def post(self) -> str:
        """Posts a turn, and waits for its end; returns the text of a refusal, or an empty text."""
        answer = await self.gateway.client.post("/v1/turns", json=TURN, headers=self._key)
        if answer.status_code != 202:
            assert answer.status_code == 402, answer.text
            return str(answer.json()["error"]["message"])
        await self.gateway.client.get(answer.json()["links"]["events"], headers=self._key)
        return ""

    async def get(self, path: str) -> Any:
        return (await self.gateway.client.get(path, headers=self._operator)).json()

    async def set_limits(self, **limits: float) -> None:
        path = "/v1/admin/tenants/acme/limits"
        answer = await self.gateway.client.put(path, json={"limits": limits}, headers=self._operator)
        assert answer.status_code == 200, answer.text

    async def cost(self) -> float:
        return float((await self.get("/v1/admin/tenants/acme/usage"))["total"]["cost_usd"])

    async def left_of_running(self) -> float:
        """Returns what `/v1/limits` has left of the tenant's running turns."""
        found = (await self.gateway.client.get("/v1/limits", headers=self._key)).json()["data"]
        return float(next(one["left"] for one in found if (one["of"], one["name"]) == ("tenant", "running")))

    async def ask_all(self) -> AsyncIterator[tuple[str, Shown]]:
        """Yields each place with what it says, first the places that show the budget of the tenant."""
        rests = (await self.gateway.client.get("/v1/limits", headers=self._key)).json()["data"]
        for of in ("tenant", "key"):
            found = next(one for one in rests if (one["of"], one["name"]) == (of, BUDGET))
            yield f"{of}: GET /v1/limits", Shown(found["limit"], None, found["left"])
        (use,) = (await self.get("/v1/admin/tenants/acme/limits"))["budgets"]
        yield "tenant: GET /v1/admin/tenants/acme/limits", Shown(use["limit"], use["spent"], use["left"])
        for reached in (await self.get("/v1/admin/tenants?reached=true"))["data"]:
            for one in reached["reached"]:
                yield f"{one['of']}: GET /v1/admin/tenants", Shown(one["limit_usd"], one["spent_usd"], None)
        (key,) = (await self.get(f"/v1/admin/keys?id={self._key_id}"))["data"]
        yield "key: GET /v1/admin/keys", Shown(*(key["budgets"][0][name] for name in ("limit", "spent", "left")))
        said = (await run_command("limits", "acme", **self._environ)).out
        numbers = re.search(rf"{BUDGET}: \$(\S+) of \$(\S+) is spent, \$(\S+) is left", said)
        assert numbers is not None, said
        spent, limit, left = map(float, numbers.groups())
        yield "tenant: tailrace limits", Shown(limit, spent, left)
        listed = await run_command("keys", "list", "--json", TAILRACE_NATS_URL=self._nats_url)
        (listed_key,) = [one for one in msgspec.json.decode(listed.out) if one["id"] == self._key_id]
        yield "key: tailrace keys list", Shown(listed_key["limits"][BUDGET], None, listed_key["left"][BUDGET])

    async def differences(self, expected: dict[str, Shown]) -> list[str]:
        """Returns a line for each place that says other numbers than those `expected` of its owner."""
        found = list[str]()
        async for place, shown in self.ask_all():
            for name, wanted, said in zip(Shown._fields, expected[place.split(":")[0]], shown, strict=True):
                # `tailrace limits` shows four decimals.
                digits = 4 if place.endswith("tailrace limits") and name != "limit" else 9
                if said is not None and wanted is not None and round(said, digits) != round(wanted, digits):
                    found.append(f"{place} says {name} {said}, not {wanted}")
        return found


async def new_places(server: NatsServer, gateway: Gateway) -> Places:
    operator, _ = await create(server.url, Tenant("operators"), "me", ["admin"])
    key, _ = await create(server.url, ACME, "app", ["read", "write", "manage"], {BUDGET: 1.0})
    return Places(gateway, server.url, operator.secret, key.secret, key.record.id)


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
async def test_a_budget_has_the_same_numbers_everywhere(
    own: OwnSystem, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """That of a tenant which is set in mid-month, is spent, and has refused a turn; and that of its key."""
    async with own.running_generator(), Persistence(own.server.url, tmp_path / "tailrace.db"):
        gateway = await new_gateway(own.server.url, api_keys="")
        places = await new_places(own.server, gateway)
        assert await places.post() == ""
        await own.wait_until_acknowledged()
        spent = await places.cost()
        of_key = Shown(1.0, spent, 1.0 - spent)
        await places.set_limits(usd_month=0.9)
        assert await places.differences({"tenant": Shown(0.9, spent, 0.9 - spent), "key": of_key}) == []
        limit = round(spent / 2, 6)
        await places.set_limits(usd_month=limit)
        is_spent = {"tenant": Shown(limit, spent, 0.0), "key": of_key}
        assert await places.differences(is_spent) == []
        refusal = await places.post()
        said = re.search(r"is \$(\S+): \$(\S+) is spent or reserved", refusal)
        # The sentence has four decimals.
        assert said is not None, refusal
        assert [round(float(one), 4) for one in said.groups()] == [round(limit, 4), round(spent, 4)]
        assert await places.differences(is_spent) == []


@pytest.mark.rule("F39")
@pytest.mark.timeout(90)
async def test_limits_whose_answer_is_lost_apply_and_can_be_set_again(
    own: OwnSystem, new_gateway: NewGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway stops between the change and its answer."""
    set_tenant_limits, is_set = Administration.set_tenant_limits, asyncio.Event()

    async def set_and_stop(self: Administration, *given: Any) -> None:
        await set_tenant_limits(self, *given)
        is_set.set()
        await asyncio.Event().wait()

    async with own.running_generator(), Persistence(own.server.url, tmp_path / "tailrace.db"):
        first, other = [await new_gateway(own.server.url, api_keys="") for _ in range(2)]
        places = await new_places(own.server, first)
        assert await places.post() == ""
        await own.wait_until_acknowledged()
        spent = await places.cost()
        with monkeypatch.context() as stopping:
            stopping.setattr(Administration, "set_tenant_limits", set_and_stop)
            lost = asyncio.create_task(places.set_limits(usd_month=0.9))
            await is_set.wait()
            lost.cancel()
        places.gateway = other
        for _ in range(2):
            expected = {"tenant": Shown(0.9, spent, 0.9 - spent), "key": Shown(1.0, spent, 1.0 - spent)}
            assert await places.differences(expected) == []
            await places.set_limits(usd_month=0.9)
        assert await places.post() == ""


@pytest.mark.rule("R37")
@pytest.mark.timeout(240)
async def test_after_a_restart_no_place_counts_turns_that_were_never_stored(
    own: OwnSystem, new_gateway: NewGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All gateways were killed while they stored turns, so that slots and money are held."""
    for name in ("APPENDED_WITHIN", "DEAD_EVERY"):
        monkeypatch.setattr(reconciler, name, timedelta(seconds=1))
    monkeypatch.setattr(persistence, "ROUND_S", 0.5)
    counters, slots = Counters(own.connection), Slots(own.connection)
    database = tmp_path / "tailrace.db"
    async with own.running_generator():
        async with Persistence(own.server.url, database):
            gateway = await new_gateway(own.server.url, api_keys="")
            places = await new_places(own.server, gateway)
            await places.set_limits(usd_month=0.9, running=RUNNING)
            assert await places.post() == ""
            await own.wait_until_acknowledged()
            spent = await places.cost()
            assert await places.left_of_running() == RUNNING
        state = (await own.connection.jetstream.stream_info(BUDGETS, subjects_filter=">")).state
        for subject in state.subjects or ():
            await counters.add(subject, 10**8)
        for _ in range(DEAD):
            assert await slots.acquire(ACME, TENANT, "running", RUNNING, TurnId(new_id())) is not None
        assert await places.left_of_running() == RUNNING - DEAD
        async with Persistence(own.server.url, database):
            places.gateway = await new_gateway(own.server.url, api_keys="")
            expected = {"tenant": Shown(0.9, spent, 0.9 - spent), "key": Shown(1.0, spent, 1.0 - spent)}

            async def is_right() -> bool:
                return await places.left_of_running() == RUNNING and not await places.differences(expected)

            # An operator has 120 requests a minute.
            await until(is_right, RIGHT_WITHIN_S, every_s=3.0)
            assert await places.differences(expected) == []
