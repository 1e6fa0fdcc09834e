"""The history: operations are read back as they were recorded, also those of killed processes and of many writers."""

import os
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import msgspec
import pytest

from tailrace.proto.ids import Seq, Tenant, TurnId
from tests.checker import run, sample_run
from tests.checker.history import HISTORY, ClockReading, Fault, Get, Post, Read, RecordedOperation, Recorder, read
from tests.checker.invariants import judge
from tests.promises import Frame

GET = Get(tenant=Tenant("t"), turn=TurnId("turn"))


def summary(operation: RecordedOperation) -> tuple[object, ...]:
    return operation.process, operation.number, operation.outcome, operation.returned is not None


def test_an_operation_is_recorded_before_it_begins_and_with_its_outcome(tmp_path: Path) -> None:
    """An operation that reports nothing, or raises, is `info`. Its first line is written before it begins."""
    recorder = Recorder(tmp_path / HISTORY, "reader")
    with recorder.recording(GET) as recording:
        assert [summary(one) for one in read(tmp_path / HISTORY)] == [("reader", 1, "info", False)]
        recording.ok(status=200, cursor=Seq(7))
    with recorder.recording(GET) as recording:
        recording.fail(status=404)
    with recorder.recording(Post()):
        pass
    with pytest.raises(OSError, match="cut"), recorder.recording(Post()):
        raise OSError("cut")
    first, second, *unclear = read(tmp_path / HISTORY)
    assert isinstance(first, Get)
    assert (first.cursor, first.status) == (7, 200)
    assert [summary(one) for one in (first, second)] == [("reader", 1, "ok", True), ("reader", 2, "fail", True)]
    assert first.invoked <= (first.returned or 0) <= second.invoked
    assert [summary(one) for one in unclear] == [("reader", 3, "info", True), ("reader", 4, "info", True)]


# Earlier tests may have left threads in this process.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@forks
def test_the_last_operation_of_a_killed_process_has_not_returned(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with Recorder(tmp_path / HISTORY, "killed").recording(Fault(kind="kill")):
            os.kill(os.getpid(), SIGKILL)
    os.waitpid(child, 0)
    (operation,) = read(tmp_path / HISTORY)
    assert summary(operation) == ("killed", 1, "info", False)


@forks
def test_many_processes_write_one_history_in_whole_lines(tmp_path: Path) -> None:
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            recorder = Recorder(tmp_path / HISTORY, f"reader {number}")
            for _ in range(200):
                with recorder.recording(Read(frames=(Frame(Seq(1), b"x" * 5000),))) as recording:
                    recording.ok()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    operations = read(tmp_path / HISTORY)
    assert len({(one.recorder, one.number) for one in operations}) == len(operations) == 800
    assert [one.invoked for one in operations] == sorted(one.invoked for one in operations)
    assert {one.outcome for one in operations} == {"ok"}


def test_two_recorders_of_one_process_do_not_replace_each_others_operations(tmp_path: Path) -> None:
    for _ in range(2):
        recorder = Recorder(tmp_path / HISTORY, "injector")
        with recorder.recording(Fault(kind="kill")) as recording:
            recording.ok()
        recorder.close()
    assert [summary(one) for one in read(tmp_path / HISTORY)] == [("injector", 1, "ok", True)] * 2


def test_the_nearest_clock_reading_converts_a_time_of_the_log(tmp_path: Path) -> None:
    Recorder(tmp_path / HISTORY, "clock").read_clock()
    (reading,) = read(tmp_path / HISTORY)
    assert isinstance(reading, ClockReading)
    later = msgspec.structs.replace(reading, wall=reading.wall + 10**12, invoked=reading.invoked + 10**12 + 777_000)
    both = run.Run(operations=[reading, later])
    for one in (reading, later):
        at = run.EPOCH + timedelta(microseconds=one.wall // 1000)
        assert abs((both.monotonic(at) or 0) - one.invoked) < 1000
    assert run.Run().monotonic(run.EPOCH) is None


def test_a_saved_run_is_judged_like_the_original(tmp_path: Path) -> None:
    original = sample_run.run()
    run.save(tmp_path, original)
    encoder = msgspec.json.Encoder()
    (tmp_path / HISTORY).write_bytes(b"".join(encoder.encode(one) + b"\n" for one in original.operations))
    loaded = run.load(tmp_path)
    assert judge(loaded) == judge(original)
    fields = ("operations", "log", "rows", "blobs", "final")
    assert [getattr(loaded, name) for name in fields] == [getattr(original, name) for name in fields]
