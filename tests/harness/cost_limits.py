"""The cost limits of one turn, as a generator applies them."""

import asyncio

from tailrace.features.limits.cost_limits import CallMeter, CostLimits
from tailrace.generators.backends.model_event import ModelEvent, Sink
from tailrace.generators.plan import MakeAttempt
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.testing import MemoryCounters, MemoryStepRecords

KEY = TurnKey(Tenant("acme"), TurnId("turn"))


def limit_cost(sink: Sink, request: Request, turn: Turn) -> Sink:
    """Returns a sink that passes each event on and counts it. Raises CloseCall at the `max_cost` of `request`."""
    count = CallMeter(request, turn, None).count

    def put(event: ModelEvent) -> None:
        sink(event)
        count(event)

    return put


def cut_at_cost(turn: Turn) -> str | None:
    """Returns the stop reason of a turn that has reached its `max_cost`; None for another."""
    limits = CostLimits(MemoryCounters(), MemoryStepRecords())
    return asyncio.run(limits.find_cut(KEY, turn, MakeAttempt(2, "continue")))
