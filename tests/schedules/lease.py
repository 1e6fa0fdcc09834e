"""A model of the durable consumer that hands requests out: leases that run out, or are stolen (PROTOCOL R18)."""

from tailrace.proto.entries import Stored
from tailrace.proto.ids import Seq
from tests.schedules.generator import Worker
from tests.schedules.stream import Stream

ACK_WAIT_S = 2.0
NOBODY_WAIT_S = 0.3
LOST_QUESTIONS = 0.1


class Delivery:
    """One stored request, leased to one generator at a time, and to whoever makes a call beside it.

    A turn has one, unless its request was stored twice.
    """

    def __init__(self, seq: Seq) -> None:
        self.seq = seq
        self.holders: list[Worker] = []
        self.lease = 0
        self.is_done = False


class Queue:
    """Delivers until it is acknowledged. Whose acknowledgement it is, it does not ask."""

    def __init__(self, stream: Stream, workers: list[Worker]) -> None:
        self.stream = stream
        self.world = stream.world
        self.workers = workers
        self.deliveries: list[Delivery] = []
        self.too_early: list[str] = []
        """Acknowledgements that came while the log had no end."""
        self._held: dict[Worker, Delivery] = {}
        for worker in workers:
            worker.ask_for_hedge = self.hedge

    @property
    def is_done(self) -> bool:
        return all(delivery.is_done for delivery in self.deliveries)

    def stored(self, request: Stored) -> None:
        delivery = Delivery(request.seq)
        self.deliveries.append(delivery)
        self.world.after(0.001, lambda: self.deliver(delivery))

    def steal(self) -> None:
        """While a leader was away renewals were lost: another gets what its holder still works on."""
        for delivery in self.deliveries:
            self.deliver(delivery)

    def lapse(self, worker: Worker) -> None:
        """He renews nothing any more: he is dead, or frozen, or has let go."""
        for delivery in self.deliveries:
            if worker in delivery.holders:
                self._expire(delivery, delivery.lease)

    def _expire(self, delivery: Delivery, lease: int) -> None:
        def expire() -> None:
            is_kept = any(self._held.get(holder) is delivery and not holder.is_frozen for holder in delivery.holders)
            if lease == delivery.lease and not is_kept:
                self.deliver(delivery)

        self.world.after(ACK_WAIT_S * (1 - self.world.chance() / 3), expire)

    def deliver(self, delivery: Delivery) -> None:
        if delivery.is_done:
            return
        awake = [worker for worker in self.workers if not worker.is_frozen]
        if not awake:
            self.world.after(NOBODY_WAIT_S, lambda: self.deliver(delivery))
            return
        worker = awake[self.world.below(len(awake))]
        delivery.holders = [worker]
        delivery.lease += 1
        self.world.tell("queue", f"delivers {delivery.seq} to {worker.name}")
        before = self._held.get(worker)
        # Who has the turn already has a newer lease of it, and nothing more.
        self._held[worker] = delivery
        if before is not None:
            self._expire(before, before.lease)
        else:
            worker.start(worker.work(), lambda how: self._worked(worker, how))

    def hedge(self, late: Worker, attempt: Seq) -> None:
        """Another that has room is asked to make the call, too; the question, or its answer, may be lost."""
        others = [worker for worker in self.workers if not worker.is_busy and not worker.is_frozen]
        delivery = self._held[late]
        if not others or self.world.chance() < LOST_QUESTIONS:
            return
        other = others[self.world.below(len(others))]
        self.world.tell("queue", f"{other.name} makes the call beside {late.name}'s")
        delivery.holders.append(other)
        self._held[other] = delivery
        other.start(other.work(attempt), lambda how: self._worked(other, how))

    def _worked(self, worker: Worker, how: object) -> None:
        delivery = self._held.pop(worker)
        if isinstance(how, BaseException):
            raise how
        if how:
            self.world.tell(worker.name, f"acknowledges {delivery.seq}")
            if not self.stream.has_end:
                self.too_early.append(f"{worker.name} acknowledged a turn without an end")
            delivery.is_done = True
        else:
            self.lapse(worker)

    def kill(self, worker: Worker) -> None:
        """Its supervisor starts it again, under another name."""
        self.world.tell(worker.name, "is killed")
        worker.stop()
        self._held.pop(worker, None)
        self.lapse(worker)
        worker.is_born_again()
