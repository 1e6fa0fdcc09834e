"""What came of each turn that was held when something was killed: whether its cell is proved, and kept. Pure."""

from collections.abc import Iterable, Iterator

import msgspec

from tailrace.gateway.clients.registry import DIALECTS
from tailrace.proto.entries import Attempt
from tailrace.proto.ids import Seq
from tests.checker.history import Read
from tests.checker.run import NS_PER_S, Run
from tests.harness.readers import rendered
from tests.kills.cell import UNACKNOWLEDGED, Cell, named
from tests.kills.reader import Reader
from tests.kills.wave import Turn
from tests.promises import judge

# Begins anew with a message of its own, so that whoever adds up knows by himself.
TOLD_BY_ITSELF = "anthropic"


class Hit(msgspec.Struct, frozen=True):
    """A kill that hit a turn in a cell; `wrong` is what is wrong with it by dialect, `""` for the turn itself."""

    process: str
    cell: Cell
    killer: str
    dialects: tuple[str, ...]
    wrong: dict[str, str]


def hits(run: Run, turns: Iterable[Turn]) -> Iterator[Hit]:
    for turn in turns:
        wrong = {"": problem} if (problem := _problem(run, turn)) else {}
        for reader in turn.readers:
            if problem := _misread(run, reader):
                wrong[reader.dialect] = problem
        dialects = ("tailrace", *(reader.dialect for reader in turn.readers))
        yield Hit(turn.process, turn.cell, turn.killer, dialects, wrong)


def _problem(run: Run, turn: Turn) -> str:
    cell, process, key = turn.cell, turn.process, turn.key
    wanted = "end" if cell.entry == UNACKNOWLEDGED else cell.entry
    if turn.entry != wanted:
        return f"not proved: the last entry was {turn.entry}"
    if not turn.killed:
        return "not proved: nobody who held it was killed"
    if key not in run.turns:
        return "it is not in the log"
    folded, valid = run.folds[key], run.turns[key].valid
    takers = [one.entry.generator for one in valid if isinstance(one.entry, Attempt)]
    if process == "generator" and takers[:1] != [turn.killer] and cell.entry != "request":
        return f"not proved: {takers[:1]} had it, and {turn.killer} was killed"
    if (folded.outcome, folded.attempt) != (cell.outcome(process), cell.attempts(process)):
        due = f"{cell.outcome(process)} after {cell.attempts(process)}"
        return f"{folded.outcome} after {folded.attempt} attempts, {due} is due"
    verdict = judge(run.history(key))
    return "" if verdict.is_green else verdict.evidence


def _misread(run: Run, reader: Reader) -> str:
    stored, dialect = run.turns[reader.key].stored, DIALECTS[reader.dialect]
    restarts = [one.seq for one in stored if isinstance(one.entry, Attempt) and one.entry.mode == "restart"]
    is_forgotten = restarts and not dialect.can_reset and dialect.name != TOLD_BY_ITSELF
    since = restarts[-1] if is_forgotten else Seq(0)
    due = b"".join(frame.sent for frame in rendered(reader.key, stored, dialect.name) if frame.seq > since)
    if not reader.is_whole:
        return f"not told the end, over {reader.connections} connections"
    if reader.kept != due:
        place = next((n for n, (a, b) in enumerate(zip(reader.kept, due, strict=False)) if a != b), len(reader.kept))
        return f"has {reader.kept[place : place + 60]!r} where {due[place : place + 60]!r} is due"
    return ""


def waits_s(run: Run, turns: Iterable[Turn], *, is_delta: bool) -> Iterator[float]:
    """From the kill until a reader in our own dialect was told more: anything, or more of the answer."""
    reads: dict[object, list[Read]] = {}
    for read in run.of(Read):
        reads.setdefault(read.key, []).append(read)
    for turn in turns:
        valid = run.turns[turn.key].valid
        names = named(valid, turn.cell.kind)
        deltas = {one.seq for one, name in zip(valid, names, strict=True) if "delta " in name}
        came = [
            at
            for read in reads.get(turn.key, [])
            for at, frame in zip(read.arrived, read.frames, strict=True)
            if frame.seq > turn.tail and (frame.seq in deltas or not is_delta)
        ]
        if came:
            yield (min(came) - turn.killed) / NS_PER_S
