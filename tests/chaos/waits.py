"""What readers waited for when a generator had died, and which deaths hit a turn: read off a run. Pure."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from tailrace.proto.entries import Attempt
from tailrace.proto.ids import Seq
from tailrace.proto.subjects import TurnKey
from tests.checker.history import Read
from tests.checker.run import NS_PER_S, Run

DELTA = b'data: {"type":"delta"'


class Wait(NamedTuple):
    """What a reader waited for its next delta, and how many generators had lost the turn meanwhile."""

    s: float
    deaths: int


def losses(run: Run, key: TurnKey) -> list[tuple[str, Seq]]:
    """Who lost the turn, and where another went on with it."""
    stored = run.turns[key].valid if key in run.turns else []
    attempts = [(one.seq, one.entry.generator) for one in stored if isinstance(one.entry, Attempt)]
    return [(before, seq) for (_, before), (seq, after) in pairwise(attempts) if before != after]


def superseded(run: Run) -> set[str]:
    """Generators whose turn another had to go on with."""
    return {generator for key in run.turns for generator, _ in losses(run, key)}


def waits(run: Run) -> Iterator[Wait]:
    """Of readers who were there when a turn was lost."""
    arrivals: dict[tuple[str, TurnKey], list[tuple[int, Seq]]] = defaultdict(list)
    for read in run.of(Read):
        if read.key is not None:
            arrivals[read.process, read.key] += [
                (at, frame.seq) for at, frame in zip(read.arrived, read.frames, strict=True) if DELTA in frame.sent
            ]
    for (_, key), came in arrivals.items():
        taken = [seq for _, seq in losses(run, key)]
        for (before, last), (after, first) in pairwise(came):
            if deaths := sum(last < seq < first for seq in taken):
                yield Wait((after - before) / NS_PER_S, deaths)
