"""A chaos run: the system, its load, and the fault injector. All of it is recorded.

The seed decides which faults happen when, and what they hit. What the system does at that moment is not repeatable.
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
from tests.chaos.injector import QUICK, Count, Injector, Pace
from tests.chaos.load import Load
from tests.chaos.system import ChaosSystem, Memory, Size
from tests.checker.resources import Counts
from tests.harness.generator_in_loop import read_stats

PROGRESS_EVERY_S = 10.0
# Longer than the default stall timeout of a model, plus a repeated call.
ENDED_S_MAX = 90.0


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    minutes: float = 1.0
    """0: each kind of fault once, as fast as possible."""
    faults: Sequence[str]
    size: Size = Size()
    concurrent_turns: int = 12

    def of(self, group: str) -> list[str]:
        return [name for name in self.faults if KINDS[name].group == group]


class Observed(msgspec.Struct, kw_only=True):
    """Observations of a run that its history does not contain."""

    counts: dict[str, Count] = msgspec.field(default_factory=dict)
    problems: list[str] = msgspec.field(default_factory=list)
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    """Log lines of the level error, by event."""
    mismatches: int = 0
    """Continuations with a beginning that the model had not sent."""
    posted: int = 0
    ended: int = 0
    took_s: float = 0.0
    memory: tuple[dict[str, Memory], dict[str, Memory]] = ({}, {})
    """By process, at the beginning and at the end."""


async def run_campaign(campaign: Campaign, folder: Path) -> Observed:
    """Runs and records everything in `folder`."""
    size = campaign.size
    async with ChaosSystem(folder, size) as system:
        await system.start(generators=size.generators, gateways=size.gateways)
        await system.warm_up()
        await system.wait_until_settled(ENDED_S_MAX)
        before, memory = await system.count(), system.memory()
        began = monotonic()
        failures = [name.removeprefix("model-") for name in campaign.of("prompt")]
        load = Load(system, random.Random(f"load {campaign.seed}"), campaign.concurrent_turns, failures)
        injector = Injector(
            system,
            random.Random(f"injector {campaign.seed}"),
            [name for name in campaign.faults if KINDS[name].inject is not None],
            Pace() if campaign.minutes else QUICK,
            concurrent_turns=campaign.concurrent_turns,
        )
        reporting = asyncio.create_task(report_progress(began, load, injector))
        loading = asyncio.create_task(load.run())
        try:
            await injector.run(campaign.minutes * 60)
            load.is_over.set()
            done, _ = await asyncio.wait([loading], timeout=ENDED_S_MAX)
            for task in done:
                task.result()
        finally:
            for task in (reporting, loading):
                task.cancel()
            await asyncio.wait([reporting, loading])
        observed = Observed(
            counts=dict(injector.counts), problems=injector.problems, posted=load.posted, ended=load.ended
        )
        observed.took_s = monotonic() - began
        await settle(system, observed, before)
        observed.memory = memory, system.memory()
    return observed


async def settle(system: ChaosSystem, observed: Observed, before: Counts) -> None:
    """Waits until the system is idle and healthy, counts its resources, and collects the run."""
    try:
        await system.wait_until_settled(ENDED_S_MAX)
        await system.wait_until_healed(ENDED_S_MAX)
        await system.warm_up()
        await system.wait_until_settled(ENDED_S_MAX)
        await system.count_again(before)
    except (AssertionError, LogUnavailable) as error:
        observed.problems.append(f"the system does not settle: {error}")
    await system.collect()
    facts = [fact for process in system.processes.values() for fact in process.log_lines]
    observed.errors.update(fact["event"] for fact in facts if fact["level"] == "error")
    observed.mismatches = (await read_stats(system.claude.url))["continuations_mismatched"]


async def report_progress(began: float, load: Load, injector: Injector) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        faults = sum(count.injected for count in injector.counts.values())
        active = ", ".join(injector.active.values()) or "none"
        print(
            f"{monotonic() - began:5.0f} s: {load.ended} of {load.posted} turns, {faults} faults; active: {active}",
            flush=True,
        )
