"""Schedules by seed: `make schedules ARGS='--seed 7 --trace'` shows what happens in one."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple
from unittest.mock import patch

import pytest

from tailrace.gateway.streaming.feed import is_delta
from tailrace.generators import delta_ticks
from tailrace.generators.settings import Settings
from tailrace.proto.entries import Attempt, Entry, StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq
from tests.schedules import generator
from tests.schedules.judge import judge
from tests.schedules.many import outcomes
from tests.schedules.model import LONG
from tests.schedules.mutants import MUTANTS
from tests.schedules.schedule import Schedule
from tests.schedules.server import Answer

# `make schedules` plays 20,000.
SEEDS, CHUNKS = 1_000, 2
# A seed that notices a mutant, where the first one is large. It is tried before all others, to save a minute.
# A change of the product moves it: `make schedules ARGS='--without RULE'` prints the new ones.
FIRST_SEEN = {
    "end_check": 238,
    "reader_end_check": 2021,
    "reader_end_wait": 9444,
    "planner_second_read": 556,
}
SEEDS_FOR_A_MUTANT = 8_000
HAPPENINGS = {
    *("lost request", "lost acknowledgement", "late write", "unsettled", "full", "fork", "change"),
    *("stale read", "unreadable", "short read", "old leader", "dropped hint", "repeated hint", "cut"),
    *("poll", "broken generator", "drain"),
    *("completed", "cancelled", "failed", "fresh", "continue", "restart", "several takeovers", "misfit"),
    *("interrupted", "attempts_exhausted", "backend_refused_request"),
}


def play(seed: int, *, is_traced: bool = False) -> Schedule:
    schedule = Schedule(seed, is_traced=is_traced)
    schedule.play()
    return schedule


@pytest.mark.no_cover  # coverage doubles the time, and other tests say what the lines are for
@pytest.mark.timeout(240)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_breaks_a_promise_and_every_fault_happens(chunk: int) -> None:
    """Whatever is lost, late, stale, repeated, forked, frozen or killed: readers get each turn once, and whole.

    A fault that never happens proves nothing, nor does a turn that is never taken over.
    """
    size, broken, happened = SEEDS // CHUNKS, list[str](), Counter[str]()
    for seed in range(chunk * size, (chunk + 1) * size):
        schedule = play(seed)
        verdict = judge(schedule)
        broken += [] if verdict.is_green else [verdict.evidence]
        happened.update(happenings(schedule))
    assert broken == []
    assert {one for one in HAPPENINGS if not happened[one]} == set()


def happenings(schedule: Schedule) -> Iterator[str]:
    """Yields the faults of a schedule, the modes of its attempts, and what became of its turn."""
    turn = fold(schedule.server.stored)
    modes = [one.entry.mode for one in schedule.server.stored if isinstance(one.entry, Attempt)]
    yield from (*schedule.server.happened, *modes, turn.outcome, turn.error.code if turn.error else "")
    conditions = {
        "misfit": turn.misfit is not None,
        "fork": turn.skipped > 0,
        "several takeovers": len(modes) > 2,
        "cut": any(connected.over == "cut" for reader in schedule.readers for connected in reader.connections),
    }
    yield from (name for name, is_met in conditions.items() if is_met)


@pytest.mark.rule("R72")
@pytest.mark.no_cover
@pytest.mark.timeout(240)
@pytest.mark.parametrize("rule", MUTANTS)
def test_without_a_rule_some_schedule_breaks_a_promise(rule: str) -> None:
    """The simulator can see each rule."""
    seeds = (FIRST_SEEN.get(rule, 0), *range(SEEDS_FOR_A_MUTANT))
    assert any(outcome.is_false for outcome in outcomes(seeds, rule))


def test_a_seed_is_one_schedule() -> None:
    """The same seed has the same trace, so that a red one can be replayed."""
    first, second = (play(9, is_traced=True) for _ in range(2))
    assert first.world.trace
    assert first.world.trace == second.world.trace
    assert first.world.trace != play(10, is_traced=True).world.trace


# Each process begins with an import of everything.
@pytest.mark.timeout(180)
def test_a_seed_is_one_schedule_in_every_process() -> None:
    """No order depends on addresses or on the hashes of strings."""
    command = [sys.executable, "-m", "tests.schedules", "--seed", "12", "--trace"]
    traces = [
        subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    ]
    assert traces[0] == traces[1]


class PublishedEntry(NamedTuple):
    """A stored entry, and when its append began, in the simulated time."""

    at: float
    stored: StoredEntry


def long_answer(append_s: float) -> list[PublishedEntry]:
    """Returns the entries of a schedule without faults in which each append takes `append_s`."""
    schedule = next(one for one in map(Schedule, range(100)) if one.script.blocks[0].pieces == LONG)
    server, published = schedule.server, list[PublishedEntry]()
    server.is_faultless, schedule.faults.slow_s = True, 0.02

    def publish(entry: Entry, fence: Seq) -> Answer:
        answer = server.apply(entry, fence, append_s)
        published.append(PublishedEntry(asyncio.get_running_loop().time(), server.stored[-1]))
        return answer

    never_busy = patch("tests.schedules.schedule.BUSY_EVERY", 100)
    with patch.object(Schedule, "_at"), patch.object(server, "publish", publish), never_busy:
        schedule.play()
    assert fold(server.stored).text == "".join(LONG)
    return published


def test_slow_appends_become_fewer() -> None:
    """Deltas wait after a slow append, and not after a fast one."""
    fast, slow = len(long_answer(0.0001)), len(long_answer(0.025))
    with patch.object(delta_ticks, "JOIN_S", 0):
        fast_at_once, slow_at_once = len(long_answer(0.0001)), len(long_answer(0.025))
    assert fast == fast_at_once
    assert slow < slow_at_once


def test_the_first_delta_is_stored_at_once_and_the_next_after_the_interval() -> None:
    """TAILRACE_DELTA_INTERVAL_S. The end of the text waits for nothing."""
    interval_s = 0.04
    with patch.object(generator, "DEFAULTS", Settings(delta_interval_s=interval_s)):
        published = long_answer(append_s=0.0001)
    first, *others, _ = (index for index, one in enumerate(published) if is_delta(one.stored))
    waits_s = [after.at - before.at for before, after in pairwise(published)]
    assert waits_s[first - 1] < interval_s
    assert len(others) > 2
    assert [waits_s[index - 1] for index in others] == [pytest.approx(interval_s)] * len(others)
