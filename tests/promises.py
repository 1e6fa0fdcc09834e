"""The five promises, as functions of what was seen. They judge a test, a chaos run and a benchmark alike; no I/O.

Each takes a History and answers true, false or unknown, with the smallest evidence. What nobody looked at is unknown:
a history without readers does not prove that readers miss nothing. `judge` takes the worst answer, and unknown is
never green.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

import msgspec

from tailrace.proto.entries import Outcome, Stored
from tailrace.proto.fold import Turn, fold, text_proof
from tailrace.proto.ids import Seq
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage


class Verdict(NamedTuple):
    """`holds` None means unknown: the history does not say."""

    holds: bool | None
    evidence: str = ""
    shown: tuple[msgspec.Struct, ...] = ()
    """The few entries or operations that show it."""

    @property
    def is_green(self) -> bool:
        return self.holds is True


class Frame(NamedTuple):
    """What one entry became in a dialect; `seq` is its SSE id."""

    seq: Seq
    sent: bytes


class Connected(msgspec.Struct, frozen=True):
    """One connection of a reader: the cursor it sent, what it received, and how it was over.

    `ended`: the turn's end was received. `left`: the reader went away and wanted no more. `cut`: anything else.
    """

    cursor: Seq
    frames: tuple[Frame, ...]
    over: Literal["ended", "left", "cut"]


class Story(msgspec.Struct, frozen=True):
    """What a turn told whoever was listening."""

    text: str
    usage: Usage | None
    """None in a dialect that does not tell it."""
    outcome: Outcome | Literal["running"]


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """One reader of one turn, over all of its connections."""

    name: str
    key: TurnKey
    dialect: str
    connections: tuple[Connected, ...]
    told: Story | None = None
    """What its client made of the frames; None when nobody asked it."""

    @property
    def frames(self) -> list[Frame]:
        return [frame for connected in self.connections for frame in connected.frames]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, as far as it was seen."""

    posted: dict[TurnKey, bool] = {}
    """Every turn that was asked for: whether it was acknowledged."""
    readers: tuple[Reader, ...] = ()
    log: dict[TurnKey, tuple[Stored, ...]] = {}
    """All that is stored of each turn at the end, valid or not."""
    rendered: dict[tuple[TurnKey, str], tuple[Frame, ...]] = {}
    """The whole log of a turn in a dialect: what a reader would see who was never interrupted."""
    records: dict[TurnKey, TurnRecord] | None = None
    """The rows in SQLite; None when nobody looked."""

    def fold(self, key: TurnKey) -> Turn:
        return fold(self.log.get(key, ()))


Promise = Callable[[History], Verdict]

KEPT = Verdict(holds=True)


def no_gap(history: History) -> Verdict:
    """What a reader has seen is a prefix of the log in its dialect, in order; all of it once it saw the end."""
    return worst([_gap(history, reader) for reader in history.readers])


def no_repeat(history: History) -> Verdict:
    """No entry is delivered twice to one reader, whatever it reconnected to."""
    return worst([_repeat(reader) for reader in history.readers])


def one_end(history: History) -> Verdict:
    """A turn that was acknowledged ends exactly once, and nothing follows: not in the log, not to a reader."""
    return worst([_ends(history, key) for key in _acknowledged(history)])


def one_story(history: History) -> Verdict:
    """Every reader, every dialect's text, the fold and SQLite tell the same text, usage and outcome."""
    return worst([_stories(history, key) for key in _acknowledged(history)])


def nothing_forgotten(history: History) -> Verdict:
    """An acknowledged turn gets its end, and an ended turn gets into SQLite."""
    return worst([_forgotten(history, key) for key in _acknowledged(history)])


PROMISES: tuple[Promise, ...] = (no_gap, no_repeat, one_end, one_story, nothing_forgotten)


def judge(history: History, promises: Sequence[Promise] = PROMISES) -> Verdict:
    """The worst of the five; its evidence begins with the promise's name."""
    return worst([_named(promise, promise(history)) for promise in promises])


def _named(promise: Promise, verdict: Verdict) -> Verdict:
    return verdict._replace(evidence=f"{promise.__name__}: {verdict.evidence}")


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The first that is false, else the first that is unknown. Nothing to judge is unknown."""
    for answer in (False, None):
        for verdict in verdicts:
            if verdict.holds is answer:
                return verdict
    return KEPT if verdicts else Verdict(None, "nothing happened that could be judged")


def _gap(history: History, reader: Reader) -> Verdict:
    whole = history.rendered.get((reader.key, reader.dialect))
    if whole is None or not reader.connections:
        return Verdict(None, f"{reader.name}: nobody knows what it should have seen")
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
    # An entry that names another predecessor, earlier or a fork's own, is a fork's: stored, told to nobody.
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
    if text_proof(turn.text) != (turn.end.text_chars, turn.end.text_sha256):
        return Verdict(False, f"{key.turn}: the end's hash is not that of the text in the log")
    if turn.usage != turn.end.usage:
        return Verdict(False, f"{key.turn}: the end says {turn.end.usage}, the log adds up to {turn.usage}")
    readers = [reader for reader in history.readers if reader.key == key]
    return worst([same_row(history, key, turn), *(same_told(history, reader, turn) for reader in readers)])


def same_row(history: History, key: TurnKey, turn: Turn) -> Verdict:
    """The part of `one_story` that is about SQLite."""
    if history.records is None or key not in history.records:
        return Verdict(None, f"{key.turn}: nobody saw its row")
    row, folded = history.records[key], record_from_fold(key, turn)
    differing = [name for name in TurnRecord.__struct_fields__ if getattr(row, name) != getattr(folded, name)]
    if differing:
        name = differing[0]
        return Verdict(
            False, f"{key.turn}: {name} is {getattr(row, name)!r} in SQLite and {getattr(folded, name)!r} in the log"
        )
    return KEPT


def same_told(history: History, reader: Reader, turn: Turn) -> Verdict:
    """The part of `one_story` that is about a reader."""
    whole = dict(history.rendered.get((reader.key, reader.dialect), ()))
    for frame in reader.frames:
        if whole.get(frame.seq, frame.sent) != frame.sent:
            return Verdict(False, f"{reader.name}: {frame.seq} came as {frame.sent!r}, not {whole[frame.seq]!r}")
    if not reader.connections or reader.connections[-1].over != "ended":
        return KEPT
    if reader.told is None:
        return Verdict(None, f"{reader.name} was not asked what it was told")
    story = Story(turn.text, turn.usage if reader.told.usage is not None else None, turn.outcome)
    if reader.told != story:
        return Verdict(False, f"{reader.name} was told {reader.told}, the log says {story}")
    return KEPT


def _forgotten(history: History, key: TurnKey) -> Verdict:
    turn = history.fold(key)
    if turn.request is None:
        return Verdict(False, f"{key.turn} was acknowledged and is not in the log")
    if turn.end is None:
        return Verdict(False, f"{key.turn} was acknowledged and never ended")
    if history.records is None:
        return Verdict(None, f"{key.turn}: nobody looked into SQLite")
    row = history.records.get(key)
    if row is None or row.outcome == "running":
        return Verdict(False, f"{key.turn} has ended and is {'missing' if row is None else 'running'} in SQLite")
    return KEPT


def _acknowledged(history: History) -> list[TurnKey]:
    return [key for key, is_acknowledged in history.posted.items() if is_acknowledged]
