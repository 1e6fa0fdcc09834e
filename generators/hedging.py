"""Hedging: when a first token is late, another generator makes the same call, and the first token wins (ADR 20).

The log decides which call is first: both append behind the same fence. This module asks for the second call, stops the
losing one, and accounts for what it used.
"""

import asyncio
from contextlib import aclosing
from functools import partial

import structlog

from tailrace.generators import metrics
from tailrace.generators.attempt_runner import NoRace, RaceLost, TurnEnded
from tailrace.generators.backends.model_event import ModelEvent, Sink
from tailrace.generators.backends.registry import WITH_SIDE_EFFECTS
from tailrace.generators.delta_buffer import DeltaBuffer
from tailrace.generators.failover import BackendOrders
from tailrace.generators.plan import MakeAttempt
from tailrace.generators.turn_runner import TurnRunner
from tailrace.generators.worker import Worker
from tailrace.proto.entries import Attempt, Entry, Event, Request
from tailrace.proto.errors import CursorUnknown, FenceLost, LogUnavailable
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Hedge, HedgeRpc, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.pricing import price_calls
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.usage import NANO_USD_PER_USD, CallUsage
from tailrace.proto.usage_meter import UsageMeter

logger = structlog.get_logger()


def plan_hedge(turn: Turn) -> MakeAttempt:
    """Returns the attempt to make beside the one that `turn` waits for. Readers have seen nothing of `turn` yet."""
    return MakeAttempt(turn.attempt + 1, "fresh", is_second=True)


def may_hedge(attempt: int, backend: str) -> bool:
    """Returns whether a second call may run beside this attempt: only beside a turn's first one."""
    return attempt == 1 and backend not in WITH_SIDE_EFFECTS


def is_from(entry: Entry, attempt: int, generator: str) -> bool:
    """Returns whether `entry`, the first after a late attempt, is from the call of `generator` as `attempt`."""
    match entry:
        case Attempt(generator=name):
            return name == generator
        case Event(attempt=number):
            return number == attempt
        case _:
            return False


class Hedging:
    """Races the first calls of this generator's turns after `after_s` seconds without a token."""

    def __init__(self, log: TurnLog, hedges: HedgeRpc, settlement: Settlement, *, name: str, after_s: float) -> None:
        self._log = log
        self._hedges = hedges
        self._settlement = settlement
        self._name = name
        self._after_s = after_s

    def race(self, key: TurnKey, turn: Turn, action: MakeAttempt, lease: str) -> "RacedCall | NoRace":
        """See attempt_runner.Races."""
        if not action.is_second and not may_hedge(action.attempt, turn.backend):
            return NoRace()
        return RacedCall(self, key, turn, action, lease)

    async def request_if_late(self, has_token: asyncio.Event, key: TurnKey, turn: Turn, lease: str) -> bool:
        """Waits for the first token; if it is late, requests a second call. Returns whether a generator makes one."""
        if await is_set_within(has_token, self._after_s):
            return False
        is_taken = await self._hedges.request(Hedge(key.tenant, key.turn, turn.chain.last, lease))
        logger.info("first token late", is_hedged=is_taken)
        if not is_taken:
            metrics.HEDGES.labels("declined").inc()
        return is_taken

    async def require_first(self, key: TurnKey, turn: Turn, action: MakeAttempt) -> None:
        """Returns when this call's first entry is stored; raises FenceLost when the other call's is."""
        try:
            async with aclosing(self._log.follow(key, turn.chain.last)) as following:
                async for some in following:
                    for one in some:
                        if not is_from(one.entry, action.attempt, self._name):
                            raise FenceLost(f"another call of {key.turn} was first")
                        return
        except (LogUnavailable, CursorUnknown) as error:
            # Without this notice the loser learns of it from the fence, at its first append.
            logger.debug("race not followed", turn=key.turn, error=str(error))

    async def account(self, key: TurnKey, request: Request, action: MakeAttempt, usage: CallUsage) -> None:
        """Adds `usage`, which a call has reported and no entry contains, to the limits and the metrics. Idempotent."""
        if not any(usage.counts):
            return
        bill = price_calls(request.model, [usage]).total
        metrics.HEDGE_COST.inc(bill.cost_nano_usd / NANO_USD_PER_USD)
        try:
            await self._settlement.add(request, f"{key.turn}.{action.attempt}", bill, bill.cost_nano_usd)
        except LogUnavailable as error:
            logger.warning("usage of a lost call not counted", turn=key.turn, error=str(error))


class RacedCall:
    """A call that may have a rival: the first call of a turn, or the hedge beside it. Implements attempt_runner.Race.

    The opening of the message is not stored before the first token: the call would win the race without an answer.
    """

    def __init__(self, hedging: Hedging, key: TurnKey, turn: Turn, action: MakeAttempt, lease: str) -> None:
        self._hedging = hedging
        self._key = key
        self._turn = turn
        self._action = action
        self._lease = lease
        self._meter = UsageMeter()
        self.has_rival = action.is_second
        self.buffer = DeltaBuffer(hold_opening=True, drop_opening=action.is_second)

    def wrap(self, sink: Sink) -> Sink:
        """Returns `sink` with a meter of the usage, which a lost call does not store."""

        def meter_event(event: ModelEvent) -> None:
            sink(event)
            self._meter.add(event.event, event.left_out)

        return meter_event

    async def watch(self) -> None:
        """Raises FenceLost when the other call was first. Both calls learn of it from the log alone."""
        if not self._action.is_second and not await self._hedging.request_if_late(
            self.buffer.has_token, self._key, self._turn, self._lease
        ):
            return
        self.has_rival = True
        await self._hedging.require_first(self._key, self._turn, self._action)

    async def finish(self, *, has_stored: bool, error: BaseException | None) -> None:
        """Counts how the call ended: as the winner, lost, or broken off before a token. See attempt_runner.Race."""
        if has_stored:
            if self._action.is_second:
                metrics.HEDGES.labels("won").inc()
            return
        is_lost = isinstance(error, FenceLost)
        is_failed = self._action.is_second and (error is None or isinstance(error, asyncio.CancelledError))
        # Otherwise the opening may be stored, by an append whose reply was lost, and be counted by the turn's end.
        is_failed |= isinstance(error, asyncio.CancelledError | LogUnavailable) and not self.buffer.has_returned
        if self._action.is_second and (is_lost or is_failed):
            metrics.HEDGES.labels("lost" if is_lost else "failed").inc()
        if is_lost or is_failed:
            assert self._turn.request is not None  # noqa: S101  # the fold of a turn that is run has one
            await self._hedging.account(self._key, self._turn.request, self._action, self._meter.usage)
        if is_lost and self.has_rival and not isinstance(error, TurnEnded):
            raise RaceLost(str(error)) from error


async def run_hedge(runner: TurnRunner, log: TurnLog, orders: BackendOrders, hedge: Hedge) -> Turn | None:
    """Makes a call beside the late attempt of `hedge`; if its token is first, runs the turn to its end.

    Returns None when the turn is the other generator's. Raises what TurnRunner.run raises.
    """
    turn = await log.read_turn_upto(hedge.key, hedge.late)
    if turn.chain.last != hedge.late or turn.chain.is_ended or turn.request is None:
        raise RaceLost(f"the attempt at {hedge.late} of {hedge.turn} is not the last entry any more")
    if orders.order_for(turn.request.model, turn.backend).current.backend in WITH_SIDE_EFFECTS:
        return None
    turn = await runner.run_from(hedge.key, turn, first_action=plan_hedge(turn))
    return turn if turn.end is not None else None


class HedgeTaker:
    """Offers this generator's free slots to others for their hedges."""

    def __init__(self, worker: Worker, runner: TurnRunner, log: TurnLog, orders: BackendOrders) -> None:
        self._worker = worker
        self._runner = runner
        self._log = log
        self._orders = orders

    def has_free_slot(self) -> bool:
        """Returns whether a hedge can start. One slot is always left for the queue."""
        return self._worker.free_slots > 1

    def start_hedge(self, hedge: Hedge) -> bool:
        """See HedgeRpc.serve."""
        return self.has_free_slot() and self._worker.start_shared(
            hedge.key, hedge.lease, partial(run_hedge, self._runner, self._log, self._orders, hedge)
        )
