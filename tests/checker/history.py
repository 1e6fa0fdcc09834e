"""What every client and worker did: a line of JSON when it begins, another when it is over. Judges nothing.

A **process** is a sequence of operations (Jepsen's word): a reader, a generator, whoever injects faults. Each of its
operations has a number. The first line of an operation says that it was invoked; the second, which stands for both,
when it returned and how: `ok`, `fail` (it did not happen) or `info` (nobody knows: no answer, or its process was
killed, and then there is no second line). Times are CLOCK_MONOTONIC in nanoseconds, which all processes of a machine
share.

    recorder = Recorder(folder / HISTORY, "reader 3")
    with recorder.recording(Look(tenant=tenant, turn=turn)) as looking:
        response = await client.get(...)
        looking.ok(status=200, cursor=response.json()["cursor"])

Any number of recorders, of any number of processes, may write to one file: a line is one write, at the file's end. What
leaves the block by an exception, or says nothing, is `info`. Workers are recorded by `tests.checker.recorded`.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Any, Generic, Literal, TypeVar

import msgspec

from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId
from tailrace.proto.subjects import TurnKey
from tests.promises import Frame

HISTORY = "history.jsonl"

Outcome = Literal["ok", "fail", "info"]


class Done(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="operation", tag=str.lower):
    """What all operations have. The first six are the recorder's to fill in."""

    process: str = ""
    recorder: str = ""
    """Which of those that a process may have had, one after the other."""
    number: int = 0
    invoked: int = 0
    returned: int | None = None
    outcome: Outcome = "info"
    tenant: Tenant | None = None
    turn: TurnId | None = None

    @property
    def key(self) -> TurnKey | None:
        """The turn that it is about, if it is known."""
        return TurnKey(self.tenant, self.turn) if self.tenant is not None and self.turn is not None else None


class Ask(Done, frozen=True, kw_only=True, omit_defaults=True):
    """A POST that asks for a turn."""

    question: str = ""
    """The text of its last message."""
    body_sha256: str = ""
    idempotency_key: str | None = None
    status: int | None = None


class Read(Done, frozen=True, kw_only=True, omit_defaults=True):
    """One connection of a reader. `frames` are what has an `id:`; in a dialect without ids it is `text` alone."""

    dialect: str = "tailrace"
    cursor: Seq = BEFORE_FIRST
    frames: tuple[Frame, ...] = ()
    arrived: tuple[int, ...] = ()
    """When each of them came."""
    text: str | None = None
    over: Literal["ended", "left", "cut"] = "cut"
    status: int | None = None


class Look(Done, frozen=True, kw_only=True, omit_defaults=True):
    """A GET of the turn as far as it is; `cursor` is the last entry that the answer knows of, `text` what it tells."""

    cursor: Seq = BEFORE_FIRST
    text: str | None = None
    status: int | None = None


class Cancel(Done, frozen=True, kw_only=True, omit_defaults=True):
    status: int | None = None


class Delete(Done, frozen=True, kw_only=True, omit_defaults=True):
    """Of a turn. It is then owed to nobody, whatever came of it."""

    status: int | None = None


class Append(Done, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's append; with an outcome `ok` it was acknowledged as stored at `seq`."""

    kind: str = ""
    prev: Seq = BEFORE_FIRST
    sha256: str = ""
    seq: Seq = BEFORE_FIRST


class Commit(Done, frozen=True, kw_only=True, omit_defaults=True):
    """A transaction of persistence's: up to which entry it holds each turn, by `tenant turn`."""

    rows: dict[str, Seq] = {}


class Ack(Done, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's acknowledgement of a delivery: of which entry, to which consumer."""

    consumer: str = ""
    seq: Seq = BEFORE_FIRST


class Fault(Done, frozen=True, kw_only=True, omit_defaults=True):
    """Something that was broken, from `invoked` until it was whole again at `returned`.

    `target` is what was broken; of a generator, its name in the log, which explains that its attempts were lost.
    `interrupts` is how many more attempts it may have cost: all that were running when the log went away. A fault that
    must cost none, a lost acknowledgement say, has 0. `calls` is how many calls may have been lost on their way to a
    generator, which then made them again in the same attempt.
    """

    kind: str = ""
    target: str = ""
    interrupts: int = 0
    calls: int = 0


class Noise(Done, frozen=True, kw_only=True, omit_defaults=True):
    """`tenant` asks for more than it may, from `invoked` to `returned`: no other is to notice."""


class Census(Done, frozen=True, kw_only=True, omit_defaults=True):
    """What a process has of each resource: `fds`, `rss_bytes`, `consumers`… `pid`: in which of its lives."""

    subject: str = ""
    pid: int = 0
    counts: dict[str, int] = {}


class Clock(Done, frozen=True, kw_only=True, omit_defaults=True):
    """The wall clock at `invoked`: by it the log's times are compared with everybody else's."""

    wall: int = 0


Operation = Ask | Read | Look | Cancel | Delete | Append | Commit | Ack | Fault | Noise | Census | Clock
T = TypeVar("T", bound=Done)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Operation] = msgspec.json.Decoder(Operation)


class Recording(Generic[T]):
    """An operation under way."""

    def __init__(self, operation: T) -> None:
        self.operation = operation

    def ok(self, **given: Any) -> None:
        self._returned("ok", given)

    def fail(self, **given: Any) -> None:
        self._returned("fail", given)

    def info(self, **given: Any) -> None:
        self._returned("info", given)

    def _returned(self, outcome: Outcome, given: dict[str, Any]) -> None:
        self.operation = msgspec.structs.replace(self.operation, returned=monotonic_ns(), outcome=outcome, **given)


class Recorder:
    """Writes the operations of one process, which is nobody else's at that time."""

    def __init__(self, path: Path, process: str) -> None:
        self.process = process
        self._recorder = os.urandom(4).hex()
        self._number = 0
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def recording(self, operation: T) -> Iterator[Recording[T]]:
        self._number += 1
        begun = msgspec.structs.replace(
            operation, process=self.process, recorder=self._recorder, number=self._number, invoked=monotonic_ns()
        )
        self._write(begun)
        recording = Recording(begun)
        try:
            yield recording
        finally:
            if recording.operation.returned is None:
                recording.info()
            self._write(recording.operation)

    def clock(self) -> None:
        """At the beginning and at the end of a run, by whoever's wall clock is the log's server's."""
        with self.recording(Clock(wall=time_ns())) as telling:
            telling.ok()

    def close(self) -> None:
        os.close(self._file)

    def _write(self, operation: Done) -> None:
        line = _encoder.encode(operation) + b"\n"
        written = os.write(self._file, line)
        assert written == len(line), "the disk is full: this history proves nothing"


def read(path: Path) -> list[Operation]:
    """All operations, by when they were invoked. One without a second line is `info`, and never returned."""
    found: dict[tuple[str, int], Operation] = {}
    # The second line of an operation takes the place of the first.
    for line in path.read_bytes().splitlines():
        operation = _decoder.decode(line)
        found[operation.recorder, operation.number] = operation
    return sorted(found.values(), key=lambda operation: operation.invoked)


def digest(payload: bytes) -> str:
    """How an entry's bytes are compared without being kept twice."""
    return hashlib.sha256(payload).hexdigest()
