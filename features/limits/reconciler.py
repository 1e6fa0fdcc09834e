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
    Owed,
    Reading,
    correction,
    lost_with_stream,
    may_be_reserved,
    owed,
)
from tailrace.features.limits.reservations import (
    BESIDE,
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
from tailrace.proto.nats.step_records import StepRecord, StepRecords
from tailrace.proto.subjects import given_back, lost_cost, recorded_cost
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
# How often the recorded cost is repeated beside a counter that changes, in case the database is lost.
REPEATED_EVERY = timedelta(seconds=60)
# How often dead turns and slots are looked up.
DEAD_EVERY = timedelta(seconds=15)
# A counter without an increment.
NEVER = Counted(0, BEFORE_FIRST, EPOCH)


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
    settled: dict[TurnId, Seq] = field(default_factory=dict)
    """The sequences of settlements that were repeated here."""
    repeated_at: datetime = EPOCH
    """When its recorded cost was last repeated. First, it shows what the database has lost before."""

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
        self._beside: dict[str, Counted] = {}
        """The counters beside those of budgets."""
        self._read_records: dict[TurnKey, StepRecord] = {}
        """The steps of running turns, as they were read in this round."""
        self._next_dead = EPOCH

    async def raise_to_recorded(self, budget: Budget) -> int:
        """Adds to a counter what it lacks of recorded costs, and of reservations of turns that exist.

        Returns the recorded cost of the period. Raises Refused.
        """
        found = await self._reader.read(budget.subject)
        reading = _reading(found.counted.get(budget.subject, NEVER), found)
        lost = await self._increments.read(lost_cost(budget.subject))
        await self._caught_up(budget.tenant)
        return await self._add_missing(budget, reading, lost, found.now)

    async def run_round(self) -> None:
        """Compares the counters that have changed, and looks up dead turns and slots from time to time."""
        before = dict(self._beside)
        self._read_records.clear()
        now, is_first = await self._read_changed()
        looks_up_dead = now >= self._next_dead
        if looks_up_dead:
            with suppress(Refused):
                await self._caught_up(None)
                await self._end_dead(now)
                await self._free_slots(now)
                self._next_dead = now + DEAD_EVERY
        is_late = False
        of_tenants: dict[Tenant, list[Counter]] = {}
        for subject, counter in self._counters.items():
            if counter.exact == counter.reading.seq and counter.exact_until > now:
                continue
            if not is_first:
                # Of the round before: a gateway counts what it gives back, and then gives it back.
                counter.mark(before.get(given_back(subject), NEVER).value)
            of_tenants.setdefault(counter.budget.tenant, []).append(counter)
        for tenant, counters in of_tenants.items():
            try:
                # After the counters were read: what was stored by then is recorded.
                await self._caught_up(tenant)
                for counter in counters:
                    await self._compare(counter, now)
            except Refused:
                # The entries of a tenant may wait longer than those of others.
                is_late = True
        if looks_up_dead and not is_late:
            # After the comparison: it needs the turns that have ended since a database was lost.
            await self._table.delete_ended(now)

    async def _read_changed(self) -> tuple[datetime, bool]:
        """Reads the counters; returns the server's time, and whether this is the first reading of the stream."""
        changes = await self._reader.read_changed(counters_at)
        if changes.is_new:
            self._counters.clear()
            self._beside.clear()
        for subject, counted in changes.counted.items():
            budget = parse_budget(subject)
            if budget.what.endswith(BESIDE):
                self._beside[subject] = counted
                continue
            counter = self._counters.get(subject)
            if counter is None:
                counter = self._counters[subject] = Counter(budget, _reading(counted, changes))
            counter.reading = _reading(counted, changes)
        current = {tuple(one.rsplit(".", 2)[1:]) for one in counters_at(changes.now)}
        for subject, counter in list(self._counters.items()):
            if (counter.budget.what, counter.budget.period) not in current:
                del self._counters[subject]
                for one in (given_back, recorded_cost, lost_cost):
                    self._beside.pop(one(subject), None)
            counter.reading = counter.reading._replace(until=max(counter.reading.at, changes.now))
        return changes.now, changes.is_new

    async def _compare(self, counter: Counter, now: datetime) -> None:
        """Raises the counter at once, if it is too low. Lowers it by a mark, whose turns are all stored."""
        lost = await self._find_lost(counter, now)
        await self._add_missing(counter.budget, counter.reading, lost, now)
        mark = counter.take_due()
        if mark is None:
            return
        reading = mark.reading
        recorded = await self._table.read(counter.budget, reading.at - SETTLED_WITHIN - CLOCKS_DIFFER, lost)
        found = owed(reading, recorded.cost, recorded.turns)
        if reading.value > found.most and reading.value > (await self._owed(counter.budget, reading, recorded)).most:
            await self._lower(counter, mark, lost, now)
        elif reading.seq == counter.reading.seq and found.least == found.most == reading.value:
            is_running = any(one.ended_at is None for one in recorded.turns)
            counter.exact, counter.exact_until = reading.seq, now if is_running else now + AGAIN_AFTER

    async def _find_lost(self, counter: Counter, now: datetime) -> int:
        """Returns the recorded cost that the database has lost. Repeats the recorded cost beside the counter.

        A database that was built again from the log lacks turns that have left the log or were deleted.
        """
        budget = counter.budget
        lost = self._beside.get(lost_cost(budget.subject), NEVER)
        repeated = self._beside.get(recorded_cost(budget.subject), NEVER)
        if now - counter.repeated_at < REPEATED_EVERY:
            return lost.value
        # All turns that have ended by then are recorded.
        upto = now - CLOCKS_DIFFER
        known = repeated.upto or upto
        recorded = await self._table.read(budget, min(upto, known), lost.value)
        missing = max(0, repeated.value - recorded.cost_until(known))
        if missing:
            await self._increments.add_once(lost_cost(budget.subject), missing, f"lost-{lost.seq}")
            logger.warning(
                "the database has lost costs of a budget, which stay counted",
                tenant=budget.tenant,
                subject=budget.subject,
                dollars=missing / NANO_USD_PER_USD,
            )
        elif (amount := recorded.cost_until(upto) - repeated.value) > 0:
            # Of two processes that repeat it after the same value, one does.
            name = f"recorded-{repeated.seq}"
            await self._increments.add_once(recorded_cost(budget.subject), amount, name, upto)
        counter.repeated_at = now
        return lost.value + missing

    async def _lower(self, counter: Counter, mark: Mark, lost: int, now: datetime) -> None:
        """Subtracts what no turn has reserved or cost."""
        budget, reading = counter.budget, mark.reading
        found = await self._owed(budget, reading, await self._settle_again(counter, lost, now))
        returned = await self._increments.read(given_back(budget.subject)) - mark.given_back
        # `_compare` has raised the counter by its current value, which is newer than the mark.
        excess = min(0, correction(reading, found, returned))
        if excess:
            await self._correct(budget, excess, f"correction-{reading.seq}")
            # They have the same excess.
            counter.marks.clear()

    async def _owed(self, budget: Budget, reading: Reading, recorded: Recorded) -> Owed:
        """Returns what a counter had to be, with the steps of running turns."""
        steps = dict[TurnId, int]()
        for one in recorded.turns:
            if may_be_reserved(one, reading):
                key = TurnKey(budget.tenant, one.turn)
                # A turn has a step in each of its budgets.
                if key not in self._read_records:
                    self._read_records[key] = await self._step_records.read(key)
                steps[one.turn] = _amount(self._read_records[key], budget)
        return owed(reading, recorded.cost, recorded.turns, steps)

    async def _add_missing(self, budget: Budget, reading: Reading, lost: int, now: datetime) -> int:
        """Adds what a counter lacks. Returns the recorded cost."""
        since = reading.at - SETTLED_WITHIN - CLOCKS_DIFFER
        is_new = reading.created > now - LOST_WITHIN
        recorded = await self._table.read(budget, min(since, reading.created) if is_new else since, lost)
        if is_new and (before := lost_with_stream(reading.created, recorded.cost, recorded.turns)):
            once = await self._correct(budget, before, f"created-{reading.created.isoformat()}")
            if once.seq > reading.seq:
                reading = reading._replace(value=reading.value + before)
        missing = correction(reading, owed(reading, recorded.cost, recorded.turns), 0)
        if missing > 0:
            await self._correct(budget, missing, f"correction-{reading.seq}")
        return recorded.cost

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

    async def _settle_again(self, counter: Counter, lost: int, now: datetime) -> Recorded:
        """Settles turns that have ended, in case their generators have died. Returns the budget with the settlements.

        A settlement that was made before changes nothing, and its sequence says whether the counter has it. But a
        server that has restarted knows only the names of the increments that it stores, the last 128. So an earlier
        turn is not settled again: that would count twice.
        """
        budget, settled = counter.budget, counter.settled
        # A settlement of before is not known to a stream that was created again.
        recorded = await self._table.read(budget, max(now - ENDED_KEPT, counter.reading.created), lost)
        oldest = await self._reader.oldest(budget.subject)
        turns, left = list[Held](), SETTLED_MAX
        for one in recorded.turns:
            is_known = one.seq >= oldest.seq or (one.ended_at or EPOCH) > oldest.at + CLOCKS_DIFFER
            if one.ended_at is None or one.is_batch or not (is_known or one.turn in settled):
                turns.append(one)
                continue
            if one.turn not in settled and left:
                left -= 1
                record = await self._step_records.read(TurnKey(budget.tenant, one.turn))
                amount = one.cost - one.amount - _amount(record, budget)
                settled[one.turn] = (await self._increments.add_once(budget.subject, amount, one.turn)).seq
            turns.append(one._replace(settled_seq=settled.get(one.turn)))
        listed = {one.turn for one in turns}
        counter.settled = {turn: seq for turn, seq in settled.items() if turn in listed}
        return recorded._replace(turns=turns)

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


def _amount(record: StepRecord, budget: Budget) -> int:
    """Returns the amount of a turn's steps in one budget."""
    return sum(step.amount for step in record.steps if step.subject == budget.subject)


def _reading(counted: Counted, changes: Changes) -> Reading:
    return Reading(counted.value, counted.seq, counted.at, max(counted.at, changes.now), changes.created)
