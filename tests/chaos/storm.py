"""A storm: the system, its load, and the nemesis, for as long as it takes; all of it recorded. Judges nothing.

What is hit, and when, is drawn from the seed; what it is at just then is the machine's own affair.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import msgspec

from tailrace.proto.errors import LogUnavailable
from tests.chaos.faults import KINDS
from tests.chaos.load import Load
from tests.chaos.nemesis import QUICK, Count, Nemesis, Pace
from tests.chaos.system import Memory, Size, System, started
from tests.checker.census import Counts
from tests.harness.generator_in_loop import stats
from tests.harness.until import until

TELL_EVERY_S = 10.0
# All is healed: what has not ended by then has broken a promise, and it will be said which.
CALM_S_MAX = 60.0


class Storm(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen."""

    seed: int
    minutes: float = 1.0
    """0: each kind once, as fast as can be."""
    faults: Sequence[str]
    size: Size = Size()
    at_once: int = 12

    def of(self, lane: str) -> list[str]:
        return [name for name in self.faults if KINDS[name].lane == lane]


class Seen(msgspec.Struct, kw_only=True):
    """What happened and is in no history."""

    counts: dict[str, Count] = msgspec.field(default_factory=dict)
    problems: list[str] = msgspec.field(default_factory=list)
    alarms: Counter[str] = msgspec.field(default_factory=Counter)
    """Lines of any process that say that somebody should look, by what they say."""
    mismatches: int = 0
    """Continuations that began with something which the model had not said."""
    asked: int = 0
    ended: int = 0
    took_s: float = 0.0
    memory: tuple[dict[str, Memory], dict[str, Memory]] = ({}, {})
    """Before and after, by process."""


async def rage(storm: Storm, folder: Path) -> Seen:
    """Starts everything, records it in `folder` while the storm rages, and ends every process it started."""
    async with started(folder, storm.size) as system:
        await system.calm()
        before, memory = await system.count(), system.memory()
        began = monotonic()
        model = [name.removeprefix("model-") for name in storm.of("question")]
        load = Load(system, random.Random(f"load {storm.seed}"), storm.at_once, model)
        struck: list[str] = [name for name in storm.faults if KINDS[name].strike is not None]
        nemesis = Nemesis(
            system,
            random.Random(f"nemesis {storm.seed}"),
            struck,
            Pace() if storm.minutes else QUICK,
            lease_s=storm.size.lease_s,
            at_once=storm.at_once,
        )
        telling = asyncio.create_task(tell(began, load, nemesis))
        loading = asyncio.create_task(load.run())
        try:
            await nemesis.run(storm.minutes * 60)
            load.is_over.set()
            # What goes wrong in there is a mistake of the load's.
            for one in (await asyncio.wait([loading], timeout=CALM_S_MAX))[0]:
                one.result()
        finally:
            for task in (telling, loading):
                task.cancel()
            await asyncio.wait([telling, loading])
        seen = Seen(counts=dict(nemesis.counts), problems=nemesis.problems, asked=load.asked, ended=load.ended)
        seen.took_s = monotonic() - began
        await settle(system, seen, before)
        seen.memory = memory, system.memory()
    return seen


async def settle(system: System, seen: Seen, before: Counts) -> None:
    """What there is at the end, once nothing moves any more."""
    try:
        await system.settled(CALM_S_MAX)
        if system.cluster is not None:
            await until(system.cluster.is_whole, CALM_S_MAX)
        await system.calm()
        await system.settled(CALM_S_MAX)
        await system.count_again(before)
    except (AssertionError, LogUnavailable) as error:
        seen.problems.append(f"it does not settle: {error}")
    await system.collect(nodes=len(system.nodes))
    seen.alarms.update(fact["event"] for one in system.processes for fact in one.facts if fact["level"] == "error")
    seen.mismatches = (await stats(system.claude_url))["continuations_mismatched"]


async def tell(began: float, load: Load, nemesis: Nemesis) -> None:
    """A line now and then."""
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        done = sum(count.done for count in nemesis.counts.values())
        now = ", ".join(nemesis.now.values()) or "nothing"
        print(
            f"{monotonic() - began:5.0f} s: {load.ended} of {load.asked} turns, {done} faults; broken now: {now}",
            flush=True,
        )
