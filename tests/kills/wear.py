"""Wear: long answers while supervised generators are killed one after the other, with the product's default settings.

Run `.venv/bin/python -m tests.kills.wear` (30 turns of 20 seconds; one of three generators is killed every 1.5 seconds
for 25 seconds). `--minutes 30 --seconds 120 --kill-every 4` is the long version. The one that has been ready longest is
killed, so that all kills count, also on a busy machine that starts a process slowly.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from signal import SIGKILL

import msgspec

from tailrace.deploy.local.console import Console
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.spawn import signal_group
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tailrace.deploy.nats import setup
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.proto.entries import Attempt, Event, StoredEntry
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import GENERATORS
from tests.harness.generator_in_loop import append_request, read_calls, words
from tests.harness.processes import CHECKOUT, START_S_MAX, as_user
from tests.harness.until import until

BYTES_MAX = 768 * 1024**2
RATE = 50
LATE_S_MAX = 120.0
GENERATOR_COUNT = 3


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    turns: int = 30
    seconds: float = 20.0
    kill_every_s: float = 1.5
    kill_for_s: float = 25.0
    is_endless: bool = False
    """Each turn that ends is followed by another one, as long as generators are killed."""

    @property
    def words(self) -> int:
        return int(self.seconds * RATE)


class WearResult(msgspec.Struct, frozen=True, kw_only=True):
    """The results of the turns."""

    turns: list[Turn]
    whole: int
    """Turns that completed with the model's text, character by character."""
    kills: int
    attempts: int
    calls: int
    pause_s: float
    """The longest time between two events of one answer."""

    def report(self) -> str:
        ends = Counter(turn.error.code if turn.error else turn.outcome for turn in self.turns)
        most = max((turn.attempt for turn in self.turns), default=0)
        return (
            f"{self.whole} of {len(self.turns)} turns whole after {self.kills} kills; {dict(ends)}; "
            f"{self.attempts} attempts, {most} at most for one turn; {self.calls} calls of the model, "
            f"{self.calls - len(self.turns)} beyond one for each turn; longest pause {self.pause_s:.1f} s"
        )


async def wear(plan: Plan, folder: Path) -> WearResult:
    """Runs `plan` in a system of its own, without a gateway: the log is written and read here."""
    async with NatsServer(folder) as server, run_simulated_claude() as claude:
        admin = await Connection.open(server.url, "wear")
        await setup.apply(admin, bytes_max=BYTES_MAX)
        log = TurnLog(admin)
        environ = {
            "PYTHONPATH": str(CHECKOUT),
            "TAILRACE_NATS_URL": as_user(server.url, GENERATORS),
            "ANTHROPIC_BASE_URL": claude,
            "ANTHROPIC_API_KEY": "sk-simulated",
        }
        ready: list[str] = []
        with (folder / "generators.txt").open("w") as printed:
            try:
                async with asyncio.TaskGroup() as tasks:
                    supervisor = Supervisor(tasks, Console(printed, width=12, coloured=False))
                    for number in range(GENERATOR_COUNT):
                        command = (sys.executable, "-m", "tailrace.generators")
                        name = f"generator-{number}"
                        spec = ProcessSpec(
                            name=name,
                            role="generators",
                            command=command,
                            environ=environ,
                            is_shown=partial(_note_ready, ready, name),
                        )
                        supervisor.start(spec)
                    try:
                        await until(lambda: len(ready) == GENERATOR_COUNT, START_S_MAX)
                        return await _wear(plan, log, supervisor, ready, claude)
                    finally:
                        await supervisor.stop()
            finally:
                await admin.close()


def _note_ready(ready: list[str], name: str, line: str) -> bool:
    if '"event": "ready"' in line:
        ready.append(name)
    return True


async def _wear(plan: Plan, log: TurnLog, supervisor: Supervisor, ready: list[str], claude: str) -> WearResult:
    line = f"words={plan.words} rate={RATE}"
    loop = asyncio.get_running_loop()
    stop_at = loop.time() + plan.kill_for_s
    ended: list[tuple[Turn, list[StoredEntry]]] = []

    async def run() -> None:
        while True:
            key = await append_request(log, line, max_tokens=10 * plan.words)
            ended.append(await _follow(log, key, plan.seconds + plan.kill_for_s + LATE_S_MAX))
            if not plan.is_endless or loop.time() >= stop_at:
                return

    async with asyncio.TaskGroup() as group:
        killing = group.create_task(_kill(supervisor, ready, plan.kill_every_s, stop_at))
        reporting = group.create_task(_report_progress(ended))
        async with asyncio.TaskGroup() as running:
            for _ in range(plan.turns):
                running.create_task(run())
        reporting.cancel()
    turns = [turn for turn, _ in ended]
    text = words(plan.words)
    return WearResult(
        turns=turns,
        whole=sum(turn.outcome == "completed" and turn.text == text for turn in turns),
        kills=killing.result(),
        attempts=sum(turn.attempt for turn in turns),
        calls=len((await read_calls(claude)).calls),
        pause_s=max((_longest_pause_s(stored) for _, stored in ended), default=0.0),
    )


async def _follow(log: TurnLog, key: TurnKey, wait_s: float) -> tuple[Turn, list[StoredEntry]]:
    """Returns the turn and its events, at most `wait_s` seconds later; the turn has not ended if it took longer."""
    stored: list[StoredEntry] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            async for some in log.follow(ScopedKey.whole(key)):
                stored += some
    return fold(stored), [one for one in stored if isinstance(one.entry, Event | Attempt)]


async def _kill(supervisor: Supervisor, ready: list[str], every_s: float, stop_at: float) -> int:
    """Kills a generator every `every_s` seconds until `stop_at`; returns how many it has killed."""
    loop, kills = asyncio.get_running_loop(), 0
    while loop.time() < stop_at:
        await asyncio.sleep(every_s)
        if ready and (process := supervisor.children[ready.pop(0)].process) is not None:
            signal_group(process, SIGKILL)
            kills += 1
    return kills


async def _report_progress(ended: Sequence[tuple[Turn, list[StoredEntry]]]) -> None:
    """Prints what came of the turns so far, every minute."""
    for minute in itertools.count(1):
        await asyncio.sleep(60)
        print(f"minute {minute}: {dict(Counter(turn.outcome for turn, _ in ended))}", flush=True)


def _longest_pause_s(stored: Sequence[StoredEntry]) -> float:
    events = [one.at for one in stored if isinstance(one.entry, Event) and not one.entry.is_hidden]
    return max(((after - before).total_seconds() for before, after in pairwise(events)), default=0.0)


def main() -> None:
    """Prints the settings, then the outcomes. Exits with 1 unless a generator was killed and all turns are whole."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills.wear", description=__doc__)
    parser.add_argument("--turns", type=int, default=30, help="turns at once")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each answer")
    parser.add_argument("--kill-every", type=float, default=1.5, metavar="SECONDS")
    parser.add_argument("--for", type=float, default=25.0, dest="kill_for_s", metavar="SECONDS")
    parser.add_argument("--minutes", type=float, help="instead of --for, with a new turn after each one that ended")
    given = parser.parse_args()
    plan = Plan(
        turns=given.turns,
        seconds=given.seconds,
        kill_every_s=given.kill_every,
        kill_for_s=60 * given.minutes if given.minutes else given.kill_for_s,
        is_endless=given.minutes is not None,
    )
    print(f"default settings; {GENERATOR_COUNT} supervised generators; {plan}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        worn = asyncio.run(wear(plan, Path(folder)))
    print(worn.report())
    sys.exit(not worn.kills or worn.whole != len(worn.turns))


if __name__ == "__main__":
    main()
