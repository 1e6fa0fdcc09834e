"""When another generator is asked to make a call beside one that is late, and where the loser's bill goes.

It reads no answer and writes no entry: whose token was first is decided where tokens are stored (ADR 20).
"""

import structlog

from tailrace.generators import metrics
from tailrace.generators.backends.registry import ACTING
from tailrace.generators.failover import Source
from tailrace.generators.plan import MakeAttempt
from tailrace.proto.entries import Attempt, Entry, Event, Request
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq
from tailrace.proto.models import cost_nano_usd, find_model
from tailrace.proto.nats import Hedge, HedgeRpc
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import NANO_USD_PER_USD, CallUsage

logger = structlog.get_logger()


def is_due(go: MakeAttempt, source: Source) -> bool:
    """Whether this attempt may be raced by another: a turn's first one, so that no turn has two hedges."""
    return go.attempt == 1 and source.backend not in ACTING


def is_first(entry: Entry, attempt: int, generator: str) -> bool:
    """Whether `entry`, the first after a late attempt, is of the call that `generator` makes as `attempt`."""
    match entry:
        case Attempt(generator=name):
            return name == generator
        case Event(attempt=number):
            return number == attempt
        case _:
            return False


class Hedging:
    """What a generator hedges with; one that has none of it neither asks nor is asked."""

    def __init__(self, hedges: HedgeRpc, settlement: Settlement, *, after_s: float) -> None:
        self._hedges = hedges
        self._settlement = settlement
        self.after_s = after_s

    async def ask(self, key: TurnKey, late: Seq, lease: str) -> bool:
        """Whether another generator makes the call, too, beside the attempt at `late`."""
        is_taken = await self._hedges.request(Hedge(key.tenant, key.turn, late, lease))
        logger.info("first token late", is_hedged=is_taken)
        if not is_taken:
            metrics.HEDGES.labels("nobody").inc()
        return is_taken

    async def lost(self, key: TurnKey, request: Request, go: MakeAttempt, usage: CallUsage) -> None:
        """The attempt `go` was not the first to have a token, or somebody has ended the turn before it had one."""
        if go.is_hedge:
            metrics.HEDGES.labels("lost").inc()
        await self._pay(key, request, go, usage)

    async def failed(self, key: TurnKey, request: Request, go: MakeAttempt, usage: CallUsage) -> None:
        """The hedge `go` broke off before it had a token."""
        metrics.HEDGES.labels("failed").inc()
        await self._pay(key, request, go, usage)

    async def _pay(self, key: TurnKey, request: Request, go: MakeAttempt, usage: CallUsage) -> None:
        """Counts what a call is known to have used that no entry tells of: once, in the limits and the metrics."""
        if not any(usage.counts):
            return
        model = find_model(request.model)
        nano_usd = cost_nano_usd(model, usage) if model is not None else 0
        metrics.HEDGE_COST.inc(nano_usd / NANO_USD_PER_USD)
        try:
            await self._settlement.add(request, f"{key.turn}.{go.attempt}", usage, nano_usd)
        except LogUnavailable as error:
            logger.warning("what a lost call used is not counted", turn=key.turn, error=str(error))
