"""Many schedules, one after another, or over several processes. It decides nothing about any of them."""

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

from tests.schedules.judge import judge
from tests.schedules.mutants import without
from tests.schedules.schedule import Schedule

# Whoever takes part knows everybody else, and nobody is freed by count: so many are, at once.
COLLECT_EVERY = 200
CHUNK = 500


class Outcome(NamedTuple):
    seed: int
    happened: int
    """How many happenings it had."""
    evidence: str
    """Empty when it is green."""
    is_false: bool
    """A promise was broken; else something was not seen, if it is not green."""


def outcomes(seeds: Iterable[int], rule: str | None = None) -> Iterator[Outcome]:
    """Plays each, without `rule`, and judges it."""
    with _collected_seldom():
        for played, seed in enumerate(seeds, 1):
            schedule = Schedule(seed)
            with without(rule) if rule else nullcontext():
                schedule.play()
            verdict = judge(schedule)
            yield Outcome(
                seed, schedule.world.happened, "" if verdict.is_green else verdict.evidence, verdict.holds is False
            )
            if played % COLLECT_EVERY == 0:
                gc.collect()


def over(processes: int, first: int, after: int, rule: str | None = None) -> Iterator[Outcome]:
    """`outcomes` of the seeds from `first` to before `after`, in their order, played by so many processes."""
    chunks = [range(begin, min(begin + CHUNK, after)) for begin in range(first, after, CHUNK)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for chunk in pool.map(partial(_listed, rule=rule), chunks):
            yield from chunk


def _listed(seeds: range, rule: str | None) -> list[Outcome]:
    return list(outcomes(seeds, rule))


@contextmanager
def _collected_seldom() -> Iterator[None]:
    """A tenth of the time went into looking for garbage among what is there to stay."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
