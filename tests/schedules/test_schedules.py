"""Thousands of schedules, by seed: `python -m tests.schedules --seed 7 --trace` tells how a red one came about."""

from collections import Counter

import pytest

from tailrace.proto.entries import Attempt
from tailrace.proto.fold import fold
from tests.schedules.judge import judge
from tests.schedules.many import outcomes
from tests.schedules.mutants import MUTANTS
from tests.schedules.schedule import Schedule

SEEDS, CHUNKS = 20_000, 8
# The most that one of them has needed is 1,655.
SEEDS_FOR_A_MUTANT = 4_000


def played(seed: int, *, is_traced: bool = False) -> Schedule:
    schedule = Schedule(seed, is_traced=is_traced)
    schedule.play()
    return schedule


@pytest.mark.no_cover  # twice as long, and the lines are covered by the tests that say what they are for
@pytest.mark.timeout(240)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_breaks_a_promise(chunk: int) -> None:
    """Whatever is lost, late, stale, repeated, forked, frozen or killed: each turn is told once, and whole."""
    size = SEEDS // CHUNKS
    seeds = range(chunk * size, (chunk + 1) * size)
    assert [outcome.evidence for outcome in outcomes(seeds) if outcome.evidence] == []


@pytest.mark.parametrize("seed", [1_260, 30_236])
def test_what_was_red_is_green(seed: int) -> None:
    """A generator that made two calls in one attempt, for its turn was given back to it, and read where that was not
    known yet; one that slept over a stale read.
    """
    verdict = judge(played(seed))
    assert verdict.is_green, verdict.evidence


@pytest.mark.rule("R72")
@pytest.mark.no_cover
@pytest.mark.timeout(240)
@pytest.mark.parametrize("rule", MUTANTS)
def test_without_a_rule_some_schedule_breaks_a_promise(rule: str) -> None:
    """A simulator that stays green without a rule could not have found out that it is missing."""
    assert any(outcome.is_false for outcome in outcomes(range(SEEDS_FOR_A_MUTANT), rule))


def test_a_seed_is_one_schedule() -> None:
    """What is red can be replayed: the same seed has the same story, happening by happening."""
    first, second = (played(9, is_traced=True) for _ in range(2))
    assert first.world.trace
    assert first.world.trace == second.world.trace
    assert first.world.trace != played(10, is_traced=True).world.trace


def test_what_is_to_go_wrong_does() -> None:
    """A fault that never happens proves nothing, nor does a turn that nobody has to take over."""
    happened: Counter[str] = Counter()
    for seed in range(400):
        schedule = played(seed)
        turn = fold(schedule.stream.stored)
        assert turn.end is not None
        happened.update(schedule.stream.done)
        modes = [one.entry.mode for one in schedule.stream.stored if isinstance(one.entry, Attempt)]
        happened.update([turn.outcome, *modes, turn.error.code if turn.error else ""])
        happened["misfit"] += turn.misfit is not None
        happened["fork"] += turn.skipped > 0
        happened["several takeovers"] += len(modes) > 2
        happened["hedge"] += sum(worker.hedges for worker in schedule.workers)
        happened["hedge that was first"] += turn.hedges
        happened["cut"] += sum(
            connected.over == "cut" for reader in schedule.readers for connected in reader.connections
        )
    wanted = {
        *("lost request", "lost acknowledgement", "late write", "unsettled", "full", "fork", "change"),
        *(
            "look",
            "broken generator",
            "stale read",
            "unreadable",
            "short read",
            "dropped hint",
            "repeated hint",
            "cut",
            "old leader",
        ),
        *("completed", "cancelled", "failed", "fresh", "continue", "restart", "several takeovers", "misfit"),
        *("hedge", "hedge that was first", "interrupted", "attempts_exhausted", "backend_refused_request"),
    }
    assert {one for one in wanted if not happened[one]} == set()
