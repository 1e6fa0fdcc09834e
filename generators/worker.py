"""Takes requests from the queue, keeps each leased while its turn runs, and acknowledges after its end. Nothing else.

The lease only says who is to try. Who may write is decided by the log, entry by entry.
"""

import asyncio
from collections.abc import Collection

import msgspec
import structlog

from tailrace.generators import metrics
from tailrace.generators.attempt import TurnRunner
from tailrace.generators.batches.runner import BatchRunner
from tailrace.proto.errors import FenceLost, LogError, TurnUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Deliveries, Delivery, Hedge, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

BROKEN_WAIT_S = 1.0
# An answer that another has whole takes him milliseconds to write.
WRITTEN_WAIT_S = 0.2
# Each has its inputs in memory, up to the size of a body.
BATCHES_MAX = 8
# Those of a tenant that wait a day for Anthropic, say, keep nobody else's waiting.
BATCHES_TENANT_MAX = BATCHES_MAX // 2


class Worker:
    """Carries up to `concurrency` turns at once until `stop` is set; then lets them finish for `grace_s` seconds.

    Batches are carried beside them, for they wait for turns; and they are given back at once. Calls beside those of
    other generators get what the queue leaves over.
    """

    def __init__(
        self,
        log: TurnLog,
        deliveries: Deliveries,
        carrier: TurnRunner,
        settlement: Settlement,
        batches: BatchRunner,
        *,
        concurrency: int,
        deadline_s: float,
        grace_s: float,
    ) -> None:
        self._log = log
        self._deliveries = deliveries
        self._carrier = carrier
        self._settlement = settlement
        self._batches = batches
        self._concurrency = concurrency
        self._deadline_s = deadline_s
        self._grace_s = grace_s
        self._held: dict[TurnKey, Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._is_draining = False

    async def run(self, stop: asyncio.Event) -> None:
        tasks = self._tasks
        batches: dict[asyncio.Task[None], Tenant] = {}
        async with asyncio.TaskGroup() as group:
            self._group = group
            renewing = group.create_task(self._renew())
            stopping = group.create_task(stop.wait())
            while not stop.is_set():
                if len(tasks) == self._concurrency:
                    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                    continue
                # One for each free slot and no more: what waits here waits for its lease to run out, too.
                for delivery in await self._deliveries.next():
                    is_batch, tenant = delivery.is_batch, delivery.key.tenant
                    if stop.is_set():
                        await delivery.release()
                    elif is_batch and is_full(batches.values(), tenant) and delivery.key not in self._held:
                        await delivery.release(BROKEN_WAIT_S)
                    elif self._take(delivery):
                        task = group.create_task(self._carry(delivery.key, is_batch=is_batch))
                        if is_batch:
                            batches[task] = tenant
                            task.add_done_callback(batches.pop)
                        else:
                            tasks.add(task)
                            task.add_done_callback(tasks.discard)
            self._is_draining = True
            logger.info("draining", running=len(tasks))
            for task in batches:
                task.cancel()
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=self._grace_s)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            renewing.cancel()

    def report(self) -> bytes | None:
        """How this process is, for whoever asks; None, and silence, once it is going away: others may be there."""
        return None if self._is_draining else msgspec.json.encode({"ok": True, "running": len(self._held)})

    def has_room(self) -> bool:
        """Whether a call could be made beside another generator's. The next of the queue always has a place here."""
        is_running = self._group is not None and not self._is_draining
        return is_running and len(self._tasks) + 1 < self._concurrency

    def take(self, hedge: Hedge) -> bool:
        """Begins a call beside another generator's; False when there is no room, or the turn is here already."""
        if self._group is None or not self.has_room() or hedge.key in self._held:
            return False
        self._take(self._deliveries.from_lease(hedge.key, hedge.lease))
        task = self._group.create_task(self._carry(hedge.key, hedge=hedge))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _take(self, delivery: Delivery) -> bool:
        """Holds `delivery`; False when its turn runs here already, and this is only a newer lease of it."""
        is_new = delivery.key not in self._held
        self._held[delivery.key] = delivery
        return is_new

    async def _carry(self, key: TurnKey, *, is_batch: bool = False, hedge: Hedge | None = None) -> None:
        try:
            with metrics.RUNNING.track_inprogress():
                if await self._is_ended_by(key, is_batch=is_batch, hedge=hedge):
                    await self._held[key].ack()
        except asyncio.CancelledError:
            await self._held[key].release()
            raise
        finally:
            del self._held[key]

    async def _is_ended_by(self, key: TurnKey, *, is_batch: bool, hedge: Hedge | None) -> bool:
        """Carries the turn; whether it has ended now. The edge of one turn: nothing that happens to it stops others."""
        try:
            if is_batch:
                turn = await self._batches.carry(key)
            elif hedge is not None:
                turn = await self._carrier.hedge(key, hedge.late, self._deadline_s)
                if turn.end is None:
                    return False
            else:
                turn = await self._carrier.carry(key, self._deadline_s, self._held[key].lease)
                if turn.end is None:
                    # Its batch's carrier writes it, and is about to: what limits hold for it is settled after that.
                    await self._held[key].release(WRITTEN_WAIT_S)
                    return False
            # Before it is acknowledged: whoever dies in between leaves it to the next.
            await self._settlement.settle(key, turn)
        except FenceLost as lost:
            metrics.LOST.inc()
            logger.info("turn left", turn=key.turn, why=str(lost))
            # What a batch has asked is to be ended with it: whoever gets it next looks.
            return not is_batch and await self._was_ended(key)
        except TurnUnknown:
            logger.warning("turn has left the log before it was answered", turn=key.turn)
            return True
        except LogError as error:
            logger.warning("turn interrupted", turn=key.turn, error=str(error))
            return False
        except Exception:
            # Attempts are counted in the log: a turn that always breaks its generator fails after the last of them.
            logger.exception("turn broke its generator", turn=key.turn)
            await self._held[key].release(BROKEN_WAIT_S)
            return False
        logger.info(
            "turn ended", turn=key.turn, attempt=turn.attempt, outcome=turn.outcome, code=turn.error and turn.error.code
        )
        return True

    async def _was_ended(self, key: TurnKey) -> bool:
        try:
            turn = await self._log.turn(key)
            await self._settlement.settle(key, turn)
        except LogError:
            return False
        return turn.end is not None

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._deliveries.renew_every_s)
            for delivery in tuple(self._held.values()):
                await delivery.renew()


def is_full(carried: Collection[Tenant], tenant: Tenant) -> bool:
    """Whether one more batch of `tenant` has to wait, beside the batches of those that are `carried`."""
    return len(carried) >= BATCHES_MAX or sum(one == tenant for one in carried) >= BATCHES_TENANT_MAX
