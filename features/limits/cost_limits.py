"""CostLimits: closes the model calls of a turn at its `max_cost`, and at a budget that has no step left."""

import asyncio
from collections.abc import Sequence

from tailrace.features.limits.allowance import Allowance, budgets_of
from tailrace.features.limits.cost_estimate import estimate_further_call
from tailrace.features.limits.cost_meter import CostMeter, output_price, text_bytes
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Put, Wait
from tailrace.generators.call_limits import CallLimits
from tailrace.generators.plan import Action, MakeAttempt
from tailrace.proto import events
from tailrace.proto.entries import Request, Reservation
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Counters
from tailrace.proto.nats.step_records import StepRecord, StepRecords

MAX_COST = "max_cost"
BUDGET = "budget"


class CallMeter:
    """Counts the cost of one model call, after each of its events."""

    def __init__(self, request: Request, turn: Turn, allowance: Allowance | None) -> None:
        """Raises CloseCall if the turn has reached its `max_cost`."""
        self._meter = CostMeter(request, turn)
        self._most = request.max_cost_nano_usd
        self._allowance = allowance
        self._token_price = output_price(request)
        self._compared_at = 0
        """Up to this number of unreported bytes no limit can be reached."""
        self._compare(is_complete=False)

    def count(self, event: ModelEvent) -> Wait | None:
        """Counts an event, as `Put`. Raises CloseCall if it reaches a limit."""
        self._meter.add(event.event, event.left_out)
        match event.event:
            case events.BlockDelta() if self._meter.unreported_bytes < self._compared_at:
                return None
            case events.MessageDelta(events.StopReason(stop_reason=str())):
                return self._compare(is_complete=True)
            case _:
                return self._compare(is_complete=False)

    def _compare(self, *, is_complete: bool) -> Wait | None:
        cost, rests = self._meter.cost_nano_usd, list[int]()
        if self._most is not None:
            rests.append(self._most - cost)
            if rests[0] <= 0:
                raise CloseCall
        wait = None
        if self._allowance is not None and not is_complete:
            wait = self._allowance.spend(cost, self._meter.tokens_left)
            rests.append(self._allowance.next_check())
        # Most deltas cost only an addition.
        self._compared_at = self._meter.unreported_bytes + text_bytes(max(0, min(rests, default=0)), self._token_price)
        return wait


class CostLimits(CallLimits):
    """The limits of all turns of a generator."""

    def __init__(self, counters: Counters, records: StepRecords) -> None:
        self._counters = counters
        self._records = records
        self._allowances: dict[TurnKey, Allowance] = {}

    async def find_cut(self, key: TurnKey, turn: Turn, action: Action) -> str | None:
        """See CallLimits. Reserves the prompt and the first step of a further call."""
        request = turn.request
        if request is None:
            return None
        most, cost = request.max_cost_nano_usd, turn.bill.total.cost_nano_usd
        if most is not None and cost >= most:
            return MAX_COST
        if (allowance := await self._open(key, turn, request)) is None:
            return None
        if allowance.is_closed:
            return BUDGET
        if not turn.attempt or not isinstance(action, MakeAttempt):
            return None
        # In a thread: counting the pages of long PDFs takes 0.1 s and would stop every stream.
        following = await asyncio.to_thread(estimate_further_call, request, turn)
        return None if await allowance.reach(cost + following) else BUDGET

    async def _open(self, key: TurnKey, turn: Turn, request: Request) -> Allowance | None:
        if key not in self._allowances and (holds := budgets_of(request)):
            self._allowances[key] = Allowance(
                self._counters,
                self._records,
                key,
                holds,
                record=await self._records.read(key) if turn.attempt else StepRecord(),
                token_price=output_price(request),
                most=request.max_cost_nano_usd,
            )
        return self._allowances.get(key)

    def begin_call(self, key: TurnKey, turn: Turn) -> Put | None:
        """See CallLimits."""
        request, allowance = turn.request, self._allowances.get(key)
        if allowance is not None:
            allowance.attempt = turn.attempt
        if request is None or (request.max_cost_nano_usd is None and allowance is None):
            return None
        return CallMeter(request, turn, allowance).count

    def forget(self, key: TurnKey) -> None:
        """See CallLimits."""
        if (allowance := self._allowances.pop(key, None)) is not None:
            allowance.cancel()

    async def steps_of(self, key: TurnKey, turn: Turn) -> Sequence[Reservation]:
        """See CallLimits."""
        if turn.request is None or not budgets_of(turn.request):
            return ()
        allowance = self._allowances.get(key)
        if allowance is not None and allowance.attempt == turn.attempt:
            return await allowance.settled()
        return (await self._records.read(key)).steps
