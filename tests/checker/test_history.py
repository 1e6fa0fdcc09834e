"""What is recorded is what is read, also of a process that was killed in the middle of an operation."""

import os
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import msgspec
import pytest

from tailrace.proto.ids import Seq, Tenant, TurnId
from tests.checker import made, run
from tests.checker.history import HISTORY, Ask, Clock, Done, Fault, Look, Read, Recorder, Recording, read
from tests.checker.invariants import judge
from tests.promises import Frame

LOOK = Look(tenant=Tenant("t"), turn=TurnId("turn"))


def told(operation: Done) -> tuple[object, ...]:
    return operation.process, operation.number, operation.outcome, operation.returned is not None


def test_an_operation_is_as_it_came_out(tmp_path: Path) -> None:
    """It has a number, the times of both its ends, and what was found out on the way."""
    recorder = Recorder(tmp_path / HISTORY, "reader")
    with recorder.recording(LOOK) as looking:
        looking.ok(status=200, cursor=Seq(7))
    with recorder.recording(LOOK) as looking:
        looking.fail(status=404)
    first, second = read(tmp_path / HISTORY)
    assert isinstance(first, Look)
    assert (first.cursor, first.status) == (7, 200)
    assert [told(first), told(second)] == [("reader", 1, "ok", True), ("reader", 2, "fail", True)]
    assert first.invoked <= (first.returned or 0) <= second.invoked


def test_what_says_nothing_or_breaks_is_unclear(tmp_path: Path) -> None:
    """Nobody knows whether it happened, and the history says just that."""
    recorder = Recorder(tmp_path / HISTORY, "asker")
    with recorder.recording(Ask()):
        pass
    with pytest.raises(OSError, match="cut"), recorder.recording(Ask()):
        raise OSError("cut")
    assert [told(one) for one in read(tmp_path / HISTORY)] == [("asker", 1, "info", True), ("asker", 2, "info", True)]


def test_what_a_killed_process_was_doing_is_known(tmp_path: Path) -> None:
    """Its last operation was invoked and never returned."""
    child = os.fork()
    if not child:
        with Recorder(tmp_path / HISTORY, "killed").recording(Fault(kind="kill")):
            os.kill(os.getpid(), SIGKILL)
    os.waitpid(child, 0)
    (operation,) = read(tmp_path / HISTORY)
    assert told(operation) == ("killed", 1, "info", False)


def test_many_processes_write_one_history(tmp_path: Path) -> None:
    """No line is torn by another, and what is read is in the order in which it began."""
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            recorder = Recorder(tmp_path / HISTORY, f"reader {number}")
            for _ in range(200):
                with recorder.recording(Read(frames=(Frame(Seq(1), b"x" * 5000),))) as reading:
                    reading.ok()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    operations = read(tmp_path / HISTORY)
    assert len({(one.recorder, one.number) for one in operations}) == len(operations) == 800
    assert [one.invoked for one in operations] == sorted(one.invoked for one in operations)
    assert {one.outcome for one in operations} == {"ok"}


def test_a_process_may_have_one_recorder_after_another(tmp_path: Path) -> None:
    """Each begins to count anew, and none of it is mistaken for what was there before."""
    for _ in range(2):
        recorder = Recorder(tmp_path / HISTORY, "nemesis")
        with recorder.recording(Fault(kind="kill")) as killing:
            killing.ok()
        recorder.close()
    assert [told(one) for one in read(tmp_path / HISTORY)] == [("nemesis", 1, "ok", True)] * 2


def test_the_clock_ties_the_logs_times_to_ours(tmp_path: Path) -> None:
    """The nearest look at both clocks counts: over hours, the one is pushed against the other."""
    Recorder(tmp_path / HISTORY, "clock").clock()
    (clock,) = read(tmp_path / HISTORY)
    assert isinstance(clock, Clock)
    later = msgspec.structs.replace(clock, wall=clock.wall + 10**12, invoked=clock.invoked + 10**12 + 777_000)
    both = run.Run(operations=[clock, later])
    for one in (clock, later):
        at = run.EPOCH + timedelta(microseconds=one.wall // 1000)
        assert abs((both.monotonic(at) or 0) - one.invoked) < 1000
    assert run.Run().monotonic(run.EPOCH) is None


def test_a_run_that_was_kept_is_judged_the_same(tmp_path: Path) -> None:
    """What is in the folder is all that a verdict needs."""
    sound = made.run()
    run.save(tmp_path, sound.log, sound.rows, sound.rest)
    encoder = msgspec.json.Encoder()
    (tmp_path / HISTORY).write_bytes(b"".join(encoder.encode(one) + b"\n" for one in sound.operations))
    kept = run.load(tmp_path)
    assert judge(kept) == judge(sound)
    assert (kept.operations, kept.log, kept.rows, kept.rest) == (sound.operations, sound.log, sound.rows, sound.rest)


def test_what_was_being_done_is_known_before_it_is_over(tmp_path: Path) -> None:
    """The first line is written before anything is done."""
    recorder = Recorder(tmp_path / HISTORY, "reader")
    with recorder.recording(LOOK) as looking:
        assert isinstance(looking, Recording)
        assert [told(one) for one in read(tmp_path / HISTORY)] == [("reader", 1, "info", False)]
        looking.ok()
