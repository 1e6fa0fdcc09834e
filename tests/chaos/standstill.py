"""How long nothing was stored, of all turns and of one, and what was broken then: read off a run. Pure."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from tests.checker.history import Append, Fault
from tests.checker.run import NS_PER_S, Run


class Standstill(NamedTuple):
    """A stretch without an entry."""

    s: float
    whose: str
    beside: tuple[str, ...]
    """The kinds of fault that there were meanwhile."""

    def __str__(self) -> str:
        return f"{self.s:.1f} s of {self.whose}, beside {', '.join(self.beside) or 'nothing that was broken'}"


def of_all(run: Run) -> Standstill:
    """The longest time in which no append was acknowledged: the load never leaves off asking before the end."""
    stored = sorted(one.returned for one in run.of(Append) if one.outcome == "ok" and one.returned is not None)
    return _longest(run, [(before, after, "all turns") for before, after in pairwise(stored)])


def of_one(run: Run) -> Standstill:
    """The longest time that a turn was without an entry, from its request to its end."""
    gaps = []
    for key, entered in run.turns.items():
        times = [run.monotonic(stored.at) for stored in entered.valid]
        gaps += [
            (before, after, key.turn) for before, after in pairwise(times) if before is not None and after is not None
        ]
    return _longest(run, gaps)


def _longest(run: Run, gaps: Iterable[tuple[int, int, str]]) -> Standstill:
    before, after, whose = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0, "no turn"))
    beside = {
        fault.kind: None
        for fault in run.of(Fault)
        if fault.invoked < after and (fault.returned is None or fault.returned > before)
    }
    return Standstill((after - before) / NS_PER_S, whose, tuple(beside))
