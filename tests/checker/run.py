"""All that was recorded of a run: the history, the log, the model's account, the rows, the queues. Judges nothing.

It is a folder, so that a run that broke something can be kept and judged again: `collect` writes it, `load` reads it.
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
from tailrace.proto import entries, subjects
from tailrace.proto.chain import START, link
from tailrace.proto.entries import Stored
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tests.checker import history
from tests.checker.history import Ask, Clock, Delete, Done, Fault, Operation, Read, digest
from tests.harness import readers
from tests.promises import Connected, Frame, History, Reader, Story

LOG = "log.jsonl"
ROWS = "rows.jsonl"
REST = "rest.json"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NS_PER_S = 10**9
T = TypeVar("T", bound=Done)


class Logged(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of the stream as the server holds it, with the fence that it came with."""

    seq: Seq
    at: datetime
    subject: str
    fence: int | None = None
    fence_subject: str | None = None
    payload: str = ""
    junk: bytes | None = None
    """Instead of `payload`, when it is no UTF-8."""

    @property
    def bytes(self) -> bytes:
        return self.payload.encode() if self.junk is None else self.junk


class Row(msgspec.Struct, frozen=True):
    """A row of SQLite's."""

    tenant: Tenant
    record: TurnRecord


class Queue(msgspec.Struct, frozen=True):
    """What a consumer has not finished: not delivered yet, and delivered and not acknowledged."""

    waiting: int
    leased: int


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """What else there is, as far as somebody looked; `nodes` is how many servers hold the log."""

    nodes: int = 1
    account: AccountReport | None = None
    queues: dict[str, Queue] | None = None
    collected: int = 0
    """When: by then everything has had its time."""


class Entered(msgspec.Struct, frozen=True):
    """A turn's log, entry beside message, and which of it is valid (PROTOCOL R11)."""

    logged: list[Logged]
    stored: list[Stored]
    valid: list[Stored]


class Place(msgspec.Struct, frozen=True):
    """What stands at a sequence."""

    logged: Logged
    key: TurnKey
    kind: str
    sha256: str


class Seen(History, frozen=True, kw_only=True):
    """What was seen of one turn, with its fold, which five promises need."""

    folded: Turn

    def fold(self, key: TurnKey) -> Turn:
        return self.folded if key in self.posted else super().fold(key)


class Run(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One run. What is computed of it is computed once."""

    operations: list[Operation] = []
    log: list[Logged] = []
    """The whole stream, by sequence."""
    rows: list[Row] | None = None
    """None: nobody looked into SQLite."""
    rest: Rest = Rest()

    def of(self, kind: type[T]) -> list[T]:
        """The operations of one kind, by when they were invoked."""
        return self._by_kind.get(kind, [])

    @cached_property
    def _by_kind(self) -> dict[type, list[Any]]:
        found: dict[type, list[Any]] = {}
        for operation in self.operations:
            found.setdefault(type(operation), []).append(operation)
        return found

    def healed(self, by: float) -> float:
        """When the last of the faults was over that had begun `by` then; 0: there was none."""
        begun = bisect_right(self._faults, (by, inf))
        return self._faults[begun - 1][1] if begun else 0.0

    @cached_property
    def _faults(self) -> list[tuple[float, float]]:
        """When each fault began, and when it and all before it were over."""
        found, over = [], 0.0
        for fault in self.of(Fault):
            over = max(over, fault.returned if fault.returned is not None else self.rest.collected)
            found.append((float(fault.invoked), over))
        return found

    @cached_property
    def places(self) -> dict[Seq, Place]:
        """The log, by sequence. A probe is of no turn (PROTOCOL R68), and a killed process leaves its last behind."""
        places = [Place(one, *subjects.parse(one.subject), digest(one.bytes)) for one in self.log]
        return {place.logged.seq: place for place in places if place.kind != "probe"}

    @cached_property
    def turns(self) -> dict[TurnKey, Entered]:
        """All that is stored, by turn."""
        places: dict[TurnKey, list[Place]] = {}
        for place in self.places.values():
            places.setdefault(place.key, []).append(place)
        return {key: _entered(some) for key, some in places.items()}

    @cached_property
    def folds(self) -> dict[TurnKey, Turn]:
        return {key: fold(entered.valid) for key, entered in self.turns.items()}

    @cached_property
    def deleted(self) -> set[TurnKey]:
        """Turns that somebody wanted deleted, whatever came of it."""
        return {operation.key for operation in self.of(Delete) if operation.key is not None}

    @cached_property
    def acknowledged(self) -> set[TurnKey]:
        """Turns whose POST was answered with their id, and that nobody wanted deleted."""
        asked = {ask.key for ask in self.of(Ask) if ask.outcome == "ok" and ask.key is not None}
        return asked - self.deleted

    @cached_property
    def records(self) -> dict[TurnKey, TurnRecord] | None:
        if self.rows is None:
            return None
        return {TurnKey(row.tenant, row.record.turn): row.record for row in self.rows}

    @cached_property
    def readers(self) -> dict[TurnKey, list[Reader]]:
        """Readers with ids, over all of their connections, as the promises want to see them."""
        found: dict[tuple[str, TurnKey, str], list[Read]] = {}
        for read in self.of(Read):
            if read.key is not None and read.text is None:
                found.setdefault((read.process, read.key, read.dialect), []).append(read)
        readers: dict[TurnKey, list[Reader]] = {}
        for (process, key, dialect), reads in found.items():
            connections = tuple(Connected(read.cursor, read.frames, read.over) for read in reads)
            sent = [frame.sent for connected in connections for frame in connected.frames]
            # Who came late was told the beginning by whoever gave it its cursor.
            before = [frame.sent for frame in self.rendered(key, dialect) if frame.seq <= connections[0].cursor]
            told = _told([*before, *sent]) if dialect == "tailrace" else None
            reader = Reader(name=process, key=key, dialect=dialect, connections=connections, told=told)
            readers.setdefault(key, []).append(reader)
        return readers

    def rendered(self, key: TurnKey, dialect: str) -> tuple[Frame, ...]:
        """What a reader sees who is never interrupted."""
        known = self._rendered
        if (key, dialect) not in known:
            stored = self.turns[key].stored if key in self.turns else []
            known[key, dialect] = readers.rendered(key, stored, dialect)
        return known[key, dialect]

    @cached_property
    def _rendered(self) -> dict[tuple[TurnKey, str], tuple[Frame, ...]]:
        return {}

    def history(self, key: TurnKey) -> Seen:
        """What was seen of one turn, for the five promises."""
        readers = tuple(self.readers.get(key, ()))
        stored = tuple(self.turns[key].stored) if key in self.turns else ()
        return Seen(
            folded=self.folds.get(key, EMPTY_TURN),
            posted={key: True},
            readers=readers,
            log={key: stored},
            rendered={(key, one.dialect): self.rendered(key, one.dialect) for one in readers},
            records=self.records,
        )

    def monotonic(self, at: datetime) -> int | None:
        """A time of the log's by the clock of the operations, by the nearest look at both; None: nobody looked."""
        wall = (at - EPOCH) // timedelta(microseconds=1) * 1000
        clocks = self.of(Clock)
        if not clocks:
            return None
        nearest = min(clocks, key=lambda clock: abs(clock.wall - wall))
        return wall - nearest.wall + nearest.invoked


def _told(sent: list[bytes]) -> Story | None:
    """What a client makes of it; None when it can make nothing of it: then the bytes are not the log's, either."""
    try:
        return readers.told(sent)
    except (msgspec.DecodeError, KeyError):
        return None


def _entered(places: list[Place]) -> Entered:
    entered, chain = Entered([place.logged for place in places], [], []), START
    for place in places:
        logged = place.logged
        stored = Stored(logged.seq, logged.at, entries.decode(place.kind, logged.bytes))
        entered.stored.append(stored)
        linked = link(chain, stored.seq, stored.entry)
        if linked is not None:
            chain = linked
            entered.valid.append(stored)
    return entered


def save(folder: Path, log: Iterable[Logged], rows: Iterable[Row] | None, rest: Rest) -> None:
    """Beside the history that is being written there."""
    (folder / LOG).write_bytes(_lines(log))
    if rows is not None:
        (folder / ROWS).write_bytes(_lines(rows))
    (folder / REST).write_bytes(msgspec.json.encode(rest))


def load(folder: Path) -> Run:
    rows = folder / ROWS
    return Run(
        operations=history.read(folder / history.HISTORY),
        log=_read(folder / LOG, msgspec.json.Decoder(Logged)),
        rows=_read(rows, msgspec.json.Decoder(Row)) if rows.exists() else None,
        rest=msgspec.json.decode((folder / REST).read_bytes(), type=Rest),
    )


S = TypeVar("S")


def _read(path: Path, decoder: msgspec.json.Decoder[S]) -> list[S]:
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def _lines(some: Iterable[msgspec.Struct]) -> bytes:
    encoder = msgspec.json.Encoder()
    return b"".join(encoder.encode(one) + b"\n" for one in some)
