"""A recorded run: the history, the log, the model's calls, the rows, the backlogs.

A run is a folder, which can be kept and checked again: `collect` writes it, `load` reads it.
"""

from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tailrace.deploy.simulated_claude.account import AccountReport
from tailrace.features.batches.input_lines import child_key
from tailrace.proto import entries, subjects
from tailrace.proto.conversation import accepted_before, messages
from tailrace.proto.entries import Request, StoredEntry
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.system_messages import fit_system_messages
from tests.checker import history
from tests.checker.history import ClockReading, Delete, Fault, Operation, Post, Read, RecordedOperation, digest
from tests.harness import readers
from tests.promises import Budget, Frame, History, Reader, ReaderConnection, Story

LOG = "log.jsonl"
ROWS = "rows.jsonl"
BLOBS = "blobs.jsonl"
FINAL = "final.json"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NS_PER_S = 10**9
T = TypeVar("T", bound=RecordedOperation)


class LogMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of the stream as the server stores it, with the fence of its append."""

    seq: Seq
    at: datetime
    subject: str
    fence: int | None = None
    fence_subject: str | None = None
    payload: str = ""
    junk: bytes | None = None
    """Instead of `payload`, if that is not UTF-8."""

    @property
    def content(self) -> bytes:
        return self.payload.encode() if self.junk is None else self.junk


class Row(msgspec.Struct, frozen=True):
    """A row of SQLite."""

    tenant: Tenant
    record: TurnRecord


class Backlog(msgspec.Struct, frozen=True):
    """Messages of a consumer that wait for delivery, and that are delivered and not acknowledged."""

    waiting: int
    leased: int


class FinalState(msgspec.Struct, frozen=True, kw_only=True):
    """The state at the time `collected`. `servers` is the number of nats-servers; None means not recorded."""

    servers: int = 1
    account: AccountReport | None = None
    backlogs: dict[str, Backlog] | None = None
    budgets: tuple[Budget, ...] | None = None
    """The budgets when all was quiet."""
    samples: tuple[Budget, ...] = ()
    """The worst sample of each budget during the run."""
    collected: int = 0


class LoggedTurn(msgspec.Struct, frozen=True):
    """A turn's messages, their entries, and those entries that are valid (PROTOCOL R11)."""

    messages: list[LogMessage]
    stored: list[StoredEntry]
    valid: list[StoredEntry]


class Position(msgspec.Struct, frozen=True):
    """The message at a sequence, with what its subject says."""

    message: LogMessage
    key: TurnKey
    kind: str
    sha256: str


class Run(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One run. Derived values are computed once."""

    operations: list[Operation] = []
    log: list[LogMessage] = []
    """The whole stream in the order of sequences."""
    rows: list[Row] | None = None
    """None: not recorded."""
    blobs: list[LogMessage] | None = None
    """The stream BODIES. None: not recorded."""
    final: FinalState = FinalState()

    def of(self, kind: type[T]) -> list[T]:
        """Returns the operations of one kind in the order of `invoked`."""
        return self._by_kind.get(kind, [])

    @cached_property
    def _by_kind(self) -> dict[type, list[Any]]:
        found: dict[type, list[Any]] = {}
        for operation in self.operations:
            found.setdefault(type(operation), []).append(operation)
        return found

    def healed_at(self, by: float) -> float:
        """Returns when the last fault that had begun by then was over; 0 without one."""
        begun = bisect_right(self._faults, (by, inf))
        return self._faults[begun - 1][1] if begun else 0.0

    @cached_property
    def _faults(self) -> list[tuple[float, float]]:
        """For each fault, when it began, and when it and all before it were over."""
        found, over = [], 0.0
        for fault in self.of(Fault):
            over = max(over, fault.returned if fault.returned is not None else self.final.collected)
            found.append((float(fault.invoked), over))
        return found

    @cached_property
    def positions(self) -> dict[Seq, Position]:
        """The log by sequence, without the probes that killed processes left (PROTOCOL R68)."""
        positions = [Position(one, *subjects.parse(one.subject), digest(one.content)) for one in self.log]
        return {position.message.seq: position for position in positions if position.kind != "probe"}

    @cached_property
    def turns(self) -> dict[TurnKey, LoggedTurn]:
        """The log by turn."""
        positions: dict[TurnKey, list[Position]] = {}
        for position in self.positions.values():
            positions.setdefault(position.key, []).append(position)
        return {key: _logged_turn(some) for key, some in positions.items()}

    @cached_property
    def folds(self) -> dict[TurnKey, Turn]:
        return {key: fold(turn.valid) for key, turn in self.turns.items()}

    def turns_before(self, key: TurnKey) -> list[TurnId]:
        """Returns the turns that a turn continues, newest first, as far as the log has them."""
        found: list[TurnId] = []
        while (
            (turn := self.folds.get(key)) is not None and turn.request is not None and turn.request.parent is not None
        ):
            found.append(turn.request.parent)
            key = key._replace(turn=turn.request.parent)
        return found

    def whole_request(self, key: TurnKey) -> Request | None:
        """Returns the request of a turn, with the conversation before it also if it was queued (PROTOCOL R79)."""
        request = self.folds[key].request
        branch: list[TurnRecord] = []
        base = request
        while base is not None and base.is_queued and base.parent is not None:
            before = key._replace(turn=base.parent)
            if self.folds.get(before, EMPTY_TURN).request is None:
                return None
            branch.insert(0, record_from_fold(before, self.folds[before]))
            base = self.folds[before].request
        if request is None or base is None or not branch:
            return request
        history = accepted_before(request.messages, [*base.messages[: base.history], *messages(branch)])
        history = fit_system_messages(request.messages, history, request.model, request.options)
        return msgspec.structs.replace(request, messages=[*history, *request.messages], history=len(history))

    @cached_property
    def deleted_turns(self) -> set[TurnKey]:
        """Turns of which a client requested the deletion, whatever the outcome; of a batch also those of its inputs."""
        keys = {operation.key for operation in self.of(Delete) if operation.key is not None}
        return keys.union(*map(self.inputs_of, keys))

    @cached_property
    def batches(self) -> dict[TurnKey, Post]:
        """The accepted batches, by their turns."""
        return {post.key: post for post in self.of(Post) if post.inputs and post.outcome == "ok" and post.key}

    def inputs_of(self, key: TurnKey) -> list[TurnKey]:
        """Returns the turns of a batch's inputs, in order; an empty list if `key` is no accepted batch."""
        return (
            [child_key(key, number) for number in range(len(self.batches[key].inputs))] if key in self.batches else []
        )

    @cached_property
    def deleted_questions(self) -> set[str]:
        """The questions of the turns in `deleted_turns`, which the log may not have any more."""
        found = {post.question for post in self.of(Post) if post.key in self.deleted_turns}
        for key, post in self.batches.items():
            questions = zip(self.inputs_of(key), post.inputs.values(), strict=True)
            found |= {question for child, question in questions if child in self.deleted_turns}
        return found

    @cached_property
    def acknowledged_turns(self) -> set[TurnKey]:
        """Turns whose POST was answered with their id, and that are not in `deleted_turns`."""
        return {
            post.key for post in self.of(Post) if post.outcome == "ok" and post.key is not None
        } - self.deleted_turns

    @cached_property
    def records(self) -> dict[TurnKey, TurnRecord] | None:
        if self.rows is None:
            return None
        return {TurnKey(row.tenant, row.record.turn): row.record for row in self.rows}

    @cached_property
    def readers(self) -> dict[TurnKey, list[Reader]]:
        """Readers of dialects with ids, each over all of its connections, by turn."""
        found: dict[tuple[str, TurnKey, str], list[Read]] = {}
        for read in self.of(Read):
            if read.key is not None and read.text is None:
                found.setdefault((read.process, read.key, read.dialect), []).append(read)
        readers: dict[TurnKey, list[Reader]] = {}
        for (process, key, dialect), reads in found.items():
            connections = tuple(ReaderConnection(read.cursor, read.frames, read.over) for read in reads)
            sent = [frame.sent for connected in connections for frame in connected.frames]
            # A reader that starts at a cursor has received the entries before it elsewhere.
            before = [frame.sent for frame in self.render(key, dialect) if frame.seq <= connections[0].cursor]
            frames = _decode([*before, *sent]) if dialect == "tailrace" else None
            reader = Reader(name=process, key=key, dialect=dialect, connections=connections, received=frames)
            readers.setdefault(key, []).append(reader)
        return readers

    def render(self, key: TurnKey, dialect: str) -> tuple[Frame, ...]:
        """Returns the frames of a reader that is never disconnected."""
        known = self._rendered_frames
        if (key, dialect) not in known:
            stored = self.turns[key].stored if key in self.turns else []
            known[key, dialect] = readers.render_frames(key, stored, dialect)
        return known[key, dialect]

    @cached_property
    def _rendered_frames(self) -> dict[tuple[TurnKey, str], tuple[Frame, ...]]:
        return {}

    def history(self, key: TurnKey) -> History:
        """Returns the history of one turn, for the promises about turns."""
        readers = tuple(self.readers.get(key, ()))
        stored = tuple(self.turns[key].stored) if key in self.turns else ()
        return History(
            folds={key: self.folds.get(key, EMPTY_TURN)},
            posted={key: True},
            readers=readers,
            log={key: stored},
            rendered={(key, one.dialect): self.render(key, one.dialect) for one in readers},
            records=self.records,
        )

    def monotonic(self, at: datetime) -> int | None:
        """Converts a time of the log with the nearest clock reading; None without one."""
        wall = (at - EPOCH) // timedelta(microseconds=1) * 1000
        clocks = self.of(ClockReading)
        if not clocks:
            return None
        nearest = min(clocks, key=lambda clock: abs(clock.wall - wall))
        return wall - nearest.wall + nearest.invoked


def _decode(sent: list[bytes]) -> Story | None:
    """Returns the story that a client decodes, or None if the bytes are not valid."""
    try:
        return readers.story_of(sent)
    except (msgspec.DecodeError, KeyError):
        return None


def _logged_turn(positions: list[Position]) -> LoggedTurn:
    messages = [position.message for position in positions]
    stored = [
        StoredEntry(one.message.seq, one.message.at, entries.decode(one.kind, one.message.content)) for one in positions
    ]
    return LoggedTurn(messages, stored, readers.select_valid(stored))


def save(folder: Path, run: Run) -> None:
    """Writes all of the run but its operations."""
    (folder / LOG).write_bytes(_lines(run.log))
    for name, some in ((ROWS, run.rows), (BLOBS, run.blobs)):
        if some is not None:
            (folder / name).write_bytes(_lines(some))
    (folder / FINAL).write_bytes(msgspec.json.encode(run.final))


def load(folder: Path) -> Run:
    return Run(
        operations=history.read(folder / history.HISTORY),
        log=_read(folder / LOG, LogMessage) or [],
        rows=_read(folder / ROWS, Row),
        blobs=_read(folder / BLOBS, LogMessage),
        final=msgspec.json.decode((folder / FINAL).read_bytes(), type=FinalState),
    )


S = TypeVar("S")


def _read(path: Path, kind: type[S]) -> list[S] | None:
    decoder = msgspec.json.Decoder(kind)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else None


def _lines(some: Iterable[msgspec.Struct]) -> bytes:
    encoder = msgspec.json.Encoder()
    return b"".join(encoder.encode(one) + b"\n" for one in some)
