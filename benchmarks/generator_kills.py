"""The pause of readers when a generator ends: `python -m benchmarks.generator_kills`.

Turns run on three generators with the default settings, and the log is synced at each write. One of them after the
other receives the signal: KILL, TERM, or STOP, after which it continues 6 s later. Prints, of the turns of that
generator, the longest pause between two deltas around the signal; and the time until the first word of a turn that was
posted within 100 ms of the signal, of which each third is in that generator.
"""

import asyncio
import json
import math
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.latencies import percentile
from tailrace.proto.entries import Attempt
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tests.harness.processes import Process
from tests.harness.system import System
from tests.harness.until import until

GENERATORS = 3
LINE = "#sim words=600 rate=20"
BEFORE_S = 0.3
# How long pauses are looked for. After SIGTERM, a generator continues its turns for `TAILRACE_GRACE_S`, 5 s.
AFTER_S = {signal.SIGKILL: 4.0, signal.SIGTERM: 8.0, signal.SIGSTOP: 6.0}
LATE_POST_S = 0.1
# After a start, until the others watch it.
WATCHED_S = 1.5


class Reader:
    """Reads one turn, and notes when deltas arrive."""

    def __init__(self) -> None:
        self.posted_at = time.monotonic()
        self.deltas = list[float]()
        self.key: TurnKey | None = None
        self.ended_at = math.inf

    async def run(self, client: httpx2.AsyncClient, line: str = LINE) -> None:
        posted = await client.post("/v1/turns", json={"message": line, "on_disconnect": "cancel"})
        posted.raise_for_status()
        self.key = TurnKey(Tenant("local"), TurnId(posted.json()["turn"]))
        async with client.stream("GET", f"/v1/turns/{self.key.turn}/events") as response:
            async for received in _lines(response):
                if received.startswith("data: ") and json.loads(received[6:]).get("type") == "delta":
                    self.deltas.append(time.monotonic())
        self.ended_at = time.monotonic()

    def pause_s(self, at: float, after_s: float) -> float | None:
        """The longest time between two deltas around `at`, up to `after_s` later; None if it did not run until then."""
        times = [one for one in self.deltas if at - BEFORE_S < one < at + after_s]
        if not times or times[0] > at or self.ended_at < at + after_s:
            return None
        return max((after - before for before, after in pairwise([*times, at + after_s])), default=None)


async def _lines(response: httpx2.Response) -> AsyncIterator[str]:
    with suppress(httpx2.HTTPError):
        async for line in response.aiter_lines():
            yield line


async def measure(system: System, turns: int, kills: int, number: signal.Signals) -> tuple[list[float], list[float]]:
    """Returns the pauses and the times until first words, in seconds."""
    pauses, first_words, client = list[float](), list[float](), system.clients[0]
    async with asyncio.TaskGroup() as group:
        readers = [Reader() for _ in range(turns)]
        tasks = [group.create_task(reader.run(client)) for reader in readers]
        await until(lambda: all(reader.deltas for reader in readers), 30)
        for kill in range(kills):
            for place in [place for place, task in enumerate(tasks) if task.done()]:
                readers[place] = Reader()
                tasks[place] = group.create_task(readers[place].run(client))
            await asyncio.sleep(WATCHED_S + random.random() / 2)
            victim = system.generators[kill % GENERATORS]
            own = [reader for reader in readers if await _is_of(system, reader, victim)]
            late, offset_s = Reader(), random.uniform(-LATE_POST_S, LATE_POST_S)
            posting = group.create_task(_post_at(late, client, max(0.0, offset_s)))
            await asyncio.sleep(max(0.0, -offset_s))
            at, killed_at = time.monotonic(), datetime.now(UTC)
            victim.signal(number)
            await asyncio.sleep(AFTER_S[number])
            found = [pause for reader in own if (pause := reader.pause_s(at, AFTER_S[number])) is not None]
            pauses += found
            if late.deltas:
                first_words.append(late.deltas[0] - late.posted_at)
            released = [_seconds(killed_at, line) for line in _gone_lines(system) if _seconds(killed_at, line) > 0]
            print(f"{kill + 1}: leases released after {_ms(released)} ms; pauses {_ms(sorted(found))} ms", flush=True)
            posting.cancel()
            if number == signal.SIGSTOP:
                victim.signal(signal.SIGCONT)
            else:
                await victim.stop(number)
                await victim.start()
        for task in tasks:
            task.cancel()
    return pauses, first_words


def _gone_lines(system: System) -> list[dict[str, Any]]:
    return [line for one in system.generators for line in one.find_lines("generator is gone: its leases are released")]


def _seconds(since: datetime, line: dict[str, Any]) -> float:
    return (datetime.fromisoformat(line["timestamp"]) - since).total_seconds()


def _ms(times_s: Sequence[float]) -> str:
    return " ".join(f"{1000 * time_s:.0f}" for time_s in times_s)


async def _post_at(reader: Reader, client: httpx2.AsyncClient, wait_s: float) -> None:
    await asyncio.sleep(wait_s)
    reader.posted_at = time.monotonic()
    await reader.run(client, "#sim words=20 rate=20")


async def _is_of(system: System, reader: Reader, generator: Process) -> bool:
    if reader.key is None:
        return False
    seq = await system.log.last_seq(reader.key, "attempt")
    newest = (await system.log.read_entries(ScopedKey.whole(reader.key), Seq(seq - 1), 1))[0].entry
    return isinstance(newest, Attempt) and newest.generator.startswith(f"g{system.generators.index(generator)}-")


async def main(turns: int, kills: int, servers: int, number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with System(Path(folder), servers=3 if servers == 3 else 1) as system:
            await system.start(generators=GENERATORS)
            pauses, first_words = await measure(system, turns, kills, number)
            detected = len(_gone_lines(system))
            wrong = sum(len(one.find_lines("another generator takes this one for dead")) for one in system.generators)
    for name, times in (("pause", pauses), ("first word of a turn posted then", first_words)):
        p50, p95 = percentile(times, 50), percentile(times, 95)
        print(f"{name}: n={len(times)}, p50 {p50:.3f} s, p95 {p95:.3f} s, most {max(times):.3f} s")
    print(f"dead generators detected: {detected} of {kills}; live ones taken for dead: {wrong}")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--turns", type=count, default=20, help="turns at once")
    parser.add_argument("--kills", type=count, default=40)
    parser.add_argument("--servers", type=int, choices=(1, 3), default=1, help="nats-servers")
    parser.add_argument("--signal", choices=("KILL", "TERM", "STOP"), default="KILL")
    given = parser.parse_args()
    asyncio.run(main(given.turns, given.kills, given.servers, signal.Signals[f"SIG{given.signal}"]))
