"""Compares Tailrace with other ways to stream an answer, on one machine.

Each system is an arm. `make bench` measures every arm five times, in random order, and keeps the result, from which
`make docs` writes the tables of docs/BENCHMARKS.md. `make bench ARGS=--quick` takes two minutes and keeps nothing.
Examples:

    python -m benchmarks.compare --arms tuned tailrace --load 50x50
    python -m benchmarks.compare --arms tailrace --beside ../before --load 200x50,100x0

CPU is the CPU time of all processes of an arm, minus the time that they use when idle. Other work on the machine
changes it less than the delay. Readers check each word. The run stops if Tailrace loses, repeats or reorders one;
another arm that does so is left out of the load.
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.compare import attached_readers, report
from benchmarks.compare.arms import ARMS, Arm, Missing, port_of, process, tailrace
from benchmarks.compare.attached_readers import Streams
from benchmarks.compare.readers import TIMEOUT_S, read_many
from benchmarks.compare.report import Load, Result, Sample
from benchmarks.process_usage import raise_file_limit

# Wait until the ends of all turns are acknowledged and recorded.
SETTLE_S = 0.5
IDLE_S = 3.0
LOADS = "1x50,50x50,200x50,350x50,500x10,100x0"
# The number of deltas of a turn at full speed.
WORDS = 60
WARM_WORDS = 20
# The arms whose streams can be resumed.
RESUMABLE = ("resumable-stream", "nchan", "tailrace", "tailrace-always")

T = TypeVar("T")


async def measure_idle(arms: list[Arm]) -> dict[str, dict[str, float]]:
    """Returns the share of a core that each role of each arm uses without turns."""
    await asyncio.sleep(1)
    began, before = time.monotonic(), [arm.cpu_s() for arm in arms]
    await asyncio.sleep(IDLE_S)
    took, after = time.monotonic() - began, [arm.cpu_s() for arm in arms]
    return {
        arm.name: {role: (later[role] - earlier[role]) / took for role in earlier}
        for arm, earlier, later in zip(arms, before, after, strict=True)
    }


async def measure(arm: Arm, turns: int, words: int, rate: int, idle: dict[str, float]) -> Sample:
    """Reads `turns` answers at once. Raises `RuntimeError` if a word is missing, repeated or out of order."""
    began, before = time.monotonic(), arm.cpu_s()
    found = await read_many(arm, turns, words, rate)
    took = time.monotonic() - began
    await asyncio.sleep(SETTLE_S)
    after, whole = arm.cpu_s(), time.monotonic() - began
    cuts = statistics.quantiles((delay for one in found for delay in one.delays), n=1000)
    used = {role: after[role] - before[role] - idle[role] * whole for role in before}
    return Sample(
        p50_ms=cuts[499] * 1e3,
        p99_ms=cuts[989] * 1e3,
        first_ms=statistics.median(one.first_word for one in found) * 1e3,
        took_s=took,
        cpu_us={role: seconds / (turns * words) * 1e6 for role, seconds in used.items()},
    )


def start(names: list[str], beside: list[Path], model: str, stack: contextlib.ExitStack) -> list[Arm]:
    """Starts the arms `names` and the checkouts `beside`. Prints each arm that cannot start, and leaves it out."""
    starts = [(name, ARMS[name]) for name in names]
    starts += [(path.name, tailrace(path.name, "--sync", "default", checkout=path)) for path in beside]
    arms = []
    for name, run in starts:
        try:
            arms.append(stack.enter_context(run(model)))
        except Missing as error:
            print(f"WITHOUT {name}: {error}", file=sys.stderr)
    return arms


async def measure_or_leave_out(arm: Arm, measuring: Awaitable[T], left_out: dict[str, str]) -> T | None:
    """Returns the measurement. If the arm is too slow or broke off an answer, adds the reason to `left_out`.

    Raises `RuntimeError` if it is Tailrace that has lost, repeated or reordered a word.
    """
    try:
        return await measuring
    except TimeoutError:
        why = left_out[arm.name] = f"not finished in {TIMEOUT_S} s"
    except (RuntimeError, OSError) as error:
        if arm.is_tailrace:
            raise
        left_out[arm.name], why = "broke off an answer", str(error)
    print(f"LEFT OUT: {arm.name}: {why}", file=sys.stderr)
    return None


async def measure_load(arms: list[Arm], load: Load, repeats: int) -> None:
    """Adds `repeats` samples of each arm to `load`, in random order. Drops the samples of an arm that is left out."""
    for arm in arms:
        # Fills connection pools and caches. This sample is discarded.
        no_idle = dict.fromkeys(arm.processes, 0.0)
        await measure_or_leave_out(arm, measure(arm, load.turns, WARM_WORDS, load.rate, no_idle), load.left_out)
    idle = await measure_idle(arms)
    for _ in range(repeats):
        for arm in random.sample(arms, len(arms)):
            if arm.name in load.left_out:
                continue
            measuring = measure(arm, load.turns, load.words, load.rate, idle[arm.name])
            if (sample := await measure_or_leave_out(arm, measuring, load.left_out)) is not None:
                load.samples[arm.name].append(sample)
    load.load_average = os.getloadavg()[0]
    for name in load.left_out:
        load.samples.pop(name, None)


async def measure_streams(arms: list[Arm], repeats: int) -> dict[str, list[Streams]]:
    """Returns the measurements of readers that attach to running turns, without the arms that are left out."""
    found: dict[str, list[Streams]] = {arm.name: [] for arm in arms}
    left_out: dict[str, str] = {}
    for _ in range(repeats):
        for arm in random.sample(arms, len(arms)):
            if arm.name in left_out:
                continue
            sample = await measure_or_leave_out(arm, attached_readers.measure_streams(arm), left_out)
            if sample is not None:
                found[arm.name].append(sample)
    return {name: samples for name, samples in found.items() if name not in left_out}


async def run(options: argparse.Namespace) -> Result:
    result = Result(at=time.strftime("%Y-%m-%d", time.gmtime()), cores=os.cpu_count() or 0)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(process(sys.executable, "-m", "benchmarks.compare.model"))
        arms = start(options.arms, options.beside, f"http://127.0.0.1:{port_of(model)}", stack)
        checkouts = {path.name for path in options.beside}
        attaching = [arm for arm in arms if options.streams and (arm.name in RESUMABLE or arm.name in checkouts)]
        for arm in attaching:
            idle = await measure_or_leave_out(arm, attached_readers.measure_idle_streams(arm), {})
            if idle is not None:
                result.idle_streams[arm.name] = idle
        for turns, rate in options.load:
            load = Load(turns, rate, options.seconds * rate or WORDS, {arm.name: [] for arm in arms})
            await measure_load(arms, load, options.repeats)
            result.loads.append(load)
            print(report.table(load), flush=True)
        if attaching:
            result.streams = await measure_streams(attaching, options.streams)
            print(attached_readers.table(result.streams, result.idle_streams), flush=True)
    return result


def loads(text: str) -> list[tuple[int, int]]:
    """Returns the loads in an argument such as `50x50,100x0`. Raises ValueError."""
    return [(count(turns), int(rate)) for turns, rate in (one.split("x") for one in text.split(","))]


def checkout(text: str) -> Path:
    """Returns the folder of a checkout. Raises ValueError if it is none."""
    if not (path := Path(text).resolve()).joinpath("tailrace").is_dir():
        raise ValueError(text)
    return path


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--beside", type=checkout, nargs="*", default=[], help="paths of other checkouts of Tailrace")
    parser.add_argument(
        "--load", type=loads, default=LOADS, help="TURNSxRATE: turns at once, deltas a second (0: at full speed)"
    )
    parser.add_argument("--seconds", type=count, default=4, help="how long a turn lasts")
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--streams", type=int, default=3, metavar="REPEATS", help="readers of running turns; 0: none")
    parser.add_argument("--quick", action="store_true", help="one load, two repeats, two minutes")
    parser.add_argument("--write", action="store_true", help="keep the result and its plots")
    options = parser.parse_args()
    if options.quick:
        options.load, options.repeats, options.seconds, options.streams = loads("50x50"), 2, 3, 0
    raise_file_limit()
    result = uvloop.run(run(options))
    if options.write and not options.quick:
        report.write(result)


if __name__ == "__main__":
    main()
