"""Schedules of turns and batches with budgets: what is left is right, whatever is killed, lost, late or frozen.

    python -m tests.schedules.budgets --seed 7 [--trace]

Gateways run the product's TurnSubmitter and Limiter, generators its CostLimits and Settlement, and persistence its
Recorder and Reconciler on a database in memory. The model is played.
"""

import argparse
import asyncio
import random
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from contextvars import Context
from datetime import UTC, datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec

from tailrace.features.limits.allowance import STEP_TOKENS
from tailrace.features.limits.budget_reader import BudgetReader, Changes, Counted
from tailrace.features.limits.cost_limits import CostLimits
from tailrace.features.limits.cost_meter import output_price
from tailrace.features.limits.limiter import Limiter
from tailrace.features.limits.quotas import counter_name
from tailrace.features.limits.reconciler import ROUND_S, Reconciler
from tailrace.features.limits.reservations import ReservationTable
from tailrace.features.persistence import TABLES
from tailrace.gateway.auth.admission import Admission, Admissions
from tailrace.gateway.auth.limits import Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns import submit
from tailrace.gateway.turns.draft import Draft
from tailrace.gateway.turns.submit import BuiltEntry, TurnSubmitter
from tailrace.generators.backends.model_event import CloseCall, ModelEvent
from tailrace.generators.plan import MakeAttempt
from tailrace.persistence.catch_up import SharedCatchUp
from tailrace.persistence.delivery_queue import DeliveryQueue
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rpc import CatchUp
from tailrace.persistence.store import Store
from tailrace.proto import events, subjects
from tailrace.proto.chain import Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import KINDS, Batch, End, Entry, Outcome, Request, Reservation, StoredEntry
from tailrace.proto.errors import FenceLost, LogError, LogUnavailable, Refused
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Counters, Slots, TurnLog, counters
from tailrace.proto.nats.log_server import PAGE_MAX, Count, EntryPage, PublishUnclear
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.nats.slots import HeldSlot, Slot
from tailrace.proto.nats.step_records import StepRecord, StepRecords
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.usage import NANO_USD_PER_USD
from tailrace.testing import MemoryDeliveries, MemoryLog
from tests.harness.sqlite_in_loop import SQLiteInLoop, copy_of, new_template
from tests.harness.turn_builder import attempt, closing_events, event, opening_events, request
from tests.promises import Budget, History, Verdict, nothing_held
from tests.schedules.process import PROCESS, Process
from tests.schedules.quiet import only_failures
from tests.schedules.world import World
from tests.sessions.play import run_here

TENANT = Tenant("t")
KEY = "key-1"
LIMITS = Limits(usd_day=50.0, usd_month=100.0, running=40)
# The two periods of a budget, and the largest wait of a late write and of a frozen process.
LATE_S_MAX = 4.0
FREEZE_S_MAX = 90.0
TIMEOUT_S = 2.0
POSTS_MAX = 12
INPUTS = 3
# The answers: of so many pieces at most, each with so many tokens. The first reservation does not cover the long ones.
MAX_TOKENS = 6000
PIECES_MAX = 20
TOKENS = 250
TEXT = "word" * TOKENS
PIECE_S_MAX = 0.4
# Of an answer, in nano-dollars.
STEP = STEP_TOKENS * output_price(request(session=SessionId("session")))
POSTED_S_MAX = 20.0
# The waits of the played model, and of a generator's restart.
ANSWER_S_MAX = 30.0
LEASE_S = 6.0
RETRY_S = 0.5
CAUGHT_UP_S = 5.0
# From then on nothing fails any more.
FAULTLESS_AFTER_S = 60.0
RIGHT_WITHIN_S = 120.0
SAMPLE_S = 0.5
HANDLES_MAX = 2_000_000
UNUSED: Any = None


class Nats:
    """The counters and the slots of all processes, and the faults of the requests that reach them."""

    def __init__(self, world: World, beginning: datetime) -> None:
        self.world = world
        self.happened: list[str] = []
        self.is_faultless = False
        self.values: dict[str, int] = {}
        self.last: dict[str, tuple[Seq, datetime, datetime | None]] = {}
        """The sequence, the time and the `upto` of the last message of each counter."""
        self.slots: dict[str, HeldSlot] = {}
        self.beginning = beginning
        self.created = beginning
        """When the stream of the counters was created."""
        self.has_lost = False
        self._newest_slot = BEFORE_FIRST
        self._named: dict[str, Seq] = {}
        self._context = Context()
        self._context.run(PROCESS.set, None)
        self._newest = BEFORE_FIRST
        rough = world.chance() * 0.25
        self._rates = {
            name: rough if world.chance() < 0.5 else 0.0
            for name in ("lost request", "lost acknowledgement", "late write")
        }

    @property
    def now(self) -> datetime:
        return self.beginning + timedelta(seconds=self.world.time())

    def next_slot_seq(self) -> Seq:
        self._newest_slot = Seq(self._newest_slot + 1)
        return self._newest_slot

    def lose_counters(self) -> None:
        """Deletes the stream of the counters, and creates it again."""
        self.happened.append("lost counters")
        self.world.record("nats", "loses its counters")
        self.has_lost = True
        self.created = self.now
        self._newest = BEFORE_FIRST
        for one in (self.values, self.last, self._named):
            one.clear()

    def increment(self, subject: str, amount: int, name: str | None, upto: datetime | None) -> bytes:
        """Adds `amount`, once for each name. Returns the server's reply."""
        if name is not None and name in self._named:
            return msgspec.json.encode({"seq": self._named[name], "duplicate": True})
        seq = self._newest = Seq(self._newest + 1)
        if name is not None:
            self._named[name] = seq
        self.values[subject] = self.values.get(subject, 0) + amount
        self.last[subject] = seq, self.now, upto
        self.world.record("nats", f"{seq}: {subject} {amount:+d} = {self.values[subject]}, {name or 'no name'}")
        return msgspec.json.encode({"seq": seq, "val": str(self.values[subject])})

    async def ask(self, process: Process, call: Any) -> Any:
        """Sends a request of `process` that runs `call`; returns its result. Raises LogUnavailable."""
        process.require_alive()
        world = self.world
        u = 1.0 if self.is_faultless else world.chance()
        for name, rate in self._rates.items():
            if (u := u - rate) < 0:
                self.happened.append(name)
                world.record(process.name, f"suffers a {name}")
                if name == "late write":
                    # It has left the process, which may be frozen meanwhile.
                    world.call_at(world.time() + world.chance() * LATE_S_MAX, call, context=self._context)
                elif name == "lost acknowledgement":
                    call()
                await world.wait(TIMEOUT_S)
                raise LogUnavailable(name)
        result = call()
        await world.wait(0.0005 + world.chance() * 0.002)
        return result


class SimulatedCounters(Counters):
    """The product's Counters, as one process uses them."""

    def __init__(self, nats: Nats, process: Process) -> None:
        self._nats = nats
        self._process = process

    async def _add(self, subject: str, headers: dict[str, str]) -> Any:
        amount, name = int(headers[counters.INCREMENT]), headers.get(counters.MESSAGE_ID)
        upto = datetime.fromisoformat(headers[counters.UPTO]) if counters.UPTO in headers else None
        if amount == 0:
            # Nobody's increment of 0 is late: it has no effect.
            self._process.require_alive()
        reply = await self._nats.ask(self._process, lambda: self._nats.increment(subject, amount, name, upto))
        return counters._decode(reply)  # noqa: SLF001  # as Counters does

    async def read(self, subject: str) -> int:
        value: int = await self._nats.ask(self._process, lambda: self._nats.values.get(subject, 0))
        return value


class SimulatedSlots(Slots):
    """The product's Slots, as one process uses them."""

    def __init__(self, nats: Nats, process: Process) -> None:
        self._nats = nats
        self._process = process

    async def list_held(self, tenant: Tenant, owner: str, what: str) -> list[HeldSlot]:
        prefix = subjects.slots(tenant, owner, what)[:-1]
        held: list[HeldSlot] = await self._nats.ask(
            self._process, lambda: [slot for name, slot in self._nats.slots.items() if name.startswith(prefix)]
        )
        return held

    async def list_all(self, what: str) -> list[HeldSlot]:
        held: list[HeldSlot] = await self._nats.ask(
            self._process, lambda: [slot for name, slot in self._nats.slots.items() if f".{what}." in name]
        )
        return held

    async def acquire(
        self, tenant: Tenant, owner: str, what: str, most: int, holder: str, *, life_s: int | None = None
    ) -> Slot | None:
        assert life_s is None

        def acquire() -> Slot | None:
            for number in range(most):
                name = subjects.slot(tenant, owner, what, number)
                if name not in self._nats.slots:
                    slot = HeldSlot(name, self._nats.next_slot_seq(), holder, self._nats.now)
                    self._nats.slots[name] = slot
                    return Slot(name, slot.seq)
            return None

        slot: Slot | None = await self._nats.ask(self._process, acquire)
        return slot

    async def release(self, seq: Seq) -> None:
        def release() -> None:
            for name, slot in list(self._nats.slots.items()):
                if slot.seq == seq:
                    del self._nats.slots[name]

        await self._nats.ask(self._process, release)


class Turns(MemoryLog):
    """The log of all turns, as the server stores it. Each entry is delivered to persistence."""

    def __init__(self, nats: Nats, deliveries: MemoryDeliveries) -> None:
        super().__init__()
        self.watch: Callable[[TurnKey, Entry], None] = lambda *_: None
        """Called with each new entry."""
        self._nats = nats
        self._deliveries = deliveries

    def store(self, key: TurnKey, entry: Entry) -> StoredEntry:
        stored = StoredEntry(Seq(self._newest + 1), self._nats.now, entry)
        self._nats.world.record("log", f"{stored.seq}: {KINDS[type(entry)]} of {key.turn[-4:]}")
        self.load(key, [stored])
        if isinstance(entry, Request | End):
            self._deliveries.add(key, stored)
        self.watch(key, entry)
        return stored

    async def now(self) -> datetime:
        return self._nats.now


class ProcessLog(MemoryLog):
    """The product's TurnLog, as one process uses it."""

    def __init__(self, turns: Turns, nats: Nats, process: Process) -> None:
        super().__init__()
        self._turns = turns._turns  # noqa: SLF001  # the same turns
        self._all = turns
        self._nats = nats
        self._process = process

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        def publish() -> Seq | None:
            return self._all.store(key, entry).seq if fence == self._all.turn_of(key).tail else None

        try:
            seq: Seq | None = await self._nats.ask(self._process, publish)
        except LogUnavailable as error:
            raise PublishUnclear(str(error), is_answered=False) from error
        if seq is None:
            raise PublishUnclear("10071")
        return seq

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        await self._wait()
        return await super().read(key, after, limit)

    async def read_first(self, key: TurnKey) -> EntryPage:
        await self._wait()
        return await super().read_first(key)

    async def last_seq(self, key: TurnKey, kind: str | None = None) -> Seq:
        await self._wait()
        return await super().last_seq(key, kind)

    async def count(self, key: TurnKey) -> Count:
        await self._wait()
        return await super().count(key)

    async def now(self) -> datetime:
        return self._nats.now

    async def newest_seq(self) -> Seq:
        return await self._all.newest_seq()

    async def _wait(self) -> None:
        self._process.require_alive()
        await self._nats.world.wait(0.001)


class Gateway:
    """A gateway, which is another process after each kill."""

    def __init__(self, schedule: "BudgetSchedule", name: str) -> None:
        self._schedule = schedule
        self._name = name
        self.clock_s = 0.0
        """How far its clock is wrong."""
        self.open()

    def open(self) -> None:
        schedule = self._schedule
        process = self.process = Process(schedule.world, self._name)
        self.log = ProcessLog(schedule.turns, schedule.nats, process)
        limiter = Limiter(
            SimulatedCounters(schedule.nats, process),
            SimulatedSlots(schedule.nats, process),
            self.log,
            LIMITS,
            LIMITS,
            lambda: schedule.nats.now.timestamp() + self.clock_s,
        )
        free: Any = Free()
        self.submitter = TurnSubmitter(
            *(self.log, UNUSED, UNUSED, UNUSED, Settings(), free, free, UNUSED, free, Flag()),
            Admissions(limiter),
            lambda _: nullcontext(),
            str,
        )

    def kill(self) -> None:
        self._schedule.world.record(self._name, "is killed")
        self._schedule.nats.happened.append("gateway killed")
        self.process.kill()
        self._name += "'"
        self.open()

    def post(self, inputs: int, build_s: float) -> None:
        """A client posts a turn, or a batch of some inputs. It does not repeat the POST."""
        self.process.start(self._post(inputs, build_s))

    async def _post(self, inputs: int, build_s: float) -> None:
        async def build(
            _: Draft, __: TurnKey, turn: TurnKey, admission: Admission | None, ___: AsyncExitStack
        ) -> BuiltEntry:
            assert admission is not None
            made = [new_request() for _ in range(max(inputs, 1))]
            if not inputs:
                entry = await admission.reserve_turn(turn.turn, made[0])
            else:
                reserved = await admission.reserve_batch(turn.turn, made, inputs)
                batch = Batch("0" * 64, 1, inputs, reserved.parallel)
                if together := getattr(reserved, "together", None):
                    batch = msgspec.structs.replace(batch, holds=together)
                self._schedule.inputs[turn] = [
                    msgspec.structs.replace(one, holds=holds) for one, holds in zip(made, reserved.each, strict=True)
                ]
                entry = msgspec.structs.replace(new_request(), holds=reserved.slots, batch=batch)
            # Blobs are stored.
            await self._schedule.world.wait(build_s)
            return entry, 0

        draft = Draft(Principal(Scope(TENANT, WHOLE), key=KEY), b"{}", path="/v1/turns")
        try:
            await self.submitter.store(draft, build)
        except (Refused, LogError) as error:
            self._schedule.nats.happened.append(f"refused: {type(error).__name__}")


class Free:
    """Takes the place of the checks that refuse no request here."""

    def require_room(self) -> None:
        """There is room."""

    def check(self, *_: object) -> None:
        """There is no queue."""


def new_request() -> Request:
    return request(session=SessionId("session"), by=KEY, max_tokens=MAX_TOKENS)


class Generators:
    """All generators as one process, which has each turn until it is settled. It is killed and started again."""

    def __init__(self, schedule: "BudgetSchedule") -> None:
        self._schedule = schedule
        self._name = "generator"
        self.waiting: dict[TurnKey, None] = {}
        """The turns that are not settled and acknowledged."""
        self.cancelled: set[TurnKey] = set()
        self.open()

    @property
    def is_done(self) -> bool:
        return not self.waiting

    def open(self) -> None:
        schedule = self._schedule
        self.process = Process(schedule.world, self._name)
        self._log = ProcessLog(schedule.turns, schedule.nats, self.process)
        self._settlement = Settlement(
            SimulatedCounters(schedule.nats, self.process), SimulatedSlots(schedule.nats, self.process)
        )
        self._limits = CostLimits(
            SimulatedCounters(schedule.nats, self.process), SimulatedRecords(schedule, self.process)
        )
        for key in self.waiting:
            self.process.start(self._run(key))

    def kill(self) -> None:
        if self.process.is_dead:
            return
        self._schedule.nats.happened.append("generator killed")
        self._schedule.world.record(self._name, "is killed")
        self.process.kill()
        self._name += "'"
        self._schedule.world.call_after(LEASE_S, self.open)

    def add(self, key: TurnKey) -> None:
        """Delivers a turn."""
        self.waiting[key] = None
        if not self.process.is_dead:
            self.process.start(self._run(key))

    async def _run(self, key: TurnKey) -> None:
        world = self._schedule.world
        await world.wait(world.chance() ** 2 * ANSWER_S_MAX)
        while True:
            try:
                turn = fold(self._schedule.turns.stored[key])
                if turn.end is None:
                    turn = await (self._run_batch if turn.request and turn.request.batch else self._end)(key, turn)
                await self._settlement.settle(key, turn, await self._limits.steps_of(key, turn))
            except (LogError, FenceLost):
                await world.wait(RETRY_S)
            else:
                break
        self.waiting.pop(key, None)

    async def _end(self, key: TurnKey, turn: Turn) -> Turn:
        """Answers the turn: calls the model, unless it is cancelled, and appends the end."""
        outcome: Outcome = "cancelled" if key in self.cancelled else "completed"
        if outcome == "completed" and turn.request is not None and turn.request.batch is None and not turn.attempt:
            await self._answer(key, turn)
            turn = fold(self._schedule.turns.stored[key])
        await self._log.append(key, turn.chain, build_end(turn, outcome))
        return fold(self._schedule.turns.stored[key])

    async def _answer(self, key: TurnKey, turn: Turn) -> None:
        """Plays the model, and reserves steps as the answer grows. A later generator ends what it finds."""
        self.process.require_alive()
        if await self._limits.find_cut(key, turn, MakeAttempt(1, "fresh")) is not None:
            return
        self._store(key, attempt(turn.chain))
        pieces = 1 + self._schedule.world.below(PIECES_MAX)
        texts = [events.BlockDelta(0, events.TextDelta(TEXT)) for _ in range(pieces)]
        with suppress(CloseCall):
            count = self._limits.begin_call(key, fold(self._schedule.turns.stored[key]))
            for one in (*opening_events(), *texts, *closing_events(pieces * TOKENS)):
                self.process.require_alive()
                self._store(key, event(fold(self._schedule.turns.stored[key]).chain, one))
                if count is not None and (wait := count(ModelEvent(one, events.encode(one)))) is not None:
                    await wait()
                await self._schedule.world.wait(self._schedule.world.chance() * PIECE_S_MAX)

    def _store(self, key: TurnKey, entry: Entry) -> Chain:
        self._schedule.turns.store(key, entry)
        return fold(self._schedule.turns.stored[key]).chain

    async def _run_batch(self, key: TurnKey, turn: Turn) -> Turn:
        """Stores the turns of the inputs one after the other, until the batch is cancelled, and ends the batch."""
        world = self._schedule.world
        for number, entry in enumerate(self._schedule.inputs[key]):
            await world.wait(world.chance() * 4.0)
            child = TurnKey(key.tenant, TurnId(f"{key.turn}-{number}"))
            if key in self.cancelled or child in self._schedule.turns.stored:
                continue
            self.process.require_alive()
            self._schedule.turns.store(child, entry)
        return await self._end(key, turn)


class Persistence:
    """The Recorder and the reconciliation, in a process that is killed and started again."""

    def __init__(self, schedule: "BudgetSchedule") -> None:
        self._schedule = schedule
        self._name = "persistence"
        self.database = copy_of(_template())
        self.open()

    def open(self) -> None:
        schedule = self._schedule
        process = self.process = Process(schedule.world, self._name)
        log: Any = ProcessLog(schedule.turns, schedule.nats, process)
        database: Any = SQLiteInLoop(self.database)
        self.store = Store(database, TABLES)
        tombstones: Any = NoTombstones()
        queue = DeliveryQueue()
        recorder = Recorder(
            log, tombstones, schedule.deliveries, self.store.without_queue(), (), queue, batch_max=100, retry_wait_s=1.0
        )
        caught_up = SharedCatchUp(schedule.deliveries, queue.has_recorded, lambda: recorder.failure, CAUGHT_UP_S).wait
        process.start(recorder.run(schedule.world.never))
        process.start(self._reconcile(new_reconciler(schedule, process, log, self.store, caught_up)))

    async def _reconcile(self, reconciler: Reconciler) -> None:
        while True:
            with suppress(LogError):
                await reconciler.run_round()
            await self._schedule.world.wait(ROUND_S)

    def kill(self) -> None:
        if self.process.is_dead:
            return
        self._schedule.nats.happened.append("persistence killed")
        self._schedule.world.record(self._name, "is killed")
        self.process.kill()
        self._name += "'"
        self._schedule.world.call_after(1.0, self.open)

    def costs(self) -> dict[str, int]:
        """Returns the recorded cost of each period of each owner, by the subject of its counter."""
        found: dict[str, int] = {}
        rows = self.database.execute("SELECT dimension, key, day, cost_nusd FROM totals").fetchall()
        for dimension, key, day, cost in rows:
            if dimension not in ("day", "key"):
                continue
            owner = "tenant" if dimension == "day" else counter_name("k_", key)
            at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
            for what, period in (("usd_day", f"{at:%Y-%m-%d}"), ("usd_month", f"{at:%Y-%m}")):
                name = subjects.budget(TENANT, owner, what, period)
                found[name] = found.get(name, 0) + cost
        return found


class SimulatedReader(BudgetReader):
    """The product's BudgetReader, as one process uses it."""

    def __init__(self, nats: Nats, process: Process) -> None:
        self._nats = nats
        self._process = process
        self._seen = BEFORE_FIRST
        self._of: datetime | None = None
        """The creation of the stream that was read last."""

    async def read(self, subject: str) -> Changes:
        changes: Changes = await self._nats.ask(self._process, self._changes)
        return changes._replace(counted={name: one for name, one in changes.counted.items() if name == subject})

    async def read_changed(self, filters_at: Callable[[datetime], Sequence[str]]) -> Changes:
        changes: Changes = await self._nats.ask(self._process, self._changes)
        is_new, self._of = self._of != changes.created, changes.created
        seen = BEFORE_FIRST if is_new else self._seen
        changed = {name: one for name, one in changes.counted.items() if one.seq > seen}
        self._seen = max((one.seq for one in changed.values()), default=seen)
        kept = {tuple(one.split(".")[3:]) for one in filters_at(changes.now)}
        counted = {name: one for name, one in changed.items() if tuple(name.split(".")[3:]) in kept}
        return changes._replace(counted=counted, is_new=is_new)

    async def oldest(self, _: str) -> Counted:
        """No name is forgotten."""
        return Counted(0, BEFORE_FIRST, self._nats.beginning)

    def _changes(self) -> Changes:
        nats = self._nats
        counted = {
            name: Counted(nats.values[name], seq, at, upto)
            for name, (seq, at, upto) in nats.last.items()
            if name.startswith("budgets.")
        }
        return Changes(counted, nats.now, nats.created, is_new=False)


class SimulatedRecords(StepRecords):
    """The product's StepRecords, as one process uses them."""

    def __init__(self, schedule: "BudgetSchedule", process: Process) -> None:
        self._stored = schedule.records
        self._nats = schedule.nats
        self._process = process

    async def read(self, key: TurnKey) -> StepRecord:
        record: StepRecord = await self._nats.ask(self._process, lambda: self._stored.get(key, StepRecord()))
        return record

    async def write(self, key: TurnKey, record: StepRecord) -> int | None:
        def write() -> int | None:
            if self._stored.get(key, StepRecord()).revision != record.revision:
                return None
            self._stored[key] = record._replace(revision=record.revision + 1)
            return record.revision + 1

        revision: int | None = await self._nats.ask(self._process, write)
        return revision


def new_reconciler(
    schedule: "BudgetSchedule", process: Process, log: TurnLog, store: Store, caught_up: CatchUp
) -> Reconciler:
    """Returns the product's Reconciler with the services of one process."""
    nats: Any = SimpleNamespace(client=SimpleNamespace(new_inbox=lambda: "inbox"), jetstream=UNUSED)
    made = Reconciler(nats, UNUSED, log, ReservationTable(store), caught_up)
    made._reader = SimulatedReader(schedule.nats, process)  # noqa: SLF001
    made._increments = SimulatedCounters(schedule.nats, process)  # noqa: SLF001
    made._slots = SimulatedSlots(schedule.nats, process)  # noqa: SLF001
    made._step_records = SimulatedRecords(schedule, process)  # noqa: SLF001
    return made


class NoTombstones:
    """No turn is deleted."""

    async def exists(self, _: TurnKey) -> bool:
        return False

    is_deleted = exists


@cache
def _template() -> sqlite3.Connection:
    return new_template()


class BudgetSchedule:
    """Turns and batches of one key at two gateways, and the budgets of the key and of the tenant."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.seed = seed
        world = self.world = World(seed, is_traced=is_traced)
        # In half of the schedules a day ends, and in half of these a month.
        ends = datetime(2026, 2, 1, tzinfo=UTC) - timedelta(days=world.below(2))
        before_s = world.chance() * FAULTLESS_AFTER_S if world.chance() < 0.5 else 6 * 3600
        nats = self.nats = Nats(world, ends - timedelta(seconds=before_s))
        self.deliveries = MemoryDeliveries()
        self.turns = Turns(nats, self.deliveries)
        self.inputs: dict[TurnKey, list[Request]] = {}
        """The requests of each batch that was or will be stored."""
        self._ids = 0
        self.records: dict[TurnKey, StepRecord] = {}
        self.generators = Generators(self)
        self.turns.watch = self._deliver
        self.persistence = Persistence(self)
        self.gateways = [Gateway(self, f"gateway-{n}") for n in range(2)]
        if world.chance() < 0.3:
            self.gateways[0].clock_s = world.chance() * 120 - 60
        self.worst: dict[str, Budget] = {}
        """The sample of each budget in which most was left beyond what the recorded cost allows."""
        self.right_after_s = 0.0
        """How long after the faults and the last turn every budget was right."""

    def play(self) -> None:
        """Runs the schedule until every budget is right, or RIGHT_WITHIN_S after the end of all faults and turns."""
        world = self.world
        world.call_after(FAULTLESS_AFTER_S, self._end_faults)
        for _ in range(1 + world.below(POSTS_MAX)):
            gateway = self.gateways[world.below(2)]
            inputs = INPUTS if world.chance() < 0.3 else 0
            world.call_after(world.chance() * POSTED_S_MAX, gateway.post, inputs, world.chance() ** 4 * 60.0)
        for gateway in self.gateways:
            for _ in range(world.below(3)):
                world.call_after(world.chance() * FAULTLESS_AFTER_S / 2, gateway.kill)
            if world.chance() < 0.2:
                world.call_after(world.chance() * POSTED_S_MAX, self._freeze, gateway)
        for one in (self.generators, self.persistence):
            for _ in range(world.below(3)):
                world.call_after(world.chance() * FAULTLESS_AFTER_S, one.kill)
        for _ in range(world.below(3)):
            world.call_after(world.chance() * FAULTLESS_AFTER_S, self._cancel)
        if world.chance() < 0.15:
            world.call_after(world.chance() * FAULTLESS_AFTER_S, self.nats.lose_counters)
        world.call_after(SAMPLE_S, self._sample)
        # The jitter of the product's retries.
        random.seed(self.seed)
        with (
            patch.object(asyncio, "to_thread", run_here),
            patch.object(submit, "new_id", self._new_id),
            only_failures(world.failures),
        ):
            world.run_while(self._is_running, HANDLES_MAX)
            for process in world.processes:
                process.kill()
            world.run_while(lambda: any(process.is_busy for process in world.processes), 2 * HANDLES_MAX)

    def _new_id(self) -> str:
        self._ids += 1
        return f"turn-{self._ids}"

    def _deliver(self, key: TurnKey, entry: Entry) -> None:
        if isinstance(entry, Request):
            self.generators.add(key)

    def _freeze(self, gateway: Gateway) -> None:
        self.nats.happened.append("gateway frozen")
        gateway.process.freeze(self.world.chance() * FREEZE_S_MAX)

    def _cancel(self) -> None:
        running = [key for key, stored in self.turns.stored.items() if not isinstance(stored[-1].entry, End)]
        if running:
            self.generators.cancelled.add(running[self.world.below(len(running))])
            self.nats.happened.append("cancelled")

    def _end_faults(self) -> None:
        self.nats.is_faultless = True
        # Each schedule has a turn.
        self.gateways[1].post(0, 0.0)

    def _sample(self) -> None:
        if self.nats.has_lost:
            # Until they are compared, the new counters lack what was spent before. Only the end is judged.
            self.worst.clear()
            return
        for budget in self.budgets():
            late = self._late_cost(budget.name)
            budget = msgspec.structs.replace(budget, left=budget.left - late)  # noqa: PLW2901
            if budget.left + budget.recorded > budget.limit:
                self.world.record("judge", f"too much is left: {budget}")
            worst = self.worst.get(budget.name)
            if worst is None or budget.left + budget.recorded > worst.left + worst.recorded:
                self.worst[budget.name] = budget
        self.world.call_after(SAMPLE_S, self._sample)

    def _late_cost(self, name: str) -> int:
        """Returns the cost of ended turns that the budget lacks until a generator has settled them.

        That is what an answer has cost beyond its reservation when its generator died, at most a step; and the whole
        cost of a turn that was reserved before the period of the budget.
        """
        found = 0
        for key, stored in self.turns.stored.items():
            first, last = stored[0], stored[-1]
            if not isinstance(first.entry, Request) or not isinstance(last.entry, End):
                continue
            if key not in self.generators.waiting:
                continue
            steps = self.records.get(key, StepRecord()).steps
            holds = {hold.subject: hold.amount for hold in first.entry.holds or () if hold.unit == "nusd"}
            if name in holds:
                reserved = holds[name] + sum(step.amount for step in steps if step.subject == name)
                found += min(STEP, max(0, last.entry.cost_nano_usd - reserved))
            elif name in {subjects.budget_at(one, first.at) for one in holds}:
                found += last.entry.cost_nano_usd
        return found

    def _is_running(self) -> bool:
        world = self.world
        if world.failures:
            return False
        is_quiet = self.nats.is_faultless and self.generators.is_done and not self._is_posting()
        if not is_quiet:
            self._quiet_since_s = world.time()
            return True
        self.right_after_s = world.time() - self._quiet_since_s
        return self.right_after_s < RIGHT_WITHIN_S and (
            not self.deliveries.is_done or any(budget.held for budget in self.budgets())
        )

    def _is_posting(self) -> bool:
        return any(gateway.process.is_busy for gateway in self.gateways)

    def budgets(self) -> list[Budget]:
        """Returns the state of every counter whose period has not ended, and of the slots."""
        costs = self.persistence.costs()
        holds = [hold for stored in self.turns.stored.values() for hold in _holds_of(stored)]
        today = f"{self.nats.now:%Y-%m-%d}"
        names = {name for name in {*self.nats.values, *costs} if name.split(".")[3] in MOST}
        names = {name for name in names if (period := name.rpartition(".")[2]) >= today[: len(period)]}
        money = [
            Budget(
                name=name,
                limit=(limit := MOST[name.split(".")[3]]),
                left=limit - self.nats.values.get(name, 0),
                recorded=costs.get(name, 0),
                reserved=sum(hold.amount for hold in holds if hold.subject == name),
            )
            for name in sorted(names)
        ]
        running = [hold.subject for hold in holds if hold.unit == "slot"]
        taken = [
            Budget(name=f"{name} {slot.seq} {slot.holder}", limit=1, left=0, reserved=running.count(name))
            for name, slot in self.nats.slots.items()
        ]
        return [*money, *taken]


def _holds_of(stored: Sequence[StoredEntry]) -> Sequence[Reservation]:
    request, last = stored[0].entry, stored[-1].entry
    return request.holds or () if isinstance(request, Request) and not isinstance(last, End) else ()


MOST = {
    "usd_day": round((LIMITS.usd_day or 0) * NANO_USD_PER_USD),
    "usd_month": round((LIMITS.usd_month or 0) * NANO_USD_PER_USD),
}


def judge(schedule: BudgetSchedule) -> Verdict:
    """Returns the verdict of promise 6; its evidence begins with the seed."""
    if schedule.world.failures:
        verdict = Verdict(False, f"{schedule.world.failures[0]!r} was not expected")
    else:
        verdict = nothing_held(History(budgets=tuple(schedule.budgets()), samples=tuple(schedule.worst.values())))
    return verdict._replace(evidence=f"seed {schedule.seed}: {verdict.evidence}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.schedules.budgets", description="Plays schedules.")
    parser.add_argument("--seed", type=int, help="play this seed alone")
    parser.add_argument("--seeds", type=int, default=200, help="play so many")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    given = parser.parse_args()
    wrong = 0
    for seed in range(given.seeds) if given.seed is None else [given.seed]:
        schedule = BudgetSchedule(seed, is_traced=given.trace)
        schedule.play()
        verdict = judge(schedule)
        if schedule.world.trace is not None:
            print("\n".join(schedule.world.trace))
        wrong += not verdict.is_green
        if not verdict.is_green or given.seed is not None:
            print(f"{verdict.evidence or 'right'}, {schedule.right_after_s:.0f} s after the last turn and fault")
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
