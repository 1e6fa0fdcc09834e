"""Persistence: the product's Recorder, with a store in memory."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rows import TurnRow, turn_record
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.testing import MemoryStore
from tests.schedules.consumer import SimulatedConsumer, SimulatedDeliveries
from tests.schedules.process import Process
from tests.schedules.server import SimulatedLog, SimulatedServer

RETRY_WAIT_S = 1.0
BATCH_MAX = 10
UNUSED: Any = None


class SimulatedStore(MemoryStore):
    """The store of one process, for one turn."""

    system = "sqlite"

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    async def record(self, rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:
        self._process.require_alive()
        await super().record(rows, reached)
        for row in rows:
            self._process.world.record(self._process.name, f"writes {row.outcome}")

    async def running_turns(self) -> list[TurnKey]:
        return []


class SimulatedRecorder:
    """A Recorder in a process of its own."""

    def __init__(self, server: SimulatedServer, consumer: SimulatedConsumer) -> None:
        self.process = Process(server.world, "recorder")
        self.store = SimulatedStore(self.process)
        store: Any = self.store
        log, deliveries = SimulatedLog(server, self.process), SimulatedDeliveries(consumer, self.process)
        self._recorder = Recorder(log, UNUSED, deliveries, store, (), batch_max=BATCH_MAX, retry_wait_s=RETRY_WAIT_S)

    def start(self) -> None:
        self.process.start(self._recorder.run(self.process.world.never))

    @property
    def record(self) -> TurnRecord | None:
        """The turn as the database has it."""
        row = next(iter(self.store.rows.values()), None)
        return turn_record(msgspec.structs.asdict(row)) if row is not None else None
