"""Running turns reserve in steps, end to end: what a budget lets them buy, and how an answer ends that it has cut."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from structlog.testing import capture_logs

from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.features.limits.allowance import STEP_TOKENS
from tailrace.features.limits.cost_estimate import FIRST_TOKENS
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import BUDGETS, CLAIMS_STREAM, EVERY_STEP_RECORD, GENERATORS
from tests.features.limits.test_limits import spent_nano_usd
from tests.features.limits.test_max_cost import PROTOCOLS
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.until import until_equal
from tests.integration.conftest import Gateway, NewGateway

# Sonnet 5.5, in nano-dollars.
OUTPUT, SEARCH = 10_000, 10_000_000
FIRST, STEP = FIRST_TOKENS * OUTPUT, STEP_TOKENS * OUTPUT
STREAM = {"accept": "text/event-stream"}
MODEL = {"model": "claude-sonnet-5-5"}
pytestmark = [pytest.mark.timeout(90), pytest.mark.rule("R149")]


async def messages_of(connection: Connection, stream: str) -> int:
    """Returns how many messages the stream has stored so far."""
    return (await connection.jetstream.stream_info(stream)).state.last_seq


class Budget:
    """A gateway, a generator, and a key with a budget of a day."""

    def __init__(self, own: OwnSystem, gateway: Gateway, tenant: Tenant, limit: int) -> None:
        self.own, self.gateway, self.tenant, self.limit = own, gateway, tenant, limit

    async def post(self, message: str, **given: Any) -> httpx2.Response:
        body = {"message": message, **MODEL, "max_tokens": 8000, **given}
        return await self.gateway.client.post("/v1/turns", json=body)

    async def answer(self, message: str, **given: Any) -> Turn:
        return await self.ended(await self.post(message, **given))

    async def ended(self, posted: httpx2.Response) -> Turn:
        assert posted.status_code == 202, posted.text
        return await self.own.wait_until_settled(TurnKey(self.tenant, TurnId(posted.json()["turn"])))

    async def counted(self) -> int:
        return await spent_nano_usd(self.own.connection, self.tenant)


async def budget_of(own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, limit: int) -> Budget:
    gateway = await new_gateway(own.server.url, limits_key=f"usd_day={limit / 1e9}")
    return Budget(own, gateway, tenant, limit)


def cost(turn: Turn) -> int:
    assert turn.end is not None
    return turn.end.cost_nano_usd


async def test_a_long_answer_is_reserved_in_steps_and_settled(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """It costs more than the first step. `max_tokens` may be far beyond the budget."""
    budget = await budget_of(own, new_gateway, tenant, 100_000_000)
    async with own.running_generator():
        turn = await budget.answer("#sim words=2500 rate=0", max_tokens=60_000)
    assert (turn.outcome, turn.stop.stop_reason) == ("completed", "end_turn")
    assert cost(turn) > FIRST + STEP
    assert await budget.counted() == cost(turn)


@pytest.fixture
def older_permissions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nats-users.conf of a version without steps."""
    rights = RIGHTS[GENERATORS]
    publish = tuple(subject for subject in rights.publish if subject != EVERY_STEP_RECORD)
    assert len(publish) == len(rights.publish) - 1
    monkeypatch.setitem(RIGHTS, GENERATORS, msgspec.structs.replace(rights, publish=publish))


@pytest.mark.usefixtures("older_permissions")
async def test_without_the_permission_for_steps_an_answer_ends_with_its_first_step(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """It does not wait for its deadline, holds nothing, and the log says what to do. Short answers are whole."""
    budget = await budget_of(own, new_gateway, tenant, 1_000_000_000)
    with capture_logs() as logs:
        async with own.running_generator():
            assert (await budget.answer("#sim words=400 rate=0")).stop.stop_reason == "end_turn"
            before, began = await budget.counted(), time.monotonic()
            turn = await budget.answer("#sim words=2500 rate=0")
            assert time.monotonic() - began < 15
    assert turn.stop.stop_reason == "budget"
    assert await budget.counted() - before == cost(turn)
    assert any("nats-users.conf" in line.get("why", "") for line in logs)


async def test_an_answer_within_the_first_step_costs_no_further_message(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """The admission and the settlement of one budget are two."""
    budget = await budget_of(own, new_gateway, tenant, 1_000_000_000)
    async with own.running_generator():
        await budget.answer("#sim words=5 rate=0")
        before = [await messages_of(own.connection, stream) for stream in (BUDGETS, CLAIMS_STREAM)]
        turn = await budget.answer("#sim words=400 rate=0")
        after = [await messages_of(own.connection, stream) for stream in (BUDGETS, CLAIMS_STREAM)]
    assert turn.stop.stop_reason == "end_turn"
    assert [later - earlier for earlier, later in zip(before, after, strict=True)] == [2, 0]


@pytest.mark.parametrize(
    ("what", "tools"),
    [
        ("server=web_search*20", [{"type": "web_search_20250305", "name": "web_search"}]),
        ("server=web_fetch*8", [{"type": "web_fetch_20250910", "name": "web_fetch"}]),
        ("server=code_execution*4", [{"type": "code_execution_20250825", "name": "code_execution"}]),
        ("thinking=3000", []),
        ("", []),
    ],
    ids=["searches", "fetches", "code", "thinking", "text"],
)
async def test_turns_at_once_exceed_a_budget_by_an_event_each(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, what: str, tools: list[dict[str, Any]]
) -> None:
    budget = await budget_of(own, new_gateway, tenant, 50_000_000)
    thinking = {"options": {"thinking": {"type": "enabled", "budget_tokens": 4000}}} if "thinking" in what else {}
    async with own.running_generator():
        posted = await asyncio.gather(
            *(budget.post(f"#sim words=3000 rate=0 {what}", tools=tools or None, **thinking) for _ in range(6))
        )
        turns = [await budget.ended(one) for one in posted if one.status_code == 202]
    assert {one.status_code for one in posted} <= {202, 402}
    assert "budget" in {turn.stop.stop_reason for turn in turns}
    spent = sum(map(cost, turns))
    # A web search counts from its result; a delta of text is a word.
    assert 0.8 * budget.limit - len(turns) * FIRST < spent <= budget.limit + len(turns) * (SEARCH + 100 * OUTPUT)
    assert await budget.counted() == spent


@pytest.mark.rule("R41")
@pytest.mark.parametrize("path", ["/v1/turns", *PROTOCOLS])
async def test_every_protocol_shows_that_a_budget_has_cut_the_answer(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, path: str
) -> None:
    """As a limit that its clients know; `warnings` and the metadata of the AI SDK say what to do."""
    budget = await budget_of(own, new_gateway, tenant, FIRST + STEP)
    body, reported = PROTOCOLS.get(path, ({"message": "#sim words=2000 rate=0"}, '"stop_reason":"budget"'))
    async with own.running_generator():
        answered = await budget.gateway.client.post(path, json=MODEL | body, headers=STREAM)
        assert answered.status_code == 200, answered.text
        name = TurnId(answered.headers["tailrace-turn"])
        turn = await own.wait_until_settled(TurnKey(tenant, name))
    assert (turn.outcome, turn.stop.stop_reason, turn.attempt) == ("completed", "budget", 1)
    assert FIRST < cost(turn) < FIRST + 20 * OUTPUT
    assert reported in answered.text
    if path != "/v1/turns":
        shown = re.sub(r'"warnings":\s*\[.*?\]|"stop_reason":\s*"budget"', "", answered.text, flags=re.DOTALL)
        assert '"budget"' not in shown
    assert await budget.counted() == cost(turn)


async def test_a_takeover_goes_on_with_the_steps_of_the_killed_generator(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    budget = await budget_of(own, new_gateway, tenant, 100_000_000)
    await own.shorten_lease(0.2)
    posted = await budget.post("#sim words=2000 rate=400")
    assert await own.run_and_kill_after(700)
    steps = await budget.counted() - FIRST
    assert steps >= STEP
    async with own.running_generator():
        turn = await budget.ended(posted)
    assert (turn.stop.stop_reason, turn.attempt) == ("end_turn", 2)
    assert await budget.counted() == cost(turn)


@pytest.mark.parametrize("fault", ["cut@500x1", "error@500x1"])
async def test_a_continuation_that_the_budget_refuses_ends_the_answer(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, fault: str
) -> None:
    """The text so far stays. The prompt of the continuation, with this text, exceeds the budget."""
    budget = await budget_of(own, new_gateway, tenant, FIRST + STEP)
    async with own.running_generator():
        turn = await budget.answer(f"#sim words=2000 rate=0 fault={fault}")
    assert (turn.outcome, turn.stop.stop_reason, turn.attempt) == ("completed", "budget", 1)
    assert turn.text.startswith("w000000 w000001")
    assert await budget.counted() == cost(turn) <= budget.limit


async def test_a_correction_that_the_budget_refuses_is_not_made(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """The answer is whole and does not fit its schema, and says so."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for limit, valid in ((FIRST + 5 * OUTPUT, False), (100_000_000, True)):
        budget = await budget_of(own, new_gateway, tenant, limit)
        async with own.running_generator():
            message = '#sim rate=0 json={"a":1} wrong={"b":1}'
            turn = await budget.answer(message, schema=schema, max_tokens=2000)
        assert turn.end is not None
        assert (turn.end.schema_valid, turn.stop.stop_reason) == (valid, "end_turn")


async def test_steps_of_a_deleted_turn_are_settled_by_the_gateway(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    """Its generator was killed. The gateway reads the record of the steps."""
    budget = await budget_of(own, new_gateway, tenant, 100_000_000)
    posted = await budget.post("#sim words=2000 rate=400")
    assert await own.run_and_kill_after(700)
    assert await budget.counted() >= FIRST + STEP
    turn = await own.log.read_turn(ScopedKey.whole(TurnKey(tenant, TurnId(posted.json()["turn"]))))
    async with Persistence(own.server.url, tmp_path / "tailrace.db"):
        assert (await budget.gateway.client.delete(posted.json()["links"]["self"])).status_code == 200
    await until_equal(budget.counted, turn.bill.total.cost_nano_usd)


async def test_each_turn_of_a_batch_has_its_own_steps(own: OwnSystem, new_gateway: NewGateway, tenant: Tenant) -> None:
    """The batch reserves the first step of each input."""
    budget = await budget_of(own, new_gateway, tenant, 4 * (FIRST + STEP))
    inputs = [
        {"custom_id": f"a{number}", "params": {**MODEL, "message": "#sim words=800 rate=0", "max_tokens": 9000}}
        for number in range(4)
    ]
    async with own.running_generator():
        made = await budget.gateway.client.post("/v1/turn-batches", json={"requests": inputs, "parallel": 2})
        assert made.status_code == 202, made.text
        await own.wait_until_settled(TurnKey(tenant, TurnId(made.headers["tailrace-turn"])))
    spent = await budget.counted()
    assert 4 * 800 * OUTPUT <= spent <= budget.limit + 2 * 20 * OUTPUT
