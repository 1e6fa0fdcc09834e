"""A chaos run: the system, its load, and the fault injector. All of it is recorded.

The seed decides which faults happen when, and what they hit. What the system does at that moment is not repeatable.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from tailrace.proto.errors import LogUnavailable
from tests.chaos.batch_load import INPUTS_MAX, BatchLoad
from tests.chaos.faults import KINDS
from tests.chaos.injector import QUICK, Count, Injector, Pace
from tests.chaos.load import Load
from tests.chaos.system import ChaosSystem, Memory, Size
from tests.checker.resources import Counts
from tests.harness.generator_in_loop import read_stats

PROGRESS_EVERY_S = 10.0
# Longer than the default stall timeout of a model, plus a repeated call, and than two searches for a message batch.
ENDED_S_MAX = 150.0


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    minutes: float = 1.0
    """0: each kind of fault once, as fast as possible."""
    faults: Sequence[str]
    size: Size = Size()
    concurrent_turns: int = 12
    concurrent_batches: int = 0
    """A generator that dies may search a minute for its message batch, so a short run has none."""

    def of(self, group: str) -> list[str]:
        return [name for name in self.faults if KINDS[name].group == group]


class Observations(msgspec.Struct, kw_only=True):
    """Observations of a run that its history does not contain."""

    counts: dict[str, Count] = msgspec.field(default_factory=dict)
    problems: list[str] = msgspec.field(default_factory=list)
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    """Log lines of the level error, by event."""
    mismatches: int = 0
    """Continuations with a beginning that the model had not sent."""
    wrong: Counter[str] = msgspec.field(default_factory=Counter)
    """Wrong responses of the model about message batches, by fault."""
    posted: int = 0
    ended: int = 0
    took_s: float = 0.0
    memory: tuple[dict[str, Memory], dict[str, Memory]] = ({}, {})
    """By process, at the beginning and at the end."""


async def run_campaign(campaign: Campaign, folder: Path) -> Observations:
    """Runs and records everything in `folder`."""
    size = campaign.size
    async with ChaosSystem(folder, size) as system:
        await system.start(generators=size.generators, gateways=size.gateways)
        await system.warm_up()
        await system.wait_until_settled(ENDED_S_MAX)
        before, memory = await system.count(), system.memory()
        began = monotonic()
        failures = [name.removeprefix("model-") for name in campaign.of("prompt")]
        loads = [Load(system, random.Random(f"load {campaign.seed}"), campaign.concurrent_turns, failures)]
        if campaign.concurrent_batches:
            failures = [name.removeprefix("batch-") for name in campaign.of("batch")]
            chance = random.Random(f"batches {campaign.seed}")
            loads.append(BatchLoad(system, chance, campaign.concurrent_batches, failures))
        injector = Injector(
            system,
            random.Random(f"injector {campaign.seed}"),
            [name for name in campaign.faults if KINDS[name].inject is not None],
            Pace() if campaign.minutes else QUICK,
            concurrent_turns=campaign.concurrent_turns + INPUTS_MAX * campaign.concurrent_batches,
        )
        reporting = asyncio.create_task(report_progress(began, loads, injector))
        loading = [asyncio.create_task(load.run()) for load in loads]
        try:
            await injector.run(campaign.minutes * 60)
            for load in loads:
                load.is_over.set()
            done, _ = await asyncio.wait(loading, timeout=ENDED_S_MAX)
            for task in done:
                task.result()
        finally:
            for task in (reporting, *loading):
                task.cancel()
            await asyncio.wait([reporting, *loading])
        observed = Observations(counts=dict(injector.counts), problems=injector.problems)
        observed.posted, observed.ended = sum(load.posted for load in loads), sum(load.ended for load in loads)
        observed.took_s = monotonic() - began
        await settle(system, observed, before)
        observed.memory = memory, system.memory()
    return observed


async def settle(system: ChaosSystem, observed: Observations, before: Counts) -> None:
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
    stats: Any = await read_stats(system.claude.url)
    observed.mismatches, observed.wrong = stats["continuations_mismatched"], Counter(stats["by_fault"])


async def report_progress(began: float, loads: Sequence[Load], injector: Injector) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        faults = sum(count.injected for count in injector.counts.values())
        active = ", ".join(injector.active.values()) or "none"
        ended = ", ".join(f"{load.ended} of {load.posted} {load.what}" for load in loads)
        print(f"{monotonic() - began:5.0f} s: {ended}, {faults} faults; active: {active}", flush=True)
