"""Plays and judges many schedules, one after another or in several processes."""

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

from tests.schedules.judge import judge
from tests.schedules.mutants import disable
from tests.schedules.schedule import Schedule

# The objects of a schedule refer to each other, so that only the collector frees them. Its memory holds so many.
COLLECT_EVERY = 200
CHUNK = 500


class Outcome(NamedTuple):
    """The verdict on the schedule of one seed."""

    seed: int
    handled: int
    """How many callbacks it has run."""
    evidence: str
    """Empty when it is green."""
    is_false: bool
    """A promise was broken. When neither false nor green, the judge has not seen enough."""


def outcomes(seeds: Iterable[int], rule: str | None = None) -> Iterator[Outcome]:
    """Plays the schedule of each seed, without `rule` if one is given, and judges it."""
    with _few_collections():
        for played, seed in enumerate(seeds, 1):
            schedule = Schedule(seed)
            with disable(rule) if rule else nullcontext():
                schedule.play()
            verdict = judge(schedule)
            evidence = "" if verdict.is_green else verdict.evidence
            yield Outcome(seed, schedule.world.handled, evidence, verdict.holds is False)
            if played % COLLECT_EVERY == 0:
                gc.collect()


def outcomes_in_processes(processes: int, seeds: range, rule: str | None) -> Iterator[Outcome]:
    """Yields the outcomes of the seeds in order, played by `processes` processes."""
    chunks = [seeds[begin : begin + CHUNK] for begin in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for chunk in pool.map(partial(_list_outcomes, rule=rule), chunks):
            yield from chunk


def _list_outcomes(seeds: range, rule: str | None) -> list[Outcome]:
    return list(outcomes(seeds, rule))


@contextmanager
def _few_collections() -> Iterator[None]:
    """Turns the garbage collector off, which took a tenth of the time."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
