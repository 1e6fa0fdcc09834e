"""The cost limit of a turn (`max_cost`): counts while the model answers, and closes the call at the limit.

The text so far is kept. A reader receives an answer that was cut by a limit (PROTOCOL R41). Pure.
"""

from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Sink
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.pricing import price_calls
from tailrace.proto.usage_meter import UsageMeter

STOP_REASON = "max_cost"


class CostMeter(UsageMeter):
    """Also counts the cost of the turn: of this attempt's calls and of the calls before it."""

    def __init__(self, request: Request, turn: Turn) -> None:
        """`turn` is the fold that includes this attempt."""
        super().__init__()
        self._limit_nano_usd = request.max_cost_nano_usd
        self._model = request.model
        self._before = price_calls(self._model, turn.calls_before).total.cost_nano_usd

    @property
    def cost_nano_usd(self) -> int:
        """In nano-dollars, without parts at an unknown price. The gateway refuses a limit for a model without a price.

        The model reports a step of a call (a compaction, another model's answer) when the step is over.
        """
        return self._before + price_calls(self._model, self.calls).total.cost_nano_usd

    @property
    def is_exceeded(self) -> bool:
        """Whether the turn's cost has reached its `max_cost`. False without a limit."""
        return self._limit_nano_usd is not None and self.cost_nano_usd >= self._limit_nano_usd


def limit_cost(sink: Sink, request: Request, turn: Turn) -> Sink:
    """Returns `sink`, or, for a turn with a cost limit, a sink that raises CloseCall when an event reaches the limit.

    Raises CloseCall if earlier calls have reached it. As the last of the sinks it receives the model's own events,
    so it also counts text that the others hold or leave out.
    """
    if request.max_cost_nano_usd is None:
        return sink
    meter = CostMeter(request, turn)

    def limit_event(event: ModelEvent) -> None:
        sink(event)
        meter.add(event.event, event.left_out)
        if meter.is_exceeded:
            raise CloseCall

    if meter.is_exceeded:
        raise CloseCall
    return limit_event


def cut_at_cost(turn: Turn) -> str | None:
    """Returns the stop reason of a turn that has reached its cost limit; None for another. See planner.Cut."""
    if turn.request is None or turn.request.max_cost_nano_usd is None:
        return None
    return STOP_REASON if turn.bill.total.cost_nano_usd >= turn.request.max_cost_nano_usd else None
