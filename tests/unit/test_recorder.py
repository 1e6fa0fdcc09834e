"""How many transactions the recorder needs for a stream of turns, and what it reports when they fail."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tailrace.persistence.recorder import Recorder
from tailrace.persistence.store import Store
from tailrace.proto.entries import End
from tailrace.proto.errors import StoreBusy, StoreUnwritable
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.testing import MemoryDeliveries, MemoryLog, MemoryStore, MemoryTombstones
from tests.harness.turn_builder import completed_turn, request
from tests.harness.until import until
from tests.harness.virtual_time import run

TURNS = 100
KEYS = [TurnKey(Tenant("t"), TurnId(f"turn-{number}")) for number in range(TURNS)]
UNUSED: Any = None


class Ends:
    """A log in which one turn has ended each `every_s`, and the deliveries of their ends."""

    def __init__(self, every_s: float) -> None:
        self.log, self.deliveries, self.all_done = MemoryLog(), MemoryDeliveries(), asyncio.Event()
        self._ending = asyncio.create_task(self._end_turns(every_s))

    async def _end_turns(self, every_s: float) -> None:
        for key in KEYS:
            await asyncio.sleep(every_s)
            self.log.turn_of(key).watches.append(self.deliveries.watch(key, End))
            self.log.load(key, completed_turn("done").stored)
        await until(lambda: self.deliveries.is_done, 60)
        self.all_done.set()

    def recorder(self, store: Any) -> Recorder:
        return Recorder(self.log, UNUSED, self.deliveries, store, (), batch_max=TURNS, retry_wait_s=1)


def database(write_s: float, errors: Iterable[Exception] = (), statements: int = 1) -> MemoryStore:
    """A transaction has some statements, and takes `write_s`. The first ones fail with `errors`."""
    store, left = MemoryStore(), list(errors)

    async def write() -> None:
        for _ in range(statements):
            await asyncio.sleep(write_s / statements)
            store.answered_at = asyncio.get_running_loop().time()
        if left:
            raise left.pop(0)

    store.write = write
    return store


def transactions(*, every_s: float, write_s: float) -> int:
    """Returns the number of transactions in which `TURNS` turns are recorded."""

    async def record() -> int:
        ends, store = Ends(every_s), database(write_s)
        await ends.recorder(store).run(ends.all_done)
        assert list(store.rows) == KEYS
        return store.transactions

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
        ends = Ends(1)
        recorder = ends.recorder(database(write_s, errors, statements))
        failures = {}

        async def watch() -> None:
            while True:
                await asyncio.sleep(3)
                failures[asyncio.get_running_loop().time()] = recorder.failure

        watching = asyncio.create_task(watch())
        await recorder.run(ends.all_done)
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
    answers: Iterator[Exception | float] = iter([StoreBusy("away"), StoreBusy("away"), 12.0])

    async def check() -> None:
        match next(answers, 0.0):
            case float(wait_s):
                await asyncio.sleep(wait_s)
            case Exception() as error:
                raise error

    async def record() -> list[str]:
        store: Any = MemoryStore()
        store.check = check
        recorder = Recorder(MemoryLog(), UNUSED, MemoryDeliveries(), store, (), batch_max=TURNS, retry_wait_s=1)
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


@pytest.mark.rule("R35")
@pytest.mark.parametrize("parent", ["deleted", "unknown", "posted again"])
def test_only_a_follow_up_of_a_deleted_turn_is_removed_from_the_log(parent: str) -> None:
    """A killed gateway has stored it after the deletion had searched for follow-ups.

    A log and a database may have lost the parent, and a POST may have stored a turn again under its id.
    """

    async def record() -> tuple[set[TurnKey], set[TurnKey]]:
        root, follow_up = KEYS[:2]
        log, deliveries, store = MemoryLog(), MemoryDeliveries(), MemoryStore()
        tombstones = MemoryTombstones(*([] if parent == "unknown" else [root]))
        if parent == "posted again":
            log.store(root, request())
        deliveries.add(follow_up, log.store(follow_up, request(parent=root.turn)))
        recorder = Recorder(log, tombstones, deliveries, cast("Store", store), (), batch_max=1, retry_wait_s=1)
        stop = asyncio.Event()
        recording = asyncio.create_task(recorder.run(stop))
        await until(lambda: deliveries.is_done)
        stop.set()
        await recording
        return {follow_up} & log.stored.keys(), {follow_up} & store.rows.keys()

    kept = set() if parent == "deleted" else {KEYS[1]}
    assert run(record()) == (kept, kept)
