"""Measures the CPU of a delta and of a turn, with a fixed number of deltas in flight.

The model sends the next delta of a turn when its reader has received the one before, so no deltas are joined, whatever
else the machine does. Arms are measured in random order; compare only the figures of one run. Example:

    python -m benchmarks.compare.closed_loop --arms bare tuned tailrace --beside ../before --in-flight 16
"""

import argparse
import asyncio
import contextlib
import functools
import os
import random
import re
import statistics
import time
from typing import NamedTuple

import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.compare.__main__ import SETTLE_S, checkout, measure_idle, start
from benchmarks.compare.arms import ARMS, Arm
from benchmarks.compare.model import BEGIN, Model
from benchmarks.compare.readers import TIMEOUT_S, Reader

PROMPT = re.compile(rb"#bench words=(\d+) rate=(\d+)")
# Turns of one delta each, one after the other in each lane, for the cost of a turn.
SHORT_TURNS = 10


class SteppedModel(Model):
    """A model whose turn sends its first delta at once and each other one when `step` is called.

    The field `rate` of the prompt identifies the turn.
    """

    turns: dict[int, "SteppedModel"] = {}  # noqa: RUF012
    """The running turns by their ids."""

    def _answer(self, body: bytes) -> None:
        prompts = PROMPT.findall(body)
        if not prompts:
            super()._answer(body)
            return
        self._count, turn = map(int, prompts[-1])
        self._sent = 0
        self.turns[turn] = self
        self._transport.write(BEGIN)
        self.step()

    def step(self) -> None:
        """Sends the next delta, or the end if all have been sent."""
        if self._sent < self._count:
            self._delta(self._sent)
            self._sent += 1
        else:
            self._end(self._count)


class SteppingReader(Reader):
    """A reader that lets the model send the next delta when it has received one.

    The reader waits for `resume` after the first delta and before the end, so that the CPU in between can be
    measured.
    """

    def __init__(self, arm: Arm, words: int, turn: int, is_paused: bool) -> None:
        super().__init__(arm, words, turn)
        self._turn, self._is_paused, self._seen = turn, is_paused, 0
        self.has_first = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        seen = len(self._words.delays)
        if seen and not self.has_first.is_set():
            self.has_first.set()
            if self._is_paused:
                self._seen = seen
                return
        self._step(seen - self._seen)
        self._seen = seen

    def resume(self) -> None:
        self._step(1)

    def _step(self, times: int) -> None:
        for _ in range(times):
            SteppedModel.turns[self._turn].step()


class Sample(NamedTuple):
    """CPU in µs by role, and the median delay in ms."""

    cpu_us: dict[str, float]
    delay_ms: float

    @property
    def sum_us(self) -> float:
        return sum(self.cpu_us.values())


async def read(arm: Arm, words: int, turn: int, is_paused: bool = False) -> tuple[asyncio.Transport, SteppingReader]:
    """Asks for an answer. Returns the connection and its reader."""
    loop = asyncio.get_running_loop()
    new_reader = functools.partial(SteppingReader, arm, words, turn, is_paused)
    return await loop.create_connection(new_reader, "127.0.0.1", arm.port)


async def measure_deltas(arm: Arm, in_flight: int, words: int, idle: dict[str, float]) -> Sample:
    """Returns the CPU and the delay of a delta, without the beginning of the turns. Raises as readers do."""
    async with asyncio.timeout(TIMEOUT_S):
        readers = [(await read(arm, words, random.getrandbits(40), is_paused=True))[1] for _ in range(in_flight)]
        await asyncio.gather(*(reader.has_first.wait() for reader in readers))
        await asyncio.sleep(SETTLE_S)
        began, before = time.monotonic(), arm.cpu_s()
        for reader in readers:
            reader.resume()
        answers = await asyncio.gather(*(reader.done for reader in readers))
        after, took = arm.cpu_s(), time.monotonic() - began
    delays = [delay for answer in answers for delay in answer.delays[1:]]
    return Sample(used_us(before, after, idle, took, len(delays)), statistics.median(delays) * 1e3)


async def measure_turns(arm: Arm, in_flight: int, idle: dict[str, float]) -> Sample:
    """Returns the CPU of a turn of one delta, and the time to its delta. Raises as readers do."""

    async def lane() -> list[float]:
        first_words = []
        for _ in range(SHORT_TURNS):
            _, reader = await read(arm, 1, random.getrandbits(40))
            first_words.append((await reader.done).first_word)
        return first_words

    async with asyncio.timeout(TIMEOUT_S):
        began, before = time.monotonic(), arm.cpu_s()
        lanes = await asyncio.gather(*(lane() for _ in range(in_flight)))
        # The recorder writes after the reader has the answer.
        await asyncio.sleep(SETTLE_S)
        after, took = arm.cpu_s(), time.monotonic() - began
    first_words = [delay for one in lanes for delay in one]
    return Sample(used_us(before, after, idle, took, len(first_words)), statistics.median(first_words) * 1e3)


def used_us(
    before: dict[str, float], after: dict[str, float], idle: dict[str, float], took: float, times: float
) -> dict[str, float]:
    """Returns the CPU in µs by role of each of `times` operations in `took` seconds, without what idle roles use."""
    return {role: (after[role] - before[role] - idle[role] * took) / times * 1e6 for role in before}


def table(title: str, samples: dict[str, list[Sample]]) -> str:
    """Returns a Markdown table of the medians, with the ratio to each other arm."""
    names = list(samples)
    lines = [f"| {title} | CPU | delay p50 | {' | '.join(f'/ {name}' for name in names)} | by role |"]
    lines.append("|---" * (len(names) + 4) + "|")
    sums = {name: statistics.median(one.sum_us for one in found) for name, found in samples.items()}
    for name, found in samples.items():
        roles = ", ".join(f"{role} {statistics.median(s.cpu_us[role] for s in found):.0f}" for role in found[0].cpu_us)
        ratios = " | ".join(f"{sums[name] / sums[other]:.2f}" for other in names)
        delay = statistics.median(one.delay_ms for one in found)
        lines.append(f"| {name} | {sums[name]:.0f} µs | {delay:.2f} ms | {ratios} | {roles} |")
    return "\n".join(lines)


async def run(options: argparse.Namespace) -> None:
    """Measures all arms and prints the tables."""
    server = await asyncio.get_running_loop().create_server(SteppedModel, "127.0.0.1", 0, backlog=2048)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        # Arms are started in a thread: Tailrace asks the model for its list of models, which this process serves.
        arms = await asyncio.to_thread(start, options.arms, options.beside, url, stack)
        for in_flight in options.in_flight:
            deltas: dict[str, list[Sample]] = {arm.name: [] for arm in arms}
            turns: dict[str, list[Sample]] = {arm.name: [] for arm in arms}
            no_idle = {arm.name: dict.fromkeys(arm.processes, 0.0) for arm in arms}
            for arm in arms:
                await measure_deltas(arm, in_flight, options.words, no_idle[arm.name])
                await measure_turns(arm, in_flight, no_idle[arm.name])
            idle = await measure_idle(arms)
            for _ in range(options.repeats):
                for arm in random.sample(arms, len(arms)):
                    deltas[arm.name].append(await measure_deltas(arm, in_flight, options.words, idle[arm.name]))
                    turns[arm.name].append(await measure_turns(arm, in_flight, idle[arm.name]))
            load = os.getloadavg()[0]
            print(f"\n{in_flight} in flight, load average {load:.1f}\n\n{table('a delta', deltas)}\n")
            print(table("a turn of one delta", turns), flush=True)
        await asyncio.to_thread(stack.close)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["bare", "tuned", "tailrace"], metavar="ARM")
    parser.add_argument("--beside", type=checkout, nargs="*", default=[], help="paths of other checkouts of Tailrace")
    parser.add_argument(
        "--in-flight", type=count, nargs="+", default=[16], help="deltas in flight, each of another turn"
    )
    parser.add_argument("--words", type=count, default=200, help="deltas of each turn")
    parser.add_argument("--repeats", type=count, default=5)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
