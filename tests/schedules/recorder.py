"""Persistence: the product's Recorder, with a store in memory."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rows import TurnRow, build_row, turn_record
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.records import TurnRecord
from tests.schedules.consumer import SimulatedConsumer, SimulatedDeliveries
from tests.schedules.process import Process
from tests.schedules.server import SimulatedLog, SimulatedServer

RETRY_WAIT_S = 1.0
BATCH_MAX = 10
UNUSED: Any = None


class SimulatedStore:
    """The product's Store for one turn. The row of an ended turn is never overwritten by that of a running one."""

    system = "sqlite"
    answered_at = 0.0

    def __init__(self, process: Process) -> None:
        self.row: TurnRow | None = None
        self._process = process

    async def record(self, rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:  # noqa: ARG002
        self._process.require_alive()
        for row in rows:
            if row.ended_at is not None or self.row is None or self.row.ended_at is None:
                self.row = row
            self._process.world.record(self._process.name, f"writes {row.outcome}")

    def build_row(self, key: TurnKey, turn: Turn) -> TurnRow:
        return build_row(key, turn)

    def raise_if_damaged(self) -> None:
        """It is never damaged."""

    async def fail_expired(self, first: Seq) -> int:  # noqa: ARG002
        return 0

    async def running_turns(self) -> list[TurnKey]:
        return []


async def _keep(_: TurnKey, __: Turn) -> bool:
    """Diverts no turn."""
    return False


class SimulatedRecorder:
    """A Recorder in a process of its own."""

    def __init__(self, server: SimulatedServer, consumer: SimulatedConsumer) -> None:
        self.process = Process(server.world, "recorder")
        self._store = SimulatedStore(self.process)
        store: Any = self._store
        log, deliveries = SimulatedLog(server, self.process), SimulatedDeliveries(consumer, self.process)
        self._recorder = Recorder(log, UNUSED, deliveries, store, _keep, batch_max=BATCH_MAX, retry_wait_s=RETRY_WAIT_S)

    def start(self) -> None:
        self.process.start(self._recorder.run(self.process.world.never))

    @property
    def record(self) -> TurnRecord | None:
        """The turn as the database has it."""
        row = self._store.row
        return turn_record(msgspec.structs.asdict(row)) if row is not None else None
