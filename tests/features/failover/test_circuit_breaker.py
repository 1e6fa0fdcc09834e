"""When a circuit breaker opens, which turns it spares a call, and when it closes."""

from contextlib import suppress
from functools import partial

import pytest
import structlog.testing
from prometheus_client import REGISTRY

from tailrace.features.failover.circuit_breaker import DOWN_CODES, FAILING_S, OPEN_S, TURNS_MIN, CircuitBreakers
from tailrace.generators.backend_order import FAILOVER_CODES, BackendOrders, Candidate
from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import Put, from_event
from tailrace.generators.retry import Retry
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError
from tailrace.proto.events import BlockStop
from tailrace.proto.ids import Tenant, TurnId, TurnKey, child_id, new_id
from tests.harness.turn_builder import MODEL, Handwritten

TENANT, OTHER = Tenant("tenant"), Tenant("other")
ONE_TRY = Retry(tries_max=1, wait_s=0, wait_max_s=0)
SECRET = "internal error near: my prompt"


class ScriptedBackends:
    """Backends under breakers, whose calls fail with `code`, or answer if there is none."""

    def __init__(self, *names: str) -> None:
        self.now = 0.0
        self.code: str | None = None
        self.breakers = CircuitBreakers(BackendOrders(tuple(map(Candidate, names))), lambda: self.now)

    async def answer(self, put: Put) -> None:
        if self.code is not None:
            raise BackendError(self.code, SECRET)
        put(from_event(BlockStop(0)))

    async def call(self, name: str, code: str | None = None, tenant: Tenant = TENANT, turn: str = "") -> None:
        """Makes a call of the turn `turn`, by default of a new one."""
        self.code = code
        call = Call(model="m", max_tokens=1, messages=[Message("user", "x")], tenant=tenant, turn=turn or new_id())
        with suppress(BackendError):
            await ONE_TRY.stream(self.answer, lambda _: None, partial(self.breakers.note_begin, name, call))

    async def fail(
        self, name: str, turns: int = TURNS_MIN, over_s: float = FAILING_S, code: str = "", turn: str = ""
    ) -> None:
        for number in range(turns):
            await self.call(name, code or "backend_unreachable", turn=turn)
            self.now += over_s / (turns - 1) if number < turns - 1 else 0.0

    @property
    def order(self) -> list[str]:
        return self.order_of(TENANT)

    def order_of(self, tenant: Tenant) -> list[str]:
        """The backends of a new turn; one that is called once only has a mark."""
        return [one.backend + "?" * one.is_single for one in self.breakers.begin_call(tenant, MODEL).candidates]

    async def refusal(self, turn: Handwritten, tenant: Tenant = TENANT, turn_id: str = "") -> BackendError | None:
        key = TurnKey(tenant, TurnId(turn_id or new_id()))
        try:
            assert await self.breakers.prepare(key, turn.turn) == turn.turn
        except BackendError as error:
            return error
        return None


def new_turn(**given: object) -> Handwritten:
    turn = Handwritten()
    turn.store_request(**given)
    return turn


@pytest.mark.rule("R101")
async def test_new_turns_avoid_a_backend_that_is_down_but_for_one_probe_at_a_time() -> None:
    two = ScriptedBackends("claude", "bedrock")
    await two.fail("claude")
    assert two.order == ["bedrock", "claude"]
    two.now += OPEN_S
    assert [two.order, two.order] == [["claude?", "bedrock"], ["bedrock", "claude"]]
    await two.call("claude", "backend_overloaded")
    assert two.order == ["bedrock", "claude"]
    await two.call("claude")
    assert [two.order, two.order] == [["claude", "bedrock"]] * 2


async def test_the_metric_is_1_while_a_backend_is_down_and_the_log_says_it_once() -> None:
    """docs/BACKENDS.md names both lines."""

    def gauge() -> float | None:
        return REGISTRY.get_sample_value("tailrace_generator_backend_down", {"backend": "claude"})

    one = ScriptedBackends("claude")
    with structlog.testing.capture_logs() as logged:
        seen = [gauge()]
        await one.fail("claude", 2 * TURNS_MIN, 2 * FAILING_S)
        seen.append(gauge())
        for _ in range(2):
            await one.call("claude")
        seen.append(gauge())
    assert seen == [0.0, 1.0, 0.0]
    assert [(line["event"], line["backend"]) for line in logged] == [
        ("backend is down", "claude"),
        ("backend answers again", "claude"),
    ]


@pytest.mark.parametrize(
    ("turns", "over_s", "code", "turn"),
    [
        (TURNS_MIN - 1, 10 * FAILING_S, "", ""),
        (10 * TURNS_MIN, FAILING_S - 0.1, "", ""),
        (10 * TURNS_MIN, 10 * FAILING_S, "", "turn-1"),
        *((TURNS_MIN, FAILING_S, code, "") for code in sorted(FAILOVER_CODES - DOWN_CODES)),
    ],
)
async def test_few_or_short_failures_those_of_one_turn_and_refusals_open_no_breaker(
    turns: int, over_s: float, code: str, turn: str
) -> None:
    two = ScriptedBackends("claude", "bedrock")
    await two.fail("claude", turns, over_s, code, turn)
    assert two.order == ["claude", "bedrock"]


@pytest.mark.parametrize("code", [None, "backend_rate_limited", "backend_refused_request"])
async def test_an_answer_between_failures_opens_no_breaker(code: str | None) -> None:
    two = ScriptedBackends("claude", "bedrock")
    await two.fail("claude", TURNS_MIN - 1)
    for turns, over_s in ((TURNS_MIN - 1, FAILING_S), (TURNS_MIN, FAILING_S - 0.1)):
        await two.call("claude", code)
        await two.fail("claude", turns, over_s)
        assert two.order == ["claude", "bedrock"]


@pytest.mark.rule("R101")
async def test_a_new_turn_fails_at_once_if_all_its_backends_are_down() -> None:
    """With the code of the last failure, but not its text, and the time of the next probe.

    A turn that was begun or cancelled, and one of a batch, go on.
    """
    one = ScriptedBackends("claude")
    await one.fail("claude")
    refused = await one.refusal(new_turn())
    assert refused is not None
    assert (refused.code, refused.retry_after_s) == ("backend_unreachable", OPEN_S)
    assert refused.message == "claude is down: No connection to the model provider."
    begun, cancelled = new_turn(), new_turn()
    begun.store_attempt()
    cancelled.end("cancelled")
    assert [await one.refusal(turn) for turn in (begun, cancelled)] == [None, None]
    parent = TurnId(new_id())
    assert await one.refusal(new_turn(parent=parent), turn_id=child_id(parent, 0)) is None
    one.now += OPEN_S
    assert await one.refusal(new_turn()) is None
    assert one.order == ["claude"]
    assert await one.refusal(new_turn()) is not None


async def test_a_turn_that_was_begun_keeps_its_backend() -> None:
    """A takeover has an answer to rescue."""
    two = ScriptedBackends("claude", "bedrock")
    await two.fail("claude")
    order = two.breakers.begin_call(TENANT, MODEL, "claude")
    assert [one.backend for one in order.candidates] == ["claude", "bedrock"]


@pytest.mark.rule("R101")
async def test_a_tenant_is_affected_only_by_failures_of_its_own_turns() -> None:
    """Its first turn is called as if nothing had failed. Each tenant has probes of its own."""
    one, two = ScriptedBackends("claude"), ScriptedBackends("claude", "bedrock")
    for some in (one, two):
        await some.fail("claude")
    assert await one.refusal(new_turn(), OTHER) is None
    assert [two.order, two.order_of(OTHER)] == [["bedrock", "claude"], ["claude", "bedrock"]]
    for some in (one, two):
        some.now += OPEN_S - 1
        await some.call("claude", "backend_failed", OTHER)
        some.now += 1
    refused = await one.refusal(new_turn(), OTHER)
    assert refused is not None
    assert (refused.code, refused.retry_after_s, SECRET in refused.message) == ("backend_failed", OPEN_S - 1, False)
    assert [two.order, two.order_of(OTHER)] == [["claude?", "bedrock"], ["bedrock", "claude"]]
    await two.call("claude", tenant=OTHER)
    assert [two.order, two.order_of(OTHER)] == [["claude", "bedrock"]] * 2


async def test_a_turn_that_is_sent_to_a_backend_that_is_down_postpones_no_probe() -> None:
    """A batch's child is sent to it. Its calls are repeated."""
    one = ScriptedBackends("claude")
    await one.fail("claude")
    one.now += OPEN_S - 1
    assert one.order == ["claude"]
    await one.call("claude", "backend_unreachable")
    assert await one.refusal(new_turn()) is not None
    one.now += 1
    assert await one.refusal(new_turn()) is None


async def test_the_tenants_whose_turns_have_failed_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns of further tenants call the backend."""
    monkeypatch.setattr("tailrace.features.failover.circuit_breaker.TENANTS_MAX", 1)
    one = ScriptedBackends("claude")
    await one.fail("claude")
    await one.call("claude", "backend_unreachable", OTHER)
    assert [await one.refusal(new_turn(), tenant) is None for tenant in (TENANT, OTHER)] == [False, True]
