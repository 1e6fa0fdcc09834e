"""Pauses in a run: the longest times without an entry, and the delays of readers by takeovers. Pure functions."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from tailrace.proto.entries import Attempt, Entry, Request
from tailrace.proto.ids import Seq, TurnKey
from tests.checker.history import Append, Fault, Read
from tests.checker.run import NS_PER_S, Run

DELTA = b'data: {"type":"delta"'


class Pause(NamedTuple):
    """A time without an entry, with the kinds of fault that were active."""

    s: float
    turn: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.s:.1f} s of {self.turn}, during {', '.join(self.faults) or 'no fault'}"


class Delay(NamedTuple):
    """How long a reader waited for its next delta, and the number of takeovers meanwhile."""

    s: float
    takeovers: int


def longest_pause(run: Run) -> Pause:
    """Returns the longest time in which no append was acknowledged."""
    stored = sorted(one.returned for one in run.of(Append) if one.outcome == "ok" and one.returned is not None)
    return _longest(run, [(before, after, "all turns") for before, after in pairwise(stored)])


def longest_turn_pause(run: Run) -> Pause:
    """Returns the longest time between two entries of one turn. A batch and a queued turn wait for other turns."""
    gaps = []
    for key, turn in run.turns.items():
        if key in run.batches:
            continue
        times = [run.monotonic(stored.at) for stored in turn.valid if not _is_queued(stored.entry)]
        gaps += [
            (before, after, key.turn) for before, after in pairwise(times) if before is not None and after is not None
        ]
    return _longest(run, gaps)


def _is_queued(entry: Entry) -> bool:
    return isinstance(entry, Request) and entry.is_queued


def _longest(run: Run, gaps: Iterable[tuple[int, int, str]]) -> Pause:
    before, after, turn = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0, "no turn"))
    faults = {
        fault.kind: None
        for fault in run.of(Fault)
        if fault.invoked < after and (fault.returned is None or fault.returned > before)
    }
    return Pause((after - before) / NS_PER_S, turn, tuple(faults))


def takeover_delays(run: Run) -> Iterator[Delay]:
    """Yields the delays of readers that were connected when a turn was taken over."""
    arrivals: dict[tuple[str, TurnKey], list[tuple[int, Seq]]] = defaultdict(list)
    for read in run.of(Read):
        if read.key is not None:
            arrivals[read.process, read.key] += [
                (at, frame.seq) for at, frame in zip(read.arrived, read.frames, strict=True) if DELTA in frame.sent
            ]
    for (_, key), deltas in arrivals.items():
        takeovers = _takeovers(run, key)
        for (before, last), (after, first) in pairwise(deltas):
            if count := sum(last < seq < first for seq in takeovers):
                yield Delay((after - before) / NS_PER_S, count)


def _takeovers(run: Run, key: TurnKey) -> list[Seq]:
    """Returns the sequences of attempts by another generator than the one before."""
    stored = run.turns[key].valid if key in run.turns else []
    attempts = [(one.seq, one.entry.generator) for one in stored if isinstance(one.entry, Attempt)]
    return [seq for (_, before), (seq, after) in pairwise(attempts) if before != after]
