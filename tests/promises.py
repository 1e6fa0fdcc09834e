"""The six promises as pure functions of a recorded history. They judge tests, chaos runs and benchmarks alike.

Each takes a History and returns true, false or unknown, with the smallest evidence. What was not recorded is unknown:
a history without readers does not prove that readers miss nothing. `judge` returns the worst verdict, and unknown is
never green.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

import msgspec

from tailrace.proto.entries import End, Outcome, StoredEntry
from tailrace.proto.fold import Turn, fold, text_proof
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.usage import NANO_USD_PER_USD, Usage


class Verdict(NamedTuple):
    """The verdict on a promise. `holds` None means unknown."""

    holds: bool | None
    evidence: str = ""
    shown: tuple[msgspec.Struct, ...] = ()
    """The entries or operations that are the evidence."""

    @property
    def is_green(self) -> bool:
        return self.holds is True


class Frame(NamedTuple):
    """The bytes of one entry in a dialect; `seq` is its SSE id."""

    seq: Seq
    sent: bytes


class ReaderConnection(msgspec.Struct, frozen=True):
    """One connection of a reader: the cursor that it sent, the frames that it received, and why it was over.

    `ended`: the turn's end was received. `left`: the reader closed the connection. `cut`: anything else.
    """

    cursor: Seq
    frames: tuple[Frame, ...]
    over: Literal["ended", "left", "cut"]


class Story(msgspec.Struct, frozen=True):
    """The content of a turn, as a reader has received it."""

    text: str
    usage: Usage | None
    """None in a dialect without usage."""
    outcome: Outcome | Literal["running"]


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """One reader of one turn, over all of its connections."""

    name: str
    key: TurnKey
    dialect: str
    connections: tuple[ReaderConnection, ...]
    received: Story | None = None
    """The content that its client has decoded from the frames; None when it was not recorded."""

    @property
    def frames(self) -> list[Frame]:
        return [frame for connected in self.connections for frame in connected.frames]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A budget, in nano-dollars, or the slots of a limit `running`, at one moment."""

    name: str
    """The subject of its counter, or of its slots."""
    limit: int
    left: int
    """What is left, as admission counts it. It may be negative."""
    recorded: int = 0
    """The recorded cost of its period; 0 for slots."""
    reserved: int = 0
    """What the turns that exist and have not ended have reserved: money, or slots."""

    @property
    def held(self) -> int:
        """What is taken from it for no turn; negative: what is left although it is spent or reserved."""
        return self.limit - self.recorded - self.reserved - self.left


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The recorded operations of a run, and the log after it."""

    posted: dict[TurnKey, bool] = {}
    """Whether each turn that was posted was acknowledged."""
    readers: tuple[Reader, ...] = ()
    log: dict[TurnKey, tuple[StoredEntry, ...]] = {}
    """All stored entries of each turn at the end, valid or not."""
    rendered: dict[tuple[TurnKey, str], tuple[Frame, ...]] = {}
    """The whole log of a turn in a dialect: the frames of a reader without interruptions."""
    records: dict[TurnKey, TurnRecord] | None = None
    """The rows in SQLite; None when they were not read."""
    budgets: tuple[Budget, ...] | None = None
    """The budgets and slots when all is quiet, at most two minutes after the last fault; None when not read."""
    samples: tuple[Budget, ...] = ()
    """The same at moments of the run, each with `recorded` read before `left`."""
    folds: dict[TurnKey, Turn] = {}
    """The folds that are known; others are computed from the log each time."""

    def fold(self, key: TurnKey) -> Turn:
        return self.folds[key] if key in self.folds else fold(self.log.get(key, ()))


Promise = Callable[[History], Verdict]

KEPT = Verdict(holds=True)


def no_gap(history: History) -> Verdict:
    """A reader has received a prefix of the log in its dialect, in order, and all of it when it received the end."""
    return worst([_gap(history, reader) for reader in history.readers])


def no_repeat(history: History) -> Verdict:
    """No entry is delivered twice to one reader, over all its connections."""
    return worst([_repeat(reader) for reader in history.readers])


def one_end(history: History) -> Verdict:
    """An acknowledged turn ends exactly once, and no entry follows, neither in the log nor to a reader."""
    return worst([_ends(history, key) for key in _acknowledged_turns(history)])


def one_story(history: History) -> Verdict:
    """Every reader, every dialect, the fold and SQLite have the same text, usage and outcome."""
    return worst([_stories(history, key) for key in _acknowledged_turns(history)])


def nothing_forgotten(history: History) -> Verdict:
    """An acknowledged turn has an end, and an ended turn is in SQLite."""
    return worst([_check_recorded(history, key) for key in _acknowledged_turns(history)])


def nothing_held(history: History) -> Verdict:
    """What is left of a budget is its limit less the recorded cost and what turns that exist have reserved (R148).

    Exactly, once all is quiet; and at no moment is more left than the limit less the recorded cost.
    """
    if history.budgets is None:
        return Verdict(None, "the budgets were not read")
    return worst([*map(_overspending, history.samples), *map(_holding, history.budgets)])


OF_TURNS: tuple[Promise, ...] = (no_gap, no_repeat, one_end, one_story, nothing_forgotten)
"""The promises that a history of single turns can show."""
PROMISES: tuple[Promise, ...] = (*OF_TURNS, nothing_held)


def judge(history: History, promises: Sequence[Promise] = OF_TURNS) -> Verdict:
    """Returns the worst verdict; its evidence begins with the name of the promise."""
    return worst([_with_name(promise, promise(history)) for promise in promises])


def _with_name(promise: Promise, verdict: Verdict) -> Verdict:
    return verdict._replace(evidence=f"{promise.__name__}: {verdict.evidence}")


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Returns the first verdict that is false, else the first that is unknown. No verdict at all is unknown."""
    for answer in (False, None):
        for verdict in verdicts:
            if verdict.holds is answer:
                return verdict
    return KEPT if verdicts else Verdict(None, "nothing happened that could be judged")


def _gap(history: History, reader: Reader) -> Verdict:
    whole = history.rendered.get((reader.key, reader.dialect))
    if whole is None or not reader.connections:
        return Verdict(None, f"{reader.name}: what it should have received is unknown")
    seen = reader.connections[0].cursor
    for connected in reader.connections:
        if connected.cursor > seen:
            return Verdict(False, f"{reader.name} asked for what follows {connected.cursor} and had seen up to {seen}")
        after = [frame.seq for frame in whole if frame.seq > connected.cursor]
        received = [frame.seq for frame in connected.frames]
        for wanted, came in zip_longest(after, received):
            if came is None and connected.over != "ended":
                break
            if wanted != came:
                return Verdict(False, f"{reader.name} after {connected.cursor}: {came} came where {wanted} was due")
        seen = max([seen, *received])
    if reader.connections[-1].over == "cut" and history.fold(reader.key).end is not None:
        return Verdict(None, f"{reader.name} was cut off after {seen} and never came back")
    return KEPT


def _repeat(reader: Reader) -> Verdict:
    if not reader.connections:
        return Verdict(None, f"{reader.name} never connected")
    seen: set[Seq] = set()
    for connected in reader.connections:
        for frame in connected.frames:
            if frame.seq in seen or frame.seq <= connected.cursor:
                return Verdict(False, f"{reader.name} got {frame.seq} again after the cursor {connected.cursor}")
            seen.add(frame.seq)
    return KEPT


def _ends(history: History, key: TurnKey) -> Verdict:
    turn = history.fold(key)
    if turn.end is None:
        return Verdict(False, f"{key.turn} was acknowledged and has no end")
    end = turn.chain.last
    # An entry that names another predecessor belongs to a fork: it is stored, and no reader receives it.
    following = [stored.seq for stored in history.log[key] if stored.entry.prev == end]
    if following:
        return Verdict(False, f"{key.turn} ended at {end}, and {following[0]} follows it in the log")
    for reader in history.readers:
        late = [frame.seq for frame in reader.frames if frame.seq > end]
        if reader.key == key and late:
            return Verdict(False, f"{key.turn} ended at {end}, and {reader.name} got {late[0]} after it")
    return KEPT


def _stories(history: History, key: TurnKey) -> Verdict:
    turn = history.fold(key)
    if turn.end is None:
        return Verdict(None, f"{key.turn} has not ended")
    readers = [compare_reader(history, reader, turn) for reader in history.readers if reader.key == key]
    return worst([compare_end(key, turn, turn.end), compare_row(history, key, turn), *readers])


def compare_end(key: TurnKey, turn: Turn, end: End) -> Verdict:
    """Compares the hash and the usage in the end with the fold."""
    if text_proof(turn.text) != (end.text_chars, end.text_sha256):
        return Verdict(False, f"{key.turn}: the end's hash is not that of the text in the log")
    if turn.usage != end.usage:
        return Verdict(False, f"{key.turn}: the end says {end.usage}, the log adds up to {turn.usage}")
    return KEPT


def compare_row(history: History, key: TurnKey, turn: Turn) -> Verdict:
    """Compares the row in SQLite with the fold."""
    if history.records is None or key not in history.records:
        return Verdict(None, f"{key.turn}: its row was not read")
    row, folded = history.records[key], record_from_fold(key, turn)
    differing = [name for name in TurnRecord.__struct_fields__ if getattr(row, name) != getattr(folded, name)]
    if differing:
        name = differing[0]
        return Verdict(
            False, f"{key.turn}: {name} is {getattr(row, name)!r} in SQLite and {getattr(folded, name)!r} in the log"
        )
    return KEPT


def compare_reader(history: History, reader: Reader, turn: Turn) -> Verdict:
    """Compares a reader's frames and content with the fold."""
    whole = dict(history.rendered.get((reader.key, reader.dialect), ()))
    for frame in reader.frames:
        if whole.get(frame.seq, frame.sent) != frame.sent:
            return Verdict(False, f"{reader.name}: {frame.seq} came as {frame.sent!r}, not {whole[frame.seq]!r}")
    if not reader.connections or reader.connections[-1].over != "ended":
        return KEPT
    if reader.received is None:
        return Verdict(None, f"what {reader.name} received was not recorded")
    story = Story(turn.text, turn.usage if reader.received.usage is not None else None, turn.outcome)
    if reader.received != story:
        return Verdict(False, f"{reader.name} received {reader.received}, the log has {story}")
    return KEPT


def _check_recorded(history: History, key: TurnKey) -> Verdict:
    turn = history.fold(key)
    if turn.request is None:
        return Verdict(False, f"{key.turn} was acknowledged and is not in the log")
    if turn.end is None:
        return Verdict(False, f"{key.turn} was acknowledged and never ended")
    if history.records is None:
        return Verdict(None, f"{key.turn}: SQLite was not read")
    row = history.records.get(key)
    if row is None or row.outcome == "running":
        return Verdict(False, f"{key.turn} has ended and is {'missing' if row is None else 'running'} in SQLite")
    return KEPT


def held_in_all(budgets: Sequence[Budget]) -> str:
    """Describes the sum of all differences, of those above and of those below what is right."""
    money = sum(abs(one.held) for one in budgets if not one.name.startswith("slots."))
    slots = sum(abs(one.held) for one in budgets if one.name.startswith("slots."))
    spent = sum(one.recorded for one in budgets)
    dollars, of = money / NANO_USD_PER_USD, spent / NANO_USD_PER_USD
    return f"{len(budgets)} budgets, sum of differences ${dollars:.6f} and {slots} slots, recorded ${of:.6f}"


def _overspending(sample: Budget) -> Verdict:
    over = sample.left + sample.recorded - sample.limit
    if over > 0:
        return Verdict(False, f"{sample.name} has {over} more left than its limit less what is recorded", (sample,))
    return KEPT


def _holding(budget: Budget) -> Verdict:
    if budget.held > 0:
        return Verdict(False, f"{budget.name} holds {budget.held} for no turn", (budget,))
    if budget.held < 0:
        return Verdict(False, f"{budget.name} has {-budget.held} left that are spent or reserved", (budget,))
    return KEPT


def _acknowledged_turns(history: History) -> list[TurnKey]:
    return [key for key, is_acknowledged in history.posted.items() if is_acknowledged]
