"""CPU time that each process of Tailrace needs for a delta: without traces, with traces, and of other checkouts.

`python -m benchmarks.cpu`, or `--beside ../before` to compare with another version. All arms run at once. They are
measured one after another, in another order each time. What the processes need while idle is subtracted. CPU time
depends less on the machine's other work than latency.
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.latency import ROOT, line_with, lines_of, process
from tests.harness.otlp_receiver import otlp_receiver

ROLES = {"nats-server": "NATS", "gateway": "gateway", "generators": "generator", "persistence": "persistence"}
# Until the end of a turn is acknowledged and recorded.
SETTLE_S = 0.5
IDLE_S = 5.0


class Arm(NamedTuple):
    """A running system, and the clocks of its processes' CPU time by role."""

    name: str
    port: int
    clocks: dict[str, list[int]]


class Sample(NamedTuple):
    """Microseconds of CPU a delta by role, and the events that readers received for a delta."""

    by_role: dict[str, float]
    events: float


@contextlib.contextmanager
def system(name: str, checkout: Path, options: tuple[str, ...], env: dict[str, str]) -> Iterator[Arm]:
    with (
        tempfile.TemporaryDirectory() as data,
        process("-m", "tailrace", "up", "--port", "0", "--data", data, *options, env=env, cwd=checkout) as up,
    ):
        port = int(line_with(up, r"^ready http://127\.0\.0\.1:(\d+)"))
        yield Arm(name, port, clocks(up.pid))


def clocks(parent: int) -> dict[str, list[int]]:
    """Returns the CPU clocks of the processes that `tailrace up` has started, by role."""
    found: dict[str, list[int]] = {role: [] for role in ROLES.values()}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(") ")[2].split()[1]) != parent:
                continue
            words = (status.parent / "cmdline").read_text().replace("/", " ").replace(".", " ").split("\0")
            role = next((ROLES[one] for text in words for one in text.split() if one in ROLES), None)
            if role is not None:
                # <linux/posix-timers.h>: the clock of a process is ~pid and CPUCLOCK_SCHED.
                found[role].append((~int(status.parent.name) << 3) | 2)
    return found


def read_clocks(arm: Arm) -> dict[str, int]:
    return {role: sum(map(time.clock_gettime_ns, clocks)) for role, clocks in arm.clocks.items()}


async def read(port: int, words: int, rate: int) -> int:
    """Reads one turn; returns how many events its deltas came in."""
    events = 0
    body: dict[str, object] = {"message": f"#sim words={words} rate={rate}"}
    async with contextlib.aclosing(lines_of(port, "/v1/turns", body)) as lines:  # type: ignore[type-var]
        async for line in lines:
            events += b'"delta"' in line
            if b'"done"' in line:
                return events
    raise SystemExit("a turn did not end")


async def measure_idle(arms: list[Arm]) -> dict[str, dict[str, float]]:
    """Returns the share of a core that each arm needs by role while it has no turns."""
    began, before = time.monotonic(), [read_clocks(arm) for arm in arms]
    await asyncio.sleep(IDLE_S)
    took_ns = (time.monotonic() - began) * 1e9
    after = [read_clocks(arm) for arm in arms]
    return {
        arm.name: {role: (later[role] - earlier[role]) / took_ns for role in earlier}
        for arm, earlier, later in zip(arms, before, after, strict=True)
    }


async def measure(arm: Arm, turns: int, words: int, rate: int, idle: dict[str, float]) -> Sample:
    async def one(index: int) -> int:
        await asyncio.sleep(index / turns / rate)
        return await read(arm.port, words, rate)

    began, before = time.monotonic(), read_clocks(arm)
    events = sum(await asyncio.gather(*map(one, range(turns))))
    await asyncio.sleep(SETTLE_S)
    after, deltas, took_ns = read_clocks(arm), turns * words, (time.monotonic() - began) * 1e9
    used = {role: after[role] - before[role] - idle[role] * took_ns for role in before}
    return Sample({role: used[role] / deltas / 1e3 for role in used}, events / deltas)


def row(name: str, samples: list[Sample]) -> str:
    """Returns the medians of an arm, and the range of the sum."""
    columns = [statistics.median(sample.by_role[role] for sample in samples) for role in ROLES.values()]
    sums = [sum(sample.by_role.values()) for sample in samples]
    events = statistics.median(sample.events for sample in samples)
    values = (f"{value:>11.0f}" for value in (*columns, statistics.median(sums)))
    return " ".join([f"{name:<16}", *values, f"{f'{min(sums):.0f} to {max(sums):.0f}':>13}", f"{events:>8.2f}"])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="turns at once")
    parser.add_argument("--words", type=int, default=100, help="deltas of each turn")
    parser.add_argument("--rate", type=int, default=50, help="deltas a second of each turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sync", default="always")
    parser.add_argument("--no-traces", action="store_true", help="leave the arm with traces out")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="other checkouts")
    asked = parser.parse_args()
    options = ("--generators", "1", "--sync", asked.sync)
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(otlp_receiver())
        checkouts = [("this", ROOT, {})] + [(path.name, path.resolve(), {}) for path in asked.beside]
        if not asked.no_traces:
            checkouts.insert(1, ("this, traces on", ROOT, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}))
        arms = [stack.enter_context(system(name, path, options, env)) for name, path, env in checkouts]
        for arm in arms:
            # Connections and caches, not counted.
            await measure(arm, asked.turns, 20, asked.rate, dict.fromkeys(ROLES.values(), 0.0))
        idle = await measure_idle(arms)
        samples: dict[str, list[Sample]] = {arm.name: [] for arm in arms}
        for _ in range(asked.repeats):
            for arm in random.sample(arms, len(arms)):
                samples[arm.name].append(await measure(arm, asked.turns, asked.words, asked.rate, idle[arm.name]))
        load = os.getloadavg()[0]
        print(f"{asked.turns} turns of {asked.rate} deltas/s, sync {asked.sync}, load average {load:.1f}")
        header = [f"{'µs a delta':<16}", *(f"{role:>11}" for role in (*ROLES.values(), "sum"))]
        print(" ".join([*header, f"{'range':>13}", f"{'events':>8}"]))
        for name, of_arm in samples.items():
            print(row(name, of_arm), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
