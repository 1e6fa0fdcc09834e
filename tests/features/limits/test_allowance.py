"""The steps in which a running turn reserves: their order, their refusal, an outage, and a generator that is late."""

import asyncio
from collections.abc import Sequence
from typing import Literal

import pytest

from tailrace.features.limits import allowance
from tailrace.features.limits.allowance import MARGIN_TOKENS, RETRY_TOKENS, STEP_TOKENS, Allowance
from tailrace.generators.backends.model_event import CloseCall
from tailrace.proto.entries import Reservation
from tailrace.proto.errors import LogDenied, LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats.counters import Increment
from tailrace.proto.nats.step_records import StepRecord
from tailrace.testing import MemoryCounters, MemoryStepRecords

KEY = TurnKey(Tenant("acme"), TurnId("turn"))
DAY, MONTH = "budgets.acme.k_1.usd_day.2026-11-30", "budgets.acme.tenant.usd_month.2026-11"
FIRST, MANY = 1000, 100_000
pytestmark = pytest.mark.rule("R149")


class Counters(MemoryCounters):
    """Counters that can be out of reach, and that have a list of what was done."""

    def __init__(self, done: list[str]) -> None:
        super().__init__()
        self.values = {DAY: FIRST, MONTH: FIRST}
        self.is_lost = False
        self._done = done

    async def increment(self, subject: str, amount: int) -> Increment:
        self._done.append(f"{subject.split('.')[3]} {amount:+}")
        await asyncio.sleep(0)
        if self.is_lost:
            raise LogUnavailable("lost")
        return await super().increment(subject, amount)


class Records(MemoryStepRecords):
    """Records of which some writes may be lost, or only their answers."""

    def __init__(self, done: list[str]) -> None:
        super().__init__()
        self.loses: Literal["request", "answer"] | None = None
        self.losses = 0
        """How many writes are lost."""
        self.is_denied = False
        self._done = done

    async def write(self, key: TurnKey, record: StepRecord) -> int | None:
        self._done.append("record")
        if self.is_denied:
            raise LogDenied("denied")
        loses = self.loses if self.losses > 0 else None
        self.losses -= 1
        revision = None if loses == "request" else await super().write(key, record)
        if loses is not None:
            raise LogUnavailable("no answer")
        return revision


class Turn:
    """A running turn whose tokens cost one nano-dollar each."""

    def __init__(self, *, day: int = MANY, month: int = MANY, most: int | None = None) -> None:
        self.done = list[str]()
        self.counters, self.records = Counters(self.done), Records(self.done)
        self.holds = [Reservation(DAY, "nusd", FIRST, limit=day), Reservation(MONTH, "nusd", FIRST, limit=month)]
        self.most = most
        self.allowance = self.taken_over(StepRecord())

    def taken_over(self, record: StepRecord) -> Allowance:
        return Allowance(self.counters, self.records, KEY, self.holds, record=record, token_price=1, most=self.most)

    async def steps(self) -> Sequence[Reservation]:
        return await self.allowance.settled()


async def test_a_step_is_counted_in_each_budget_and_then_recorded() -> None:
    """A generator that is killed between the two leaves a counter too high, which is found, and never too low."""
    turn = Turn()
    assert turn.allowance.spend(FIRST - 10, MANY) is None
    steps = await turn.steps()
    assert turn.done == [f"usd_day +{STEP_TOKENS}", f"usd_month +{STEP_TOKENS}", "record"]
    assert [(step.subject, step.amount, step.seq) for step in steps] == [(DAY, STEP_TOKENS, 1), (MONTH, STEP_TOKENS, 2)]
    assert turn.allowance.reserved == FIRST + STEP_TOKENS
    assert (await turn.records.read(KEY)).steps == steps
    turn.allowance.spend(FIRST + STEP_TOKENS - 10, MANY)
    assert [step.amount for step in await turn.steps()] == [2 * STEP_TOKENS] * 2


@pytest.mark.parametrize(
    ("cost", "tokens_left", "steps"),
    [
        (FIRST - MARGIN_TOKENS, MANY, 0),
        (FIRST - MARGIN_TOKENS + 1, MANY, 1),
        # An answer that cannot exceed its reservation needs no step, also if its text is estimated as longer.
        (FIRST - 10, 10, 0),
        (FIRST, 0, 0),
        (FIRST + 50, -50, 0),
    ],
)
async def test_a_step_is_reserved_when_the_answer_may_exceed_its_reservation(
    cost: int, tokens_left: int, steps: int
) -> None:
    turn = Turn()
    turn.allowance.spend(cost, tokens_left)
    await turn.steps()
    assert turn.done.count("record") == steps


async def test_a_refused_step_is_given_back_and_closes_the_call_behind_the_reservation() -> None:
    """The budget of the month has no step left. Nothing is recorded, and the call goes on within its reservation."""
    turn = Turn(month=FIRST + STEP_TOKENS - 1)
    assert turn.allowance.spend(FIRST - 10, MANY) is None
    assert await turn.steps() == ()
    assert "record" not in turn.done
    assert [turn.counters.values[subject] for subject in (DAY, MONTH)] == [FIRST, FIRST]
    assert turn.counters.values["budgets.acme.tenant.usd_month_back.2026-11"] == STEP_TOKENS
    assert turn.allowance.spend(FIRST, MANY) is None
    assert not turn.allowance.is_closed
    wait = turn.allowance.spend(FIRST + 1, MANY)
    assert wait is not None
    with pytest.raises(CloseCall):
        await wait()
    assert turn.allowance.is_closed


async def test_a_refused_step_is_tried_again_before_the_call_is_closed() -> None:
    """Another turn has given its reservation back meanwhile."""
    turn = Turn(day=FIRST + STEP_TOKENS - 1)
    turn.allowance.spend(FIRST - 2 * RETRY_TOKENS, MANY)
    await turn.steps()
    turn.counters.values[DAY] -= FIRST
    turn.allowance.spend(FIRST - 2 * RETRY_TOKENS + 1, MANY)
    assert await turn.steps() == ()
    turn.allowance.spend(FIRST - RETRY_TOKENS, MANY)
    assert await turn.steps() != ()


async def test_a_step_covers_what_the_answer_has_cost_beyond_its_reservation() -> None:
    """A search costs more than a step. The answer is read on when the step is reserved."""
    turn = Turn()
    wait = turn.allowance.spend(FIRST + 5000, MANY)
    assert wait is not None
    await wait()
    assert turn.allowance.reserved == FIRST + 5000 + STEP_TOKENS


async def test_a_step_without_an_answer_does_not_close_the_call() -> None:
    """The call waits for NATS, however long that is away."""
    turn = Turn()
    turn.counters.is_lost = True
    wait = turn.allowance.spend(FIRST + 1, MANY)
    assert wait is not None
    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0.6)
    assert not waiting.done()
    turn.counters.is_lost = False
    await asyncio.wait_for(waiting, 5)
    assert turn.allowance.reserved > FIRST


async def test_a_generator_that_takes_over_knows_the_steps() -> None:
    """The earlier one, which was frozen, may record a step once more: what is counted is what is recorded."""
    turn = Turn()
    late = turn.allowance
    late.spend(FIRST, MANY)
    await turn.steps()
    turn.allowance = turn.taken_over(await turn.records.read(KEY))
    assert turn.allowance.reserved == FIRST + STEP_TOKENS
    turn.allowance.spend(FIRST + STEP_TOKENS, MANY)
    assert [step.amount for step in await turn.steps()] == [2 * STEP_TOKENS] * 2
    late.spend(FIRST + STEP_TOKENS, MANY)
    assert [step.amount for step in await late.settled()] == [3 * STEP_TOKENS] * 2
    recorded = {step.subject: FIRST + step.amount for step in (await turn.records.read(KEY)).steps}
    assert {subject: turn.counters.values[subject] for subject in (DAY, MONTH)} == recorded


@pytest.mark.parametrize("loses", ["request", "answer"])
async def test_a_step_whose_record_is_unclear_is_counted_once(loses: Literal["request", "answer"]) -> None:
    """However long the bucket does not answer, the budget of other turns is not used up."""
    turn = Turn()
    turn.records.loses, turn.records.losses = loses, 3
    turn.allowance.spend(FIRST - 10, MANY)
    steps = await turn.steps()
    assert [step.amount for step in steps] == [STEP_TOKENS] * 2
    assert (await turn.records.read(KEY)).steps == steps
    assert [turn.counters.values[subject] for subject in (DAY, MONTH)] == [FIRST + STEP_TOKENS] * 2


async def test_the_end_of_a_turn_does_not_wait_for_a_step_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not recorded is not settled. Persistence takes it back."""
    monkeypatch.setattr(allowance, "SETTLED_WAIT_S", 0.1)
    turn = Turn()
    turn.records.loses, turn.records.losses = "request", 1000
    turn.allowance.spend(FIRST - 10, MANY)
    assert await asyncio.wait_for(turn.steps(), 5) == ()


@pytest.mark.parametrize("is_reached", [True, False])
async def test_a_step_that_nats_forbids_to_record_closes_the_call(is_reached: bool) -> None:
    turn = Turn()
    turn.records.is_denied = True
    if is_reached:
        assert not await turn.allowance.reach(FIRST + 1)
    else:
        wait = turn.allowance.spend(FIRST + 1, MANY)
        assert wait is not None
        with pytest.raises(CloseCall):
            await wait()
    assert [turn.counters.values[subject] for subject in (DAY, MONTH)] == [FIRST, FIRST]
