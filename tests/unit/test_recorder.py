"""How many transactions the recorder needs for a stream of turns, and what it reports when they fail."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from structlog.testing import capture_logs

from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rows import TurnRow, build_row
from tailrace.proto.errors import StoreBusy, StoreUnwritable
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats.leases import Backlog
from tests.harness.turn_builder import NOON, completed_turn
from tests.harness.virtual_time import run

TURNS = 100
TURN = completed_turn("done").turn
UNUSED: Any = None


class EndDelivery(NamedTuple):
    """The delivery of a turn's end, whose entry is read from the log."""

    key: TurnKey
    seq: Seq
    kind: str = "end"
    at: datetime = NOON

    def take_entry(self) -> list[object]:
        return []

    async def ack(self) -> None: ...

    async def release(self, _: float) -> None: ...


class Deliveries:
    """One turn ends each `every_s`."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self.taken = 0
        self.all_taken = asyncio.Event()

    async def next(self, most: int) -> list[EndDelivery]:
        now = asyncio.get_running_loop().time
        await asyncio.sleep((self.taken + 1) * self._every_s - now())
        ended = min(round(now() / self._every_s), TURNS) - self.taken
        first, self.taken = self.taken, self.taken + min(ended, most)
        if self.taken == TURNS:
            self.all_taken.set()
        return [
            EndDelivery(TurnKey(Tenant("t"), TurnId(f"turn-{n}")), Seq(TURN.tail)) for n in range(first, self.taken)
        ]

    async def keep_renewed(self, _: object) -> None:
        await asyncio.Event().wait()

    async def backlog(self) -> Backlog:
        return Backlog(0, 0, Seq(0), Seq(0))

    async def first_seq(self) -> Seq:
        return Seq(1)


class Log:
    async def read_turn_upto(self, _: TurnKey, __: Seq) -> Turn:
        return TURN

    async def find_stored(self, keys: Iterable[TurnKey]) -> set[TurnKey]:
        return set(keys)


class Store:
    """A transaction has some statements, and takes `write_s`. The first ones fail with `errors`."""

    system = "sqlite"
    build_row = staticmethod(build_row)

    def __init__(self, write_s: float, errors: Iterable[Exception] = (), statements: int = 1) -> None:
        self._write_s = write_s
        self._statements = statements
        self.answered_at = 0.0
        self._errors = list(errors)
        self.check_errors: list[Exception] = []
        self.check_s = 0.0
        self.transactions = 0
        self.turns = 0

    async def record(self, rows: Sequence[TurnRow], _: Seq) -> None:
        for _statement in range(self._statements):
            await asyncio.sleep(self._write_s / self._statements)
            self.answered_at = asyncio.get_running_loop().time()
        if self._errors:
            raise self._errors.pop(0)
        self.transactions += 1
        self.turns += len(rows)

    def raise_if_damaged(self) -> None: ...

    async def fail_expired(self, *_: object) -> int:
        if self.check_errors:
            raise self.check_errors.pop(0)
        await asyncio.sleep(self.check_s)
        self.check_s = 0.0
        return 0

    async def running_turns(self) -> list[TurnKey]:
        return []


def transactions(*, every_s: float, write_s: float) -> int:
    """Returns the number of transactions in which `TURNS` turns are recorded."""

    async def record() -> int:
        deliveries: Any = Deliveries(every_s)
        store: Any = Store(write_s)
        log: Any = Log()
        recorder = Recorder(log, UNUSED, deliveries, store, (), batch_max=TURNS, retry_wait_s=1)
        await recorder.run(deliveries.all_taken)
        assert store.turns == TURNS
        return int(store.transactions)

    return run(record())


def test_slow_transactions_become_fewer() -> None:
    """After a fast transaction the next turn is recorded at once; after a slow one, several are recorded together."""
    assert transactions(every_s=0.02, write_s=0.001) == TURNS
    assert transactions(every_s=0.02, write_s=0.01) < TURNS * 0.6


def recorded_turns(
    write_s: float, errors: Sequence[Exception], statements: int = 1
) -> tuple[list[str], dict[float, str]]:
    """Records the turns. Returns what was logged, and the recorder's failure by time."""

    async def record() -> dict[float, str]:
        store: Any = Store(write_s, errors, statements)
        log: Any = Log()
        deliveries: Any = Deliveries(1)
        recorder = Recorder(log, UNUSED, deliveries, store, (), batch_max=TURNS, retry_wait_s=1)
        failures = {}

        async def watch() -> None:
            while True:
                await asyncio.sleep(3)
                failures[asyncio.get_running_loop().time()] = recorder.failure

        watching = asyncio.create_task(watch())
        await recorder.run(deliveries.all_taken)
        watching.cancel()
        return failures

    with capture_logs() as logged:
        failures = run(record())
    return [f"{line['event']}: {line.get('why')}" for line in logged if line["log_level"] != "debug"], failures


def test_a_cause_is_logged_once_until_recording_works_again() -> None:
    """However often the batch is tried again, also if two causes take turns."""
    refused, away = StoreBusy("refused"), StoreUnwritable("away")
    logged, _ = recorded_turns(0.001, [refused, away, refused, refused, away])
    retried = "batch could not be recorded and is retried"
    assert logged == [f"{retried}: refused", f"{retried}: away", "recording works again: None"]


def test_a_database_that_does_not_answer_is_reported_while_the_batch_waits() -> None:
    """Queries are refused at once then, and the process is not ready. It is ready after the answer."""
    logged, failures = recorded_turns(14.0, [])
    why = "the database has not answered for 10 s"
    assert logged[:2] == [f"batch could not be recorded and is retried: {why}", "recording works again: None"]
    assert list(failures.values())[:5] == ["", "", "", why, ""]


def test_a_database_that_answers_slowly_is_not_reported() -> None:
    """A server that is far away answers each statement of a transaction."""
    logged, failures = recorded_turns(14.0, [], statements=10)
    assert (logged, set(failures.values())) == ([], {""})


def test_a_database_that_is_away_is_reported_while_no_turn_is_delivered() -> None:
    """It is looked at every 10 s. The last of these looks has its answer after 12 s."""

    class NoDeliveries(Deliveries):
        async def next(self, _: int) -> list[EndDelivery]:
            await asyncio.sleep(1)
            return []

    async def record() -> list[str]:
        store: Any = Store(0.001)
        store.check_errors, store.check_s = [StoreBusy("away")] * 2, 12.0
        log: Any = Log()
        deliveries: Any = NoDeliveries(1)
        recorder = Recorder(log, UNUSED, deliveries, store, (), batch_max=TURNS, retry_wait_s=1)
        stop = asyncio.Event()
        running = asyncio.create_task(recorder.run(stop))
        failures = []
        for wait_s in (8, 8, 16, 8):
            await asyncio.sleep(wait_s)
            failures.append(recorder.failure)
        stop.set()
        await running
        return failures

    with capture_logs() as logged:
        assert run(record()) == ["away", "away", "the database has not answered for 10 s", ""]
    cannot = "the database cannot be used"
    assert [line["event"] for line in logged] == [cannot, cannot, "the database works again"]
