"""Reconciliation: corrects the counters of budgets by what the database has recorded, and frees dead slots.

One mechanism for all faults: a gateway that was killed between reservation and append, an append that was not stored,
a turn that has left the log, an input of a batch that never became a turn, a counter that is lost (PROTOCOL R148).
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from tailrace.features.limits import metrics
from tailrace.features.limits.budget_reader import BudgetReader, Changes, Counted
from tailrace.features.limits.reconciliation import (
    APPENDED_WITHIN,
    CLOCKS_DIFFER,
    SETTLED_WITHIN,
    Held,
    Reading,
    correction,
    lost_with_stream,
    may_be_reserved,
    owed,
)
from tailrace.features.limits.reservations import (
    ENDED_KEPT,
    Budget,
    Recorded,
    ReservationTable,
    counters_at,
    parse_budget,
)
from tailrace.persistence.rows import EPOCH
from tailrace.persistence.rpc import CatchUp
from tailrace.proto.errors import Refused
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, Counters, Slots, TurnLog
from tailrace.proto.nats.counters import Once
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.step_records import StepRecords
from tailrace.proto.subjects import given_back
from tailrace.proto.usage import NANO_USD_PER_USD

logger = structlog.get_logger()

ROUND_S = 5.0
# While a counter changes in each round, it is compared with older values, one in this time.
MARK_EVERY = timedelta(seconds=15)
# A counter that was right and has not changed since is compared again after this time: turns may have ended without it.
AGAIN_AFTER = timedelta(seconds=60)
# How long after its creation a stream is compared with the turns before.
LOST_WITHIN = ENDED_KEPT
# Turns that have ended without a settlement are settled, this many in one comparison.
SETTLED_MAX = 500
# How often dead turns and slots are looked up.
DEAD_EVERY = timedelta(seconds=15)


class Mark(NamedTuple):
    """A value of a counter that is compared later, and what was given back to the counter before it."""

    reading: Reading
    given_back: int


@dataclass
class Counter:
    """A counter of a budget that has changed in its period."""

    budget: Budget
    reading: Reading
    marks: list[Mark] = field(default_factory=list)
    exact: Seq = BEFORE_FIRST
    """The increment after which it was right."""
    exact_until: datetime = EPOCH
    """When it is compared again, although it has not changed since."""

    def mark(self, given_back: int) -> None:
        """Notes the current value for a later comparison."""
        last = self.marks[-1].reading if self.marks else None
        if last is None or (last.seq != self.reading.seq and self.reading.until - last.until >= MARK_EVERY):
            self.marks.append(Mark(self.reading, given_back))

    def take_due(self) -> Mark | None:
        """Returns the newest mark whose time has come, and drops all up to it."""
        due = [one for one in self.marks if self.reading.until - one.reading.at >= APPENDED_WITHIN]
        self.marks = self.marks[len(due) :]
        if not due:
            return None
        # As long as no other increment follows, the value is that of a later time, too.
        mark = due[-1]
        return mark if mark.reading.seq != self.reading.seq else mark._replace(reading=self.reading)


class Reconciler:
    """Corrects counters and frees slots, in one process at a time. Its methods raise LogUnavailable, StoreError."""

    def __init__(
        self,
        connection: Connection,
        reader: DirectReader,
        log: TurnLog,
        table: ReservationTable,
        caught_up: CatchUp,
    ) -> None:
        self._log = log
        self._table = table
        self._caught_up = caught_up
        self._reader = BudgetReader(connection, reader)
        self._increments = Counters(connection)
        self._slots = Slots(connection)
        self._step_records = StepRecords(connection)
        self._counters: dict[str, Counter] = {}
        self._given_back: dict[str, int] = {}
        self._settled: dict[tuple[TurnId, str], Seq] = {}
        """The sequences of settlements that were repeated here, by turn and counter."""
        self._next_dead = EPOCH

    async def raise_to_recorded(self, budget: Budget) -> int:
        """Adds to a counter what it lacks of recorded costs, and of reservations of turns that exist.

        Returns the recorded cost of the period. Raises Refused.
        """
        found = await self._reader.read(budget.subject)
        reading = _reading(found.counted.get(budget.subject, Counted(0, BEFORE_FIRST, EPOCH)), found)
        await self._caught_up(budget.tenant)
        return (await self._add_missing(budget, reading, found.now)).cost

    async def run_round(self) -> None:
        """Compares the counters that have changed, and looks up dead turns and slots from time to time."""
        before = dict(self._given_back)
        now, is_first = await self._read_changed()
        if now >= self._next_dead:
            with suppress(Refused):
                await self._caught_up(None)
                await self._end_dead(now)
                await self._free_slots(now)
                self._next_dead = now + DEAD_EVERY
        of_tenants: dict[Tenant, list[Counter]] = {}
        for subject, counter in self._counters.items():
            if counter.exact == counter.reading.seq and counter.exact_until > now:
                continue
            if not is_first:
                # Of the round before: a gateway counts what it gives back, and then gives it back.
                counter.mark(before.get(given_back(subject), 0))
            of_tenants.setdefault(counter.budget.tenant, []).append(counter)
        for tenant, counters in of_tenants.items():
            # The entries of a tenant may wait longer than those of others.
            with suppress(Refused):
                # After the counters were read: what was stored by then is recorded.
                await self._caught_up(tenant)
                for counter in counters:
                    await self._compare(counter, now)

    async def _read_changed(self) -> tuple[datetime, bool]:
        """Reads the counters; returns the server's time, and whether this is the first reading of the stream."""
        changes = await self._reader.read_changed(counters_at)
        if changes.is_new:
            self._counters.clear()
            self._given_back.clear()
        for subject, counted in changes.counted.items():
            budget = parse_budget(subject)
            if budget.what.endswith("_back"):
                self._given_back[subject] = counted.value
                continue
            counter = self._counters.get(subject)
            if counter is None:
                counter = self._counters[subject] = Counter(budget, _reading(counted, changes))
            counter.reading = _reading(counted, changes)
        current = {tuple(one.rsplit(".", 2)[1:]) for one in counters_at(changes.now)}
        for subject, counter in list(self._counters.items()):
            if (counter.budget.what, counter.budget.period) not in current:
                del self._counters[subject]
                self._given_back.pop(given_back(subject), None)
            counter.reading = counter.reading._replace(until=max(counter.reading.at, changes.now))
        return changes.now, changes.is_new

    async def _compare(self, counter: Counter, now: datetime) -> None:
        """Raises the counter at once, if it is too low. Lowers it by a mark, whose turns are all stored."""
        await self._add_missing(counter.budget, counter.reading, now)
        mark = counter.take_due()
        if mark is None:
            return
        reading = mark.reading
        recorded = await self._table.read(counter.budget, reading.at - SETTLED_WITHIN - CLOCKS_DIFFER)
        found = owed(reading, recorded.cost, recorded.turns)
        if reading.value > found.most:
            await self._lower(counter, mark, now)
        elif reading.seq == counter.reading.seq and found.least == found.most == reading.value:
            is_running = any(one.ended_at is None for one in recorded.turns)
            counter.exact, counter.exact_until = reading.seq, now if is_running else now + AGAIN_AFTER

    async def _lower(self, counter: Counter, mark: Mark, now: datetime) -> None:
        """Subtracts what no turn has reserved or cost."""
        budget, reading = counter.budget, mark.reading
        recorded = await self._settle_again(budget, now)
        running = [one for one in recorded.turns if may_be_reserved(one, reading)]
        found = owed(reading, recorded.cost, recorded.turns, await self._read_steps(budget, running))
        returned = await self._increments.read(given_back(budget.subject)) - mark.given_back
        # What a counter lacks, its current value shows.
        excess = min(0, correction(reading, found, returned))
        if excess:
            await self._correct(budget, excess, f"correction-{reading.seq}")
            # They have the same excess.
            counter.marks.clear()

    async def _add_missing(self, budget: Budget, reading: Reading, now: datetime) -> Recorded:
        """Adds what a counter lacks. Returns the budget in the database, without corrections."""
        since = reading.at - SETTLED_WITHIN - CLOCKS_DIFFER
        is_new = reading.created > now - LOST_WITHIN
        recorded = await self._table.read(budget, min(since, reading.created) if is_new else since)
        if is_new and (lost := lost_with_stream(reading.created, recorded.cost, recorded.turns)):
            once = await self._correct(budget, lost, f"created-{reading.created.isoformat()}")
            if once.seq > reading.seq:
                reading = reading._replace(value=reading.value + lost)
        missing = correction(reading, owed(reading, recorded.cost, recorded.turns), 0)
        if missing > 0:
            await self._correct(budget, missing, f"correction-{reading.seq}")
        return recorded

    async def _correct(self, budget: Budget, amount: int, name: str) -> Once:
        """Adds `amount` once for each `name`: two processes that compare the same value correct it once."""
        once = await self._increments.add_once(budget.subject, amount, name)
        if once.is_new:
            dollars = amount / NANO_USD_PER_USD
            metrics.CORRECTED_DOLLARS.labels("up" if amount > 0 else "down").inc(abs(dollars))
            logger.warning(
                "the counter of a budget was corrected",
                tenant=budget.tenant,
                subject=budget.subject,
                dollars=dollars,
            )
        return once

    async def _settle_again(self, budget: Budget, now: datetime) -> Recorded:
        """Settles turns that have ended, in case their generators have died. Returns the budget with the settlements.

        A settlement that was made before changes nothing, and its sequence says whether the counter has it.
        """
        recorded = await self._table.read(budget, now - ENDED_KEPT)
        turns, left = list[Held](), SETTLED_MAX
        for one in recorded.turns:
            if one.ended_at is None or one.is_batch:
                turns.append(one)
                continue
            name = one.turn, budget.subject
            if name not in self._settled and left:
                left -= 1
                steps = await self._read_steps(budget, [one])
                amount = one.cost - one.amount - steps.get(one.turn, 0)
                self._settled[name] = (await self._increments.add_once(budget.subject, amount, one.turn)).seq
            turns.append(one._replace(settled_seq=self._settled.get(name)))
        return recorded._replace(turns=turns)

    async def _read_steps(self, budget: Budget, turns: Iterable[Held]) -> dict[TurnId, int]:
        """Returns what turns have reserved beyond their requests."""
        found = dict[TurnId, int]()
        for one in turns:
            record = await self._step_records.read(TurnKey(budget.tenant, one.turn))
            found[one.turn] = sum(step.amount for step in record.steps if step.subject == budget.subject)
        return found

    async def _end_dead(self, now: datetime) -> None:
        """Ends the reservations of turns that have left the log, and of batches whose last result is stored."""
        unsure = await self._table.unsure()
        # A batch that has ended says in its record that all results are stored.
        over = [
            key
            for key, kept_until in unsure
            if kept_until is not None and (kept_until < now or (await self._step_records.read(key)).revision)
        ]
        others = [key for key, kept_until in unsure if kept_until is None]
        over += await self._find_over(others)
        if over:
            await self._table.end(over, now)
        await self._table.delete_ended(now)
        self._settled = {name: seq for name, seq in self._settled.items() if name[1] in self._counters}

    async def _find_over(self, turns: Iterable[TurnKey]) -> list[TurnKey]:
        """Returns the turns that the log does not have, or whose end it has."""
        listed = list(turns)
        stored = await self._log.find_stored(listed)
        return [key for key in listed if key not in stored or await self._log.has_end(key)]

    async def _free_slots(self, now: datetime) -> None:
        """Frees the slots of turns that have ended, or that were never stored."""
        of_tenants: dict[Tenant, dict[TurnId, list[Seq]]] = {}
        for slot in await self._slots.list_all("running"):
            if now - slot.at >= APPENDED_WITHIN:
                tenant = Tenant(slot.subject.split(".")[1])
                of_tenants.setdefault(tenant, {}).setdefault(TurnId(slot.holder), []).append(slot.seq)
        for tenant, holders in of_tenants.items():
            running = await self._table.running(tenant, holders)
            others = [TurnKey(tenant, turn) for turn in holders if turn not in running]
            for key in await self._find_over(others):
                for seq in holders[TurnId(key.turn)]:
                    await self._slots.release(seq)
                    metrics.FREED_SLOTS.inc()
                logger.warning("slots of a dead turn were freed", tenant=tenant, turn=key.turn)


def _reading(counted: Counted, changes: Changes) -> Reading:
    return Reading(*counted, max(counted.at, changes.now), changes.created)
