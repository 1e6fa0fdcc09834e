"""The history of a run: JSON lines with the operations of every client, worker and fault.

A **process** is a sequence of operations (Jepsen's word): a reader, a generator, the fault injector. An operation has a
number and two lines. The first says when it was invoked. The second replaces it and says when and how it returned:
`ok`, `fail` (it did not happen) or `info` (unknown: there was no response, or the process was killed before the second
line). Times are CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share.

    recorder = Recorder(folder / HISTORY, "reader 3")
    with recorder.recording(Get(tenant=tenant, turn=turn)) as recording:
        response = await client.get(...)
        recording.ok(status=200, cursor=response.json()["cursor"])

Any number of recorders in any number of processes may write to one file: a line is one write at its end. A block that
raises, or reports nothing, is `info`. `tests.checker.recorded_process` records workers.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Any, Generic, Literal, TypeVar

import msgspec

from tailrace.proto.entries import Via
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tests.promises import Frame

HISTORY = "history.jsonl"

Outcome = Literal["ok", "fail", "info"]


class RecordedOperation(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="operation", tag=str.lower
):
    """Fields of all operations. The recorder sets the first six."""

    process: str = ""
    recorder: str = ""
    """Distinguishes the recorders that one process had after each other."""
    number: int = 0
    invoked: int = 0
    returned: int | None = None
    outcome: Outcome = "info"
    tenant: Tenant | None = None
    turn: TurnId | None = None

    @property
    def key(self) -> TurnKey | None:
        """The turn's key, if it is known."""
        return TurnKey(self.tenant, self.turn) if self.tenant is not None and self.turn is not None else None


class Post(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A POST of a turn, or of a batch. `question` is the text of its last message; a batch has none."""

    question: str = ""
    inputs: dict[str, str] = {}
    """The question of each input of a batch by its `custom_id`, in order."""
    via: Via = "messages"
    body_sha256: str = ""
    idempotency_key: str | None = None
    status: int | None = None


class Steer(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A POST that puts the message `question` into the answer of the turn `steered`. Its own turn is `turn`."""

    steered: TurnId
    question: str
    idempotency_key: str
    status: int | None = None


class Read(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """One connection of a reader.

    `frames` have an SSE id, and `arrived` has the time of each. In a dialect without ids there is only `text`.
    """

    dialect: str = "tailrace"
    cursor: Seq = BEFORE_FIRST
    frames: tuple[Frame, ...] = ()
    arrived: tuple[int, ...] = ()
    text: str | None = None
    over: Literal["ended", "left", "cut"] = "cut"
    status: int | None = None


class Get(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A GET of the turn: the cursor and the text of the response."""

    cursor: Seq = BEFORE_FIRST
    text: str | None = None
    status: int | None = None


class Cancel(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    status: int | None = None


class Delete(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A DELETE of the turn. Afterwards it is only promised that it is gone, if the deletion was acknowledged."""

    status: int | None = None


class GetBatch(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A GET of a batch: its counts, and how it ended."""

    ended: str | None = None
    done: int = 0
    failed: int = 0
    status: int | None = None


class Line(msgspec.Struct, frozen=True):
    """A line of a batch's results."""

    custom_id: str
    outcome: str
    text: str


class Results(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """One connection that reads the results of a batch, beginning after line number `after`."""

    after: int = -1
    lines: tuple[Line, ...] = ()
    is_whole: bool = False
    status: int | None = None


class Append(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """An append by a worker; with the outcome `ok`, it was acknowledged as stored at `seq`."""

    kind: str = ""
    prev: Seq = BEFORE_FIRST
    sha256: str = ""
    seq: Seq = BEFORE_FIRST


class Commit(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A transaction of persistence: the cursor of each row, by `tenant turn`."""

    rows: dict[str, Seq] = {}


class Ack(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's acknowledgement of the entry at `seq`, which `consumer` had delivered."""

    consumer: str = ""
    seq: Seq = BEFORE_FIRST


class Fault(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """A fault, from its injection at `invoked` until it was healed at `returned`.

    `target` is what failed; a generator has its name in the log, which explains its lost attempts. `interrupts` is the
    number of further attempts that the fault may have cost: 0 for a lost acknowledgement, all running attempts when the
    log was unavailable. `calls` is the number of responses that may have been lost on the way to a generator, which
    then repeated the call within the attempt.
    """

    kind: str = ""
    target: str = ""
    interrupts: int = 0
    calls: int = 0


class Overload(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """`tenant` posts more turns than its limits or its share allow. No other tenant may be affected."""


class ResourceCount(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """The resources of a process: `fds`, `rss_bytes`, `consumers`. A restart changes its `pid`."""

    subject: str = ""
    pid: int = 0
    counts: dict[str, int] = {}


class ClockReading(RecordedOperation, frozen=True, kw_only=True, omit_defaults=True):
    """The wall clock at `invoked`. It translates the log's times into CLOCK_MONOTONIC."""

    wall: int = 0


Operation = (
    Post
    | Steer
    | Read
    | Get
    | Cancel
    | Delete
    | GetBatch
    | Results
    | Append
    | Commit
    | Ack
    | Fault
    | Overload
    | ResourceCount
    | ClockReading
)
T = TypeVar("T", bound=RecordedOperation)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Operation] = msgspec.json.Decoder(Operation)


class Recording(Generic[T]):
    """An operation that has not returned."""

    def __init__(self, operation: T) -> None:
        self.operation = operation

    def ok(self, **given: Any) -> None:
        self._return("ok", given)

    def fail(self, **given: Any) -> None:
        self._return("fail", given)

    def info(self, **given: Any) -> None:
        self._return("info", given)

    def _return(self, outcome: Outcome, given: dict[str, Any]) -> None:
        self.operation = msgspec.structs.replace(self.operation, returned=monotonic_ns(), outcome=outcome, **given)


class Recorder:
    """Writes the operations of one process. A process has one recorder at a time."""

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

    def read_clock(self) -> None:
        """Records both clocks. Call it at the beginning and at the end of a run, on the machine of the nats-server."""
        with self.recording(ClockReading(wall=time_ns())) as recording:
            recording.ok()

    def close(self) -> None:
        os.close(self._file)

    def _write(self, operation: RecordedOperation) -> None:
        line = _encoder.encode(operation) + b"\n"
        written = os.write(self._file, line)
        assert written == len(line), "the disk is full: the history is incomplete"


def read(path: Path) -> list[Operation]:
    """Returns all operations in the order of `invoked`. One without a second line is `info` and has not returned."""
    found: dict[tuple[str, int], Operation] = {}
    for line in path.read_bytes().splitlines():
        operation = _decoder.decode(line)
        found[operation.recorder, operation.number] = operation
    return sorted(found.values(), key=lambda operation: operation.invoked)


def digest(payload: bytes) -> str:
    """Returns the SHA-256 of an entry's bytes."""
    return hashlib.sha256(payload).hexdigest()
