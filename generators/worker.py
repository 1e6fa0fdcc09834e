"""Takes requests from the queue, keeps their leases while their turns run, and acknowledges each after its turn's end.

A lease only decides which generator tries. The log decides, entry by entry, which generator may write.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import structlog

from tailrace.generators import metrics
from tailrace.generators.error_frames import free_frames
from tailrace.generators.fair_share import FairShare
from tailrace.generators.turn_runner import TurnRunner
from tailrace.proto.end_entry import end_fields
from tailrace.proto.errors import FenceLost, LogError, TurnUnknown
from tailrace.proto.fold import Turn, fold
from tailrace.proto.generator_health import GeneratorHealth
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Deliveries, Delivery, TurnLog
from tailrace.proto.nats.leases import RENEWALS, keep_renewed
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.runtime.race import run_until

logger = structlog.get_logger()

RETRY_WAIT_S = 1.0
# A turn that can neither start nor wait here is released, so that another generator can take it. The delay before its
# next delivery doubles each time, up to this maximum. It is the maximum from the beginning if the turn's tenant has a
# flood of short turns: nats-server delivers such turns before new ones.
SHARE_WAIT_S_MAX = 8.0
# The most turns that are fetched to start together, without a round trip for each. nats-server divides a burst evenly
# among the generators that wait, whatever number each has requested. The running turns wait while these start.
STARTED_AT_ONCE = 16
# The most turns that are fetched at once while some of the fetched ones can neither start nor wait here.
FETCHED_MAX = 256
# How long a waiting turn's lease is kept at a time. If this process is killed, the turn waits so long. Hundreds of
# turns may wait: the renewals of short leases, like those of running turns, would need much CPU.
WAITING_LEASE_S = 8.0
# The delay before the next delivery of a turn that cannot run yet. Either another process is storing its answer, which
# takes milliseconds, or the turn is queued behind its parent, which may take minutes. So the delay begins short, and
# grows by this much each time, up to the maximum.
NOT_YET_WAIT_S = 0.2
NOT_YET_WAIT_S_MAX = 1.0

OnEnded = Callable[[TurnKey, Turn], Awaitable[None]]
"""Is called with each ended turn, at least once, before its delivery is acknowledged. Raises LogUnavailable."""

Job = Callable[[], Awaitable[Turn | None]]
"""Runs a turn; returns its fold, which has an end.

Returns None if another process runs the turn, or if it cannot begin yet. The request is then not acknowledged.
"""


Place = Literal["lane", "last"]


class WaitingLease(NamedTuple):
    """The lease of a turn that waits."""

    delivery: Delivery

    async def renew(self) -> None:
        """See Lease."""
        await self.delivery.extend(WAITING_LEASE_S)


class Lane(Protocol):
    """Runs deliveries of one kind beside the turns, with limits of its own."""

    def place(self, turn: TurnId, request: bytes) -> Place | None:
        """Returns `lane` for an encoded request that this lane runs, `last` for one that waits behind all others of its
        tenant, and None for requests of no interest. Called for each delivery; must raise nothing.
        """
        ...

    def reserve(self, tenant: Tenant) -> bool:
        """Reserves a slot; False if none is free."""
        ...

    def release(self, tenant: Tenant) -> None: ...

    async def run(self, key: TurnKey) -> Turn | None:
        """Runs the turn; returns what a `Job` returns."""
        ...


class Worker:
    """Runs up to `concurrency` turns at once until `stop` is set; then lets these finish for `grace_s` seconds.

    Setting `stop_now` ends this grace period.

    `tenant_share`: of the slots that other tenants leave free, one tenant may use this share (fair_share.py).
    Deliveries that one of `lanes` runs do not count against `concurrency`. After `stop` they are cancelled and
    released at once.
    """

    def __init__(
        self,
        log: TurnLog,
        deliveries: Deliveries,
        runner: TurnRunner,
        on_ended: OnEnded,
        lanes: Sequence[Lane] = (),
        *,
        concurrency: int,
        grace_s: float,
        tenant_share: float = 1.0,
        on_left: Callable[[TurnKey], None] = lambda _: None,
    ) -> None:
        """`on_left` is called with each turn that no longer runs here."""
        self._log = log
        self._deliveries = deliveries
        self._runner = runner
        self._on_ended = on_ended
        self._on_left = on_left
        self._lanes = lanes
        self._slots = FairShare(concurrency, tenant_share)
        self._grace_s = grace_s
        self._held: dict[TurnKey, Delivery] = {}
        """The deliveries of running turns."""
        self._waiting: dict[TurnKey, Delivery] = {}
        """The deliveries of turns that wait for their tenant's share."""
        self._turns: set[asyncio.Task[None]] = set()
        self._lane_tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._is_draining = False
        self.facts: dict[str, Any] = {}
        """Further fields of the health report, for operators."""

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event | None = None) -> None:
        """Runs turns until `stop` is set; then finishes them until the grace period is over or `stop_now` is set."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            renewing = [
                group.create_task(self._deliveries.keep_renewed(self._held.values)),
                group.create_task(keep_renewed(self._waiting_leases, WAITING_LEASE_S / RENEWALS)),
            ]
            try:
                await self._fetch_until(stop)
            finally:
                # No further turn starts, also when this task is cancelled.
                self._is_draining = True
            await self._drain(stop_now or asyncio.Event())
            for task in renewing:
                task.cancel()

    def _waiting_leases(self) -> Sequence[WaitingLease]:
        return [WaitingLease(delivery) for delivery in self._waiting.values()]

    async def _fetch_until(self, stop: asyncio.Event) -> None:
        """Fetches and starts turns until `stop` is set."""
        least = 1
        while not stop.is_set():
            if self._slots.free <= 0:
                await run_until(stop.wait(), *self._turns)
                continue
            # Fetch only what can start: another generator may have a free slot for the rest.
            count = max(least, min(self._slots.free, STARTED_AT_ONCE))
            kept = [await self._start_or_release(one, stop) for one in await self._deliveries.next(count, self._place)]
            # If some of the fetched turns were given back, fetch more than there are slots, to reach the turns of other
            # tenants behind them.
            least = 1 if all(kept) else min(2 * count, FETCHED_MAX)

    def deliveries(self) -> Iterable[Delivery]:
        """Returns the deliveries that this process holds: those of running turns, and then of those that wait."""
        return chain(self._held.values(), self._waiting.values())

    def report_health(self) -> bytes | None:
        """Returns the health report as JSON. While this process drains: None, and no report is sent."""
        if self._is_draining:
            return None
        oldest = min((delivery.at for delivery in self._waiting.values()), default=None)
        return msgspec.json.encode(
            GeneratorHealth(
                ok=True,
                held=len(self._held) + len(self._waiting),
                free=self._slots.free,
                waiting=self._slots.count_waiting(),
                oldest_waiting_s=age_s(oldest) if oldest is not None else 0.0,
                **self.facts,
            )
        )

    async def _start_or_release(self, delivery: Delivery, stop: asyncio.Event) -> bool:
        """Like `_start`, but releases a delivery that `_start` refuses, or that came after `stop`."""
        if stop.is_set():
            await delivery.release()
            return False
        if self._start(delivery):
            if delivery.key in self._waiting:
                await delivery.extend(WAITING_LEASE_S)
            return True
        wait_s = min(RETRY_WAIT_S * 2 ** min(delivery.times - 1, 8), SHARE_WAIT_S_MAX)
        if self._slots.has_long_wait(delivery.key.tenant, asyncio.get_running_loop().time()):
            wait_s = SHARE_WAIT_S_MAX
        await delivery.release(wait_s)
        return False

    def _start(self, delivery: Delivery) -> bool:
        """Starts a delivery's job or lets it wait; False if its lane is full, or too many turns of its tenant wait."""
        key = delivery.key
        for known in (self._held, self._waiting):
            if key in known:
                # The turn runs or waits here already; this is a newer lease of it.
                known[key] = delivery
                return True
        lane, place = delivery.mark or (None, None)
        if lane is None or place == "last":
            return self._start_or_wait(delivery, is_last=place == "last")
        if not lane.reserve(key.tenant):
            return False
        self._held[key] = delivery
        task = self._create_task(key, partial(lane.run, key), self._lane_tasks)
        task.add_done_callback(lambda _: lane.release(key.tenant))
        return True

    def _place(self, turn: TurnId, request: bytes) -> tuple[Lane, Place] | None:
        places = ((lane, lane.place(turn, request)) for lane in self._lanes)
        return next(((lane, place) for lane, place in places if place is not None), None)

    def _start_or_wait(self, delivery: Delivery, *, is_last: bool) -> bool:
        key, now_s = delivery.key, asyncio.get_running_loop().time()
        if not self._slots.is_waiting(key.tenant) and self._slots.may_start(key.tenant):
            self._start_turn(delivery)
        elif self._slots.enqueue(key, now_s, is_last=is_last):
            self._waiting[key] = delivery
        else:
            return False
        return True

    def _start_turn(self, delivery: Delivery) -> None:
        key = delivery.key
        self._held[key] = delivery
        self._slots.note_start(key.tenant, asyncio.get_running_loop().time())
        metrics.RUNNING.inc()
        task = self._create_task(key, partial(self._run_turn, key), self._turns)
        task.add_done_callback(lambda _: self._free_slot(key.tenant))

    def _free_slot(self, tenant: Tenant) -> None:
        """Frees the slot of an ended turn, and starts waiting turns that may start now."""
        self._slots.note_end(tenant)
        metrics.RUNNING.dec()
        while not self._is_draining and (key := self._slots.dequeue()) is not None:
            self._start_turn(self._waiting.pop(key))

    def _create_task(self, key: TurnKey, job: Job, tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        assert self._group is not None  # noqa: S101  # `run` has begun
        task = self._group.create_task(self._hold(key, job))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _run_turn(self, key: TurnKey) -> Turn | None:
        held = self._held[key]
        taken = held.take_entry()
        if held.times > 1 and taken and not await self._has_only_waited(key):
            taken = []
        self._log.remember_request(key, taken)
        turn = await self._runner.run(key, fold(taken))
        if turn.end is None:
            # Another process is about to store the answer, or the turn cannot begin yet. `on_ended` is called when the
            # turn is delivered again.
            await self._held[key].release(min(NOT_YET_WAIT_S * self._held[key].times, NOT_YET_WAIT_S_MAX))
            return None
        return turn

    async def _has_only_waited(self, key: TurnKey) -> bool:
        """Returns whether no generator has begun the turn, and it has not been cancelled. Raises LogUnavailable."""
        later = await asyncio.gather(*(self._log.last_seq(key, kind) for kind in ("attempt", "end")))
        return not any(later)

    async def _hold(self, key: TurnKey, job: Job) -> None:
        """Runs a job while its delivery is held; acknowledges it if the turn has ended."""
        try:
            # At a change of the consumer's leader, nats-server counts `ack_wait` of a lease that was never renewed from
            # the time of the entry (R18). The lease of a turn that has waited is long, and from now on short: if this
            # process is killed, another one soon continues the turn.
            await self._held[key].renew()
            if await self._run_to_end(key, job):
                await self._held[key].ack()
        except asyncio.CancelledError:
            await self._held[key].release()
            raise
        finally:
            del self._held[key]
            self._on_left(key)

    async def _run_to_end(self, key: TurnKey, job: Job) -> bool:
        """Runs a job and calls `on_ended`; returns whether the turn has ended. Logs errors instead of raising them."""
        try:
            turn = await job()
            if turn is None:
                return False
            # Before the acknowledgement: if this process dies between the two, the turn is delivered again.
            await self._on_ended(key, turn)
        except FenceLost as lost:
            logger.info("turn taken by another writer", turn=key.turn, why=str(lost))
            free_frames(lost)
            return await self._check_end(key)
        except TurnUnknown as error:
            logger.warning("turn has left the log before it was answered", turn=key.turn, why=str(error))
            free_frames(error)
            return True
        except LogError as error:
            logger.warning("turn interrupted", turn=key.turn, error=str(error))
            free_frames(error)
            return False
        except Exception as error:
            # The log counts attempts: a turn that breaks every generator fails after the last attempt.
            logger.exception("turn broke its generator", turn=key.turn)
            free_frames(error)
            await self._held[key].release(RETRY_WAIT_S)
            return False
        logger.info("turn ended", **end_fields(key, turn))
        return True

    async def _check_end(self, key: TurnKey) -> bool:
        """Reads a turn that another writer has taken; returns whether it has ended, after calling `on_ended`.

        Logs errors instead of raising them. The turn is then delivered again when its lease expires.
        """
        try:
            turn = await self._log.read_turn(ScopedKey.whole(key))
            # A client's cancellation is normal.
            if turn.outcome != "cancelled":
                metrics.LOST.inc()
            if turn.end is None:
                return False
            await self._on_ended(key, turn)
        except LogError:
            return False
        except Exception:
            logger.exception("turn that another writer has taken could not be settled", turn=key.turn)
            return False
        return True

    async def _drain(self, stop_now: asyncio.Event) -> None:
        """Cancels the lanes' jobs at once and, after `grace_s` seconds or when `stop_now` is set, the running turns."""
        logger.info("draining", running=len(self._turns))
        for key in self._slots.clear():
            await self._waiting.pop(key).release()
        for task in self._lane_tasks:
            task.cancel()
        if self._turns:
            ended = asyncio.create_task(asyncio.wait(self._turns))
            await run_until(stop_now.wait(), ended, timeout_s=self._grace_s)
            ended.cancel()
            late = set(self._turns)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
