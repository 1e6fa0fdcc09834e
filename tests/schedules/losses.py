"""Schedules in which the log loses one entry of the turn, beside all other faults (PROTOCOL R144)."""

import asyncio
from random import Random
from typing import Any

from tailrace.generators.rpc import end_damaged_turn
from tailrace.persistence.damaged_turns import DamagedTurns
from tailrace.proto.entries import Attempt, End, StoredEntry
from tailrace.proto.errors import Refused
from tailrace.proto.fold import fold
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.model_records import END_DAMAGED_TURN
from tests.harness.readers import select_valid
from tests.promises import KEPT, History, Verdict, nothing_held
from tests.schedules.generator import Generator
from tests.schedules.judge import budgets
from tests.schedules.schedule import Schedule
from tests.schedules.server import SimulatedLog

# So many seconds after the request, at most, the entry is lost.
LOST_S_MAX = 25.0
# A reader is served, or has the end, within this time after all faults: a minute, and retries.
ENDED_S_MAX = 90.0


class Rpc:
    """Sends the query `end_damaged_turn` to a generator."""

    def __init__(self, generators: list[Generator]) -> None:
        self._generators = generators

    async def request(self, tenant: Tenant, name: str, body: bytes, **_: Any) -> bytes:
        assert name == END_DAMAGED_TURN
        generator = self._generators[0]
        log = generator.log
        try:
            return await end_damaged_turn(log, generator.settlement.settle, tenant, body)
        except asyncio.CancelledError as error:
            if generator.log is log:
                raise
            # It was killed meanwhile.
            raise Refused("generators_unavailable", "no answer in time") from error


class Loss(Schedule):
    """A schedule with a loss. `lost` is the entry, None if the turn was short."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        super().__init__(seed, is_traced=is_traced)
        self._dice = Random(f"loss {seed}")
        self.lost: StoredEntry | None = None
        self.lost_at_s = 0.0
        log: Any = SimulatedLog(self.server, self.recorder.process)
        rpc: Any = Rpc(self.generators)
        store: Any = self.recorder.store
        self._damaged = DamagedTurns(log, store, rpc)
        for reader in self.readers:
            reader.log.ask_recorder = self._has_end

    async def _has_end(self, _: TurnKey) -> bool:
        record = self.recorder.record
        return record is not None and record.outcome != "running"

    def play(self) -> None:
        self.world.call_after(self._dice.random() ** 2 * LOST_S_MAX, self._lose)
        self.recorder.process.start(self._damaged.run(self.world.never))
        super().play()

    def _lose(self) -> None:
        """Loses an entry after the request, often the last one."""
        last = len(self.server.stored) - 1
        number = last if self._dice.random() < 0.3 else self._dice.randint(1, max(last, 1))
        record = self.recorder.record
        is_recorded = record is not None and record.outcome != "running"
        if last < 1 or (isinstance(self.server.stored[number].entry, End) and not is_recorded):
            # An end that is lost before persistence has recorded it leaves no trace.
            self.world.call_after(0.5, self._lose)
            return
        self.lost = self.server.lose(number)
        self.lost_at_s = self.world.time()
        # The feeds are subscribed again, as after the restart of a server.
        for feed in self.server.feeds:
            feed.feed.reset()

    def _is_running(self) -> bool:
        if self.world.failures or self.world.time() > self.lost_at_s + 10 * ENDED_S_MAX:
            return False
        record = self.recorder.record
        is_ended = record is not None and record.outcome != "running"
        return self.lost is None or not is_ended or not all(reader.is_over for reader in self.readers)


def judge(schedule: Loss) -> Verdict:
    """Each reader has the log's valid end, or was sent to the database, which has an end, too.

    Without a loss in the middle, nothing counts as damage, whatever forks there are.
    """
    stored = schedule.server.stored
    turn, valid = fold(stored), select_valid(stored)
    record = schedule.recorder.record

    def fail(why: str) -> Verdict:
        return Verdict(False, f"seed {schedule.seed}: {why}; lost {schedule.lost and schedule.lost.seq}")

    if schedule.world.failures:
        return fail(f"{schedule.world.failures[0]!r} was not expected")
    if record is None or record.outcome == "running":
        return fail("the database has no end")
    if turn.end is not None and turn.outcome != record.outcome:
        return fail(f"the log has {turn.outcome}, and the database {record.outcome}")
    for reader in schedule.readers:
        if not reader.is_over:
            return fail(f"{reader.name} waits")
        if not reader.is_recorded and turn.end is not None and reader.received[-1] is not valid[-1]:
            return fail(f"{reader.name} has another end than the log")
    attempts = sum(isinstance(one.entry, Attempt) for one in stored) + isinstance(
        schedule.lost and schedule.lost.entry, Attempt
    )
    calls = sum(generator.calls for generator in schedule.generators)
    # A turn is settled before its request is acknowledged. A damaged one may be settled by the reconciliation alone
    # (R148), which does not run here.
    if turn.end is not None and schedule.requests.is_done and not schedule.server.damaged:
        held = nothing_held(History(budgets=tuple(budgets(schedule.server, turn))))
        if not held.is_green:
            return fail(held.evidence)
    return KEPT if calls <= attempts else fail(f"{calls} calls for {attempts} attempts")
