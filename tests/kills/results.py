"""Results of the kills: for each turn whether its cell was hit and every promise was kept. Pure functions."""

from collections.abc import Iterable, Iterator

import msgspec

from tailrace.features.gateway import DIALECTS
from tailrace.proto.entries import Attempt
from tailrace.proto.ids import Seq
from tests.checker.history import Read
from tests.checker.run import NS_PER_S, Run
from tests.harness.readers import render_frames
from tests.kills.cell import UNACKNOWLEDGED, Cell, entry_names
from tests.kills.dialect_reader import Reader
from tests.kills.round import Turn
from tests.promises import judge

# In this dialect a restart begins with a message_start, so readers keep the events before it.
KEEPS_RESTARTS = "anthropic"


class Hit(msgspec.Struct, frozen=True):
    """A kill of a process with a turn in a cell; `wrong` has the problems by dialect, with `""` for the turn itself."""

    process: str
    cell: Cell
    kill: str
    """Tells the kills of a cell apart."""
    dialects: tuple[str, ...]
    wrong: dict[str, str]


def hits(run: Run, turns: Iterable[Turn]) -> Iterator[Hit]:
    for turn in turns:
        wrong = {"": problem} if (problem := _problem(run, turn)) else {}
        for reader in turn.readers:
            if problem := _reader_problem(run, reader):
                wrong[reader.dialect] = problem
        dialects = ("tailrace", *(reader.dialect for reader in turn.readers))
        yield Hit(turn.process, turn.cell, turn.killed, dialects, wrong)


def _problem(run: Run, turn: Turn) -> str:
    cell, process, key = turn.cell, turn.process, turn.key
    entry = "end" if cell.entry == UNACKNOWLEDGED else cell.entry
    if turn.entry != entry:
        return f"not proved: the last entry was {turn.entry}"
    if not turn.killed_at:
        return "not proved: the generator of the turn was not killed"
    if key not in run.turns:
        return "it is not in the log"
    folded, valid = run.folds[key], run.turns[key].valid
    generators = [one.entry.generator for one in valid if isinstance(one.entry, Attempt)]
    if process == "generator" and generators[:1] != [turn.killed] and cell.entry != "request":
        return f"not proved: {turn.killed} was killed, the first attempt was of {generators[:1]}"
    outcome, attempts = cell.outcome(process), cell.attempts(process)
    if (folded.outcome, folded.attempt) != (outcome, attempts):
        return f"{folded.outcome} after {folded.attempt} attempts instead of {outcome} after {attempts}"
    verdict = judge(run.history(key))
    return "" if verdict.is_green else verdict.evidence


def _reader_problem(run: Run, reader: Reader) -> str:
    stored, dialect = run.turns[reader.key].stored, DIALECTS[reader.dialect]
    restarts = [one.seq for one in stored if isinstance(one.entry, Attempt) and one.entry.mode == "restart"]
    drops_restarted = restarts and not dialect.can_reset and dialect.name != KEEPS_RESTARTS
    since = restarts[-1] if drops_restarted else Seq(0)
    expected = b"".join(frame.sent for frame in render_frames(reader.key, stored, dialect.name) if frame.seq > since)
    if not reader.is_whole:
        return f"did not receive the end over {reader.connections} connections"
    if reader.kept != expected:
        pairs = enumerate(zip(reader.kept, expected, strict=False))
        at = next((n for n, (a, b) in pairs if a != b), len(reader.kept))
        return f"has {reader.kept[at : at + 60]!r} instead of {expected[at : at + 60]!r}"
    return ""


def pauses_s(run: Run, turns: Iterable[Turn], *, is_delta: bool) -> Iterator[float]:
    """Yields the times from a kill to the next frame of a reader in the dialect `tailrace`, or to its next delta."""
    reads: dict[object, list[Read]] = {}
    for read in run.of(Read):
        reads.setdefault(read.key, []).append(read)
    for turn in turns:
        valid = run.turns[turn.key].valid
        names = entry_names(valid, turn.cell.kind)
        deltas = {one.seq for one, name in zip(valid, names, strict=True) if "delta " in name}
        arrived = [
            at
            for read in reads.get(turn.key, [])
            for at, frame in zip(read.arrived, read.frames, strict=True)
            if frame.seq > turn.tail and (frame.seq in deltas or not is_delta)
        ]
        if arrived:
            yield (min(arrived) - turn.killed_at) / NS_PER_S
