"""Budgets of many sizes, many turns at once, and all that a turn can buy: what is spent, and when a turn is refused.

The admission, the planner, the meter, the steps and the settlement are the product's own. The model is a list of
events, each with what the vendor has counted when it is sent.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from tailrace.features.limits import limiter as limiter_module
from tailrace.features.limits.cost_estimate import estimate_request
from tailrace.features.limits.cost_limits import CostLimits
from tailrace.features.limits.limiter import Limiter
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.limits import UNLIMITED, Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, from_event
from tailrace.generators.plan import AppendEvents, MakeAttempt
from tailrace.generators.planner import AnswerCheck, Planner
from tailrace.proto import entries, events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Entry, Message, Outcome, Request, StoredEntry
from tailrace.proto.errors import Refused
from tailrace.proto.events import BlockDelta, BlockStart, MessageDelta, MessageHead, MessageStart, TextDelta
from tailrace.proto.fold import EMPTY_TURN, Folding, Turn
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats.counters import Increment
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.pricing import price_calls
from tailrace.proto.usage import CallUsage
from tailrace.testing import MemoryCounters, MemoryLog, MemorySlots, MemoryStepRecords
from tests.harness.turn_builder import request

# Sonnet 5.5, in nano-dollars.
INPUT, OUTPUT, SEARCH = 2000, 10_000, 10_000_000
DELTA_TOKENS = 16
PROMPT_TOKENS = 1000
PROMPT = "x" * (PROMPT_TOKENS * 7 // 2)
TENANT = Tenant("acme")
ENDED_TURN = "end_turn"


class Sent(NamedTuple):
    """An event of the model, and what the vendor has counted for the call by then, in nano-dollars."""

    event: events.Event
    nano_usd: int


@dataclass(frozen=True)
class Kind:
    """What a turn buys."""

    answer: Callable[[random.Random, Request], Iterator[Sent]]
    given: Mapping[str, Any] = field(default_factory=dict)
    kills: int = 0
    """How often its generator is killed in mid-answer."""
    is_steered: bool = False
    """Whether a client cancels it in mid-answer."""
    is_corrected: bool = False
    """Whether its first answer does not fit its schema."""
    batch: int = 1
    """How many turns are reserved together."""


def answer(
    chance: random.Random,
    asked: Request,
    *,
    tools: Sequence[tuple[str, int]] = (),
    hidden: int = 0,
    prompt: int = PROMPT_TOKENS,
    price: int = INPUT,
    block: str = "text",
) -> Iterator[Sent]:
    """Yields the answer of a call: text, the results of server tools, thinking that is not streamed.

    `tools`: types of results, with the tokens that each adds to the prompt. `hidden`: output tokens that no delta has.
    `price`: of the prompt's tokens; the vendor bills results at the price of a cache write, in the usage at the end.
    """
    is_cached = price != INPUT
    paid = prompt * price + hidden * OUTPUT
    usage = CallUsage(0 if is_cached else prompt, 0, prompt if is_cached else 0)
    yield Sent(MessageStart(MessageHead("msg_1", "claude-sonnet-5-5", usage)), paid)
    index = searches = read = output = 0
    tokens = chance.randint(asked.max_tokens // 4, asked.max_tokens - hidden)
    for result, added in [*tools, ("", 0)]:
        yield Sent(BlockStart(index, {"type": block, block: ""}), paid)
        for _ in range(tokens // (len(tools) + 1) // DELTA_TOKENS):
            paid += DELTA_TOKENS * OUTPUT
            output += DELTA_TOKENS
            delta = TextDelta if block == "text" else events.ThinkingDelta
            yield Sent(BlockDelta(index, delta("x" * (DELTA_TOKENS * 7 // 2))), paid)
        yield Sent(events.BlockStop(index), paid)
        if result:
            paid += added * INPUT * 5 // 4 + (SEARCH if result == "web_search_tool_result" else 0)
            searches += result == "web_search_tool_result"
            read += added
            yield Sent(BlockStart(index + 1, {"type": result, "tool_use_id": "s", "content": []}), paid)
            yield Sent(events.BlockStop(index + 1), paid)
        index += 2
    counted = events.UsageSoFar(
        output_tokens=output + hidden,
        cache_creation_input_tokens=read + usage.cache_creation_input_tokens,
        server_tool_use={"web_search_requests": searches},
    )
    yield Sent(MessageDelta(events.StopReason(ENDED_TURN), counted), paid)


def buys(**what: Any) -> Callable[[random.Random, Request], Iterator[Sent]]:
    return lambda chance, asked: answer(chance, asked, **what)


PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQ="}}
KINDS: dict[str, Kind] = {
    "text": Kind(buys()),
    "short": Kind(buys(), {"max_tokens": 300}),
    "large max_tokens": Kind(buys(), {"max_tokens": 20_000}),
    "searches": Kind(buys(tools=[("web_search_tool_result", 800)] * 8)),
    "fetches": Kind(buys(tools=[("web_fetch_tool_result", 5000)] * 2)),
    "code": Kind(buys(tools=[("code_execution_tool_result", 500)] * 4)),
    "mcp": Kind(buys(tools=[("mcp_tool_result", 1500)] * 4)),
    "PDF": Kind(buys(prompt=PROMPT_TOKENS + 2 * 4600), {"messages": [Message("user", [PDF, PDF])]}),
    "PDF with hidden pages": Kind(buys(prompt=PROMPT_TOKENS + 9000), {"messages": [Message("user", [PDF])]}),
    "thinking": Kind(buys(block="thinking")),
    "thinking that is not streamed": Kind(buys(hidden=1500)),
    "cache writes": Kind(buys(price=INPUT * 5 // 4), {"cache": "5m"}),
    "steered": Kind(buys(), is_steered=True),
    "batch": Kind(buys(), batch=4),
    "takeovers": Kind(buys(), kills=2),
    "schema": Kind(buys(), is_corrected=True),
    "max_cost": Kind(buys(), {"max_cost_nano_usd": 20_000_000}),
}
BUDGETS = (0.5, 1, 2, 5, 10, 20)
AT_ONCE = (1, 3, 6, 12)


class SlowCounters(MemoryCounters):
    """Counters whose answers take as long as a few events of the other turns."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    async def increment(self, subject: str, amount: int) -> Increment:
        for _ in range(self._chance.randint(0, 3)):
            await asyncio.sleep(0)
        return await super().increment(subject, amount)


class Running(NamedTuple):
    """A turn that runs."""

    key: TurnKey
    folding: Folding
    request: Request
    paid: list[int]
    """What the vendor has counted for each call."""

    @property
    def cost(self) -> int:
        """What the events so far have cost, in nano-dollars."""
        return price_calls(self.request.model, self.folding.meter.calls).total.cost_nano_usd

    def store(self, entry: Entry) -> None:
        self.folding.add(StoredEntry(Seq(self.folding.chain.last + 1), datetime.now(UTC), entry))

    def store_event(self, one: ModelEvent) -> None:
        chain = self.folding.chain
        self.store(entries.Event(prev=chain.last, attempt=chain.attempt, event=one.raw))


class Cell:
    """One budget, with turns of one kind."""

    def __init__(self, kind: Kind, times: float, at_once: int) -> None:
        chance = random.Random(f"{times} {at_once}")
        self.kind, self.at_once, self._chance = kind, at_once, chance
        self.asked = request(**{"max_tokens": 3000, "messages": [Message("user", PROMPT)], **kind.given})
        self.first = estimate_request(self.asked).nano_usd or 0
        self.price = max(sent.nano_usd for sent in kind.answer(random.Random(1), self.asked))
        self.limit = int(times * self.price)
        self.counters, self.slots, self.records = SlowCounters(chance), MemorySlots(), MemoryStepRecords()
        limits = Limits(usd_day=self.limit / 1e9)
        self._limiter = Limiter(self.counters, self.slots, MemoryLog(), UNLIMITED, limits)
        self.running: dict[TurnKey, Running] = {}
        self.ended: list[Turn] = []
        self.paid = 0
        self.rest = 0
        """The most that the vendor has counted at once, beyond what the events so far have."""
        self.spent_at_refusal: int | None = None
        self.reserved_at_refusal = 0
        """The number of turns that had a reservation then."""
        self.closed_early: list[Turn] = []
        """Turns that were closed within their reservation."""

    @property
    def recorded(self) -> int:
        return sum(turn.end.cost_nano_usd for turn in self.ended if turn.end is not None)

    @property
    def left(self) -> int:
        (value,) = (value for subject, value in self.counters.values.items() if "_back" not in subject)
        return self.limit - value

    async def run(self) -> None:
        """Keeps as many turns running as the cell has, until one is refused; then runs the others to their ends."""
        waiting: list[tuple[TurnKey, Request]] = []
        tasks = set[asyncio.Task[None]]()
        while tasks or self.spent_at_refusal is None:
            while self.spent_at_refusal is None and len(tasks) < self.at_once:
                if not waiting:
                    waiting = await self._admit()
                if waiting:
                    tasks.add(asyncio.create_task(self._run(*waiting.pop())))
            while waiting and len(tasks) < self.at_once:
                tasks.add(asyncio.create_task(self._run(*waiting.pop())))
            if tasks:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()

    async def _admit(self) -> list[tuple[TurnKey, Request]]:
        keys = [TurnKey(TENANT, TurnId(new_id())) for _ in range(self.kind.batch)]
        try:
            async with Admissions(self._limiter).open(Principal(Scope(TENANT, WHOLE), "")) as admission:
                assert admission is not None
                reserved = await admission.reserve_batch(keys[0].turn, [self.asked] * len(keys), 1)
        except Refused:
            self.spent_at_refusal = self._spent()
            self.reserved_at_refusal = len(self.running)
            return []
        return [
            (key, request(**{**_fields(self.asked), "holds": holds}))
            for key, holds in zip(keys, reserved.each, strict=True)
        ]

    def _spent(self) -> int:
        running = sum(one.cost for one in self.running.values())
        return running + self.recorded

    async def _run(self, key: TurnKey, asked: Request) -> None:
        one = self.running[key] = Running(key, Folding(EMPTY_TURN), asked, [])
        one.store(asked)
        kills, limits = self.kind.kills, CostLimits(self.counters, self.records)
        outcome: Outcome = "completed"
        while True:
            turn = one.folding.build()
            action = await Planner(5, limits, (), [self._check]).next_action(key, turn)
            match action:
                case MakeAttempt():
                    chain = one.folding.chain
                    one.store(
                        entries.Attempt(
                            prev=chain.last,
                            attempt=action.attempt,
                            generator="g",
                            backend="claude",
                            mode=action.mode,
                            misfit=action.misfit,
                        )
                    )
                    ends = await self._call(one, limits, is_cut=kills > 0 or self.kind.is_steered)
                    if ends == "cut" and self.kind.is_steered:
                        outcome = "cancelled"
                        break
                    if ends == "cut":
                        kills -= 1
                        # What the killed generator has in memory is lost; its step in flight is not.
                        await limits.steps_of(key, one.folding.build())
                        limits = CostLimits(self.counters, self.records)
                case AppendEvents(several):
                    for each in several:
                        one.store_event(each)
                case _:
                    break
        one.store(build_end(one.folding.build(), outcome))
        turn, steps = one.folding.build(), await limits.steps_of(key, one.folding.build())
        reserved = sum(hold.amount for hold in [*(asked.holds or ()), *steps])
        if turn.stop.stop_reason == "budget" and turn.end is not None and turn.end.cost_nano_usd <= reserved:
            self.closed_early.append(turn)
        await Settlement(self.counters, self.slots).settle(key, turn, steps)
        del self.running[key]
        self.ended.append(turn)
        self.paid += sum(one.paid)

    async def _check(self, _: TurnKey, turn: Turn) -> AnswerCheck | None:
        """Finds that the first answer does not fit."""
        return AnswerCheck(None if turn.misfit else "no JSON") if self.kind.is_corrected else None

    async def _call(self, one: Running, limits: CostLimits, *, is_cut: bool) -> str:
        """Returns how the call ended: `closed` by a limit, `cut`, or `whole`."""
        try:
            count = limits.begin_call(one.key, one.folding.build())
        except CloseCall:
            return "closed"
        assert count is not None
        cut_after = self._chance.randint(10, 60) if is_cut else None
        before, shift = one.cost, len(one.folding.blocks)
        one.paid.append(0)
        for number, sent in enumerate(self.kind.answer(self._chance, self.asked)):
            self.rest = max(self.rest, sent.nano_usd - (one.cost - before))
            one.paid[-1] = sent.nano_usd
            event = sent.event
            if isinstance(event, BlockStart | BlockDelta | events.BlockStop):
                event = type(event)(event.index + shift, *_rest(event))
            one.store_event(from_event(event))
            try:
                if (wait := count(from_event(event))) is not None:
                    await wait()
            except CloseCall:
                return "closed"
            if number == cut_after:
                return "cut"
            await asyncio.sleep(0)
        return "whole"


def _fields(asked: Request) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in asked.__struct_fields__ if name != "holds"}


def _rest(event: events.Event) -> list[Any]:
    return [getattr(event, name) for name in event.__struct_fields__[1:]]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter_module, "GIVEN_BACK_S", 0)


async def run_cells(kind: Kind) -> list[Cell]:
    """Runs the turns of all budgets."""
    cells = [Cell(kind, times, at_once) for times in BUDGETS for at_once in AT_ONCE]
    for cell in cells:
        await cell.run()
    return cells


@pytest.mark.rule("R149")
@pytest.mark.parametrize("name", KINDS)
async def test_a_budget_is_spent_by_its_turns_and_not_exceeded(name: str) -> None:
    """Beyond the budget, each running call costs at most what the vendor counts after the last event that was seen."""
    kind = KINDS[name]
    cells = await run_cells(kind)
    for cell in cells:
        where = f"{name}: a budget of {cell.limit} nano-dollars, {cell.at_once} turns of {cell.price} at once"
        assert cell.left == cell.limit - cell.recorded, where
        assert cell.paid <= cell.limit + cell.at_once * cell.rest, where
        if not (kind.kills or kind.is_corrected):
            assert not cell.closed_early, where
        assert cell.spent_at_refusal is not None
        rest = cell.limit - cell.spent_at_refusal
        is_step_larger = rest < (cell.reserved_at_refusal + kind.batch) * cell.first
        assert cell.spent_at_refusal >= 0.8 * cell.limit or is_step_larger, where
    stops = {turn.stop.stop_reason for cell in cells for turn in cell.ended}
    assert ("budget" in stops) is (name not in ("short", "steered"))
