"""A decided turn that no turn continues yet, after the API key of the last decision has ended or was rotated."""

import time
from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tailrace.features.admin.administration import Administration
from tailrace.features.admin.audit_log import Actor
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import NewKey, new_key
from tailrace.features.client_calls import continuations
from tailrace.features.limits.quotas import counter_name
from tailrace.gateway.auth.limits import GivenLimits
from tailrace.proto.entries import Request
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tests.features.client_calls.test_client_calls import park
from tests.harness.requests import get
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

RUNNING: GivenLimits = {"running": 1}
# Less than the next turn may cost.
SPENT: GivenLimits = {"usd_day": 0.0000001}
OPERATOR = Actor("command line", "test")
REFUSED = "decided turn cannot be continued"


@pytest.fixture(autouse=True)
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "FIND_S", 0.1)
    monkeypatch.setattr(continuations, "EAGER_S", 1e9)


class Waiting:
    """A session whose call was decided with a key, and whose next turn was refused."""

    def __init__(self, gateway: Gateway, log: TurnLog, keys: KeyStore, tenant: Tenant) -> None:
        self.gateway = gateway
        self._log = log
        self._tenant = tenant
        self.keys = keys
        self.admin = Administration(log.connection)

    async def create_key(self, limits: GivenLimits | None = None) -> NewKey:
        made = new_key(self._tenant, now=int(time.time()), scopes=("read", "write"), limits=limits)
        await self.keys.create(made.record)

        async def is_known() -> bool:
            return (await self.gateway.client.get("/v1/limits", headers=bearer(made))).status_code == 200

        await until(is_known)
        return made

    async def decide(self, key: NewKey, at: Gateway | None = None) -> dict[str, Any]:
        """Decides, as `key`; the same again repeats the decision."""
        path = f"/v1/sessions/{self.session}/calls/{self.call}"
        answer = await (at or self.gateway).client.post(path, json={"result": "blue"}, headers=bearer(key))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def park(self) -> None:
        self.session, self.call, _ = await park(self.gateway)

    async def calls(self) -> dict[str, Any]:
        found: dict[str, Any] = await get(self.gateway, f"/v1/sessions/{self.session}/calls")
        return found

    async def turns(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await get(self.gateway, f"/v1/sessions/{self.session}/turns"))["turns"]
        return found

    async def request_of(self, turn: str) -> Request:
        stored = (await self._log.read_turn(ScopedKey(Scope(self._tenant, WHOLE), TurnId(turn)))).request
        assert stored is not None
        return stored


def bearer(key: NewKey) -> Mapping[str, str]:
    return {"authorization": f"Bearer {key.secret}"}


@pytest.fixture
async def waiting(gateway: Gateway, system_log: TurnLog, shared_keys: KeyStore, tenant: Tenant) -> Waiting:
    waiting = Waiting(gateway, system_log, shared_keys, tenant)
    await waiting.park()
    return waiting


async def until_searched(text: str) -> None:
    """Waits until three searches in the background have refused a turn with `text`, each after this call."""
    with capture_logs() as logged:

        async def is_refused() -> bool:
            return len([one for one in logged if one["event"] == REFUSED and text in one["why"]]) >= 3

        await until(is_refused, 20)


@pytest.mark.rule("R136")
async def test_a_revoked_key_starts_no_turn_and_a_repeated_decision_does(waiting: Waiting) -> None:
    """The session says why it waits. The key of the repeated decision pays."""
    poor, rich = await waiting.create_key(SPENT), await waiting.create_key(RUNNING)
    assert "budget" in (await waiting.decide(poor))["waits_because"]
    assert (await waiting.calls())["waits_because"] is None
    await waiting.keys.revoke(poor.record.id, int(time.time()))
    await until_searched(poor.record.id)
    calls = await waiting.calls()
    assert (calls["next"], len(await waiting.turns())) == (None, 1)
    assert f"The API key {poor.record.id} was revoked or has expired." in calls["waits_because"]
    decided = await waiting.decide(rich)
    assert decided["waits_because"] is None
    stored = await waiting.request_of(decided["next"])
    assert stored.by == rich.record.id
    assert [counter_name("k_", rich.record.id) in hold.subject for hold in stored.holds or ()] == [True]
    # It is recorded that the first key has decided.
    assert decided["calls"][0]["decided_by"] == poor.record.id


@pytest.mark.rule("R136")
async def test_a_rotated_key_keeps_the_budget_that_has_refused_the_turn(waiting: Waiting) -> None:
    """Without a grace, and after two rotations."""
    key = await waiting.create_key(SPENT)
    assert "budget" in (await waiting.decide(key))["waits_because"]
    for _ in range(2):
        rotated = await waiting.admin.rotate_key(OPERATOR, key.record.id)
        assert rotated is not None
        key = rotated
    await until_searched("budget")
    assert (len(await waiting.turns()), (await waiting.calls())["waits_because"]) == (1, None)
    await waiting.keys.revoke(key.record.id, int(time.time()))
    await until_searched("revoked")
    assert len(await waiting.turns()) == 1


@pytest.mark.rule("R136")
async def test_a_rotated_key_is_counted_as_before(waiting: Waiting, system: System, new_gateway: NewGateway) -> None:
    """The newest key of the chain starts the turn, with the limits and the counters of the first."""
    first = await waiting.create_key(RUNNING)
    full = await new_gateway(system.nats_url, full_at=1e-12)
    # Until the key has been replaced, no search finds room.
    await waiting.gateway.stop()
    assert (await waiting.decide(first, full))["waits_because"] is not None
    second = await waiting.admin.rotate_key(OPERATOR, first.record.id)
    third = second and await waiting.admin.rotate_key(OPERATOR, second.record.id)
    assert third is not None
    waiting.gateway = await new_gateway(system.nats_url)

    async def is_continued() -> bool:
        return len(await waiting.turns()) == 2

    await until(is_continued, 20)
    stored = await waiting.request_of((await waiting.turns())[1]["turn"])
    assert stored.by == third.record.id
    assert [counter_name("k_", first.record.id) in hold.subject for hold in stored.holds or ()] == [True]


@pytest.mark.rule("S13")
async def test_what_a_key_has_stored_runs_on_after_its_revocation(waiting: Waiting) -> None:
    """A queued turn, and the inputs of a batch that are not turns yet."""
    key, client = await waiting.create_key(), waiting.gateway.client
    slow = {"message": "#sim words=20 rate=20"}
    running = (await client.post("/v1/turns", json=slow, headers=bearer(key))).json()
    queued = {"message": "#sim words=2 rate=0", "session": running["session"], "on_busy": "queue"}
    following = (await client.post("/v1/turns", json=queued, headers=bearer(key))).json()
    inputs = [{"custom_id": str(number), "params": slow} for number in range(3)]
    batch = await client.post("/v1/turn-batches", json={"requests": inputs, "parallel": 1}, headers=bearer(key))
    await waiting.keys.revoke(key.record.id, int(time.time()))

    async def is_refused() -> bool:
        return (await client.get("/v1/limits", headers=bearer(key))).status_code == 401

    await until(is_refused)
    await client.get(following["links"]["events"])
    assert (await get(waiting.gateway, following["links"]["self"]))["outcome"] == "completed"

    async def is_done() -> bool:
        found = await get(waiting.gateway, batch.json()["links"]["self"])
        return bool(found["outcome"] == "completed" and found["done"] == 3)

    await until(is_done, 30)
