"""Drills of an on-call person: a fault, the alert that says so, the step of the runbook, and whole again.

`python -m tests.drills [NAME…]` runs them beside a Prometheus with the shipped intervals and waits, and prints the
seconds of docs/RUNBOOK.md. tests/integration/test_drills.py runs them with short ones.
"""

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from typing import NamedTuple

from tailrace.deploy.cli import status
from tailrace.deploy.local import ports
from tailrace.proto.errors import SettingsInvalid, TailraceError
from tailrace.proto.nats.users import ADMIN, GATEWAY
from tests.chaos.clock import Clock
from tests.harness.event_source import EventSource
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import words
from tests.harness.processes import Process, as_user
from tests.harness.prometheus import Prometheus
from tests.harness.readers import story_of
from tests.harness.system import System
from tests.harness.until import until

READERS = 3
WORDS = 30
# With the shipped intervals, an alert that is held for five minutes takes six.
ALERT_S_MAX = 420.0
QUICK_ALERT_S_MAX = 60.0
WHOLE_S_MAX = 60.0


class Lab:
    """A system under load, with a Prometheus. The model's API can refuse the key, and one gateway's clock be wrong."""

    def __init__(self, system: System, prometheus: Prometheus, clock: Clock | None) -> None:
        self.system = system
        self.prometheus = prometheus
        self.is_key_refused = False
        self.clock = clock
        self.alert_s_max = ALERT_S_MAX if prometheus.as_shipped else QUICK_ALERT_S_MAX
        self.lock: sqlite3.Connection | None = None
        self.refused = list[str]()
        self.texts = list[tuple[str, str]]()
        """The whole text that each turn should have, and the text that its reader got."""

    async def read_turns(self) -> None:
        """Asks one turn after the other, and reads each to its end."""
        while True:
            tag = f"{time.monotonic_ns()}-"
            source, fault = EventSource(lambda: self.system.clients), " fault=401@0" if self.is_key_refused else ""
            turn = await source.post(tag, f"#sim words={WORDS} rate=10 tag={tag}{fault}", self.refused.append)
            connections = await source.read(turn)
            text = story_of(frame.sent for one in connections for frame in one.frames).text
            self.texts.append((words(WORDS, tag), text))

    async def status(self) -> str:
        """Returns what `tailrace status` prints, or its error."""
        try:
            environ = {"TAILRACE_NATS_URL": as_user(self.system.nats_url, ADMIN), "TAILRACE_EXPECTED": "generators=2"}
            return status.render(await status.fetch(self.system.folder / "none", environ))
        except (SettingsInvalid, TailraceError) as error:
            return str(error)

    async def readyz(self) -> str:
        """Returns the detail of the first part of `/readyz` that is not ready, or degraded; empty if there is none."""
        parts = (await self.system.clients[0].get("/readyz")).json()
        return next(
            (f"{name}: {part['detail']}" for name, part in parts.items() if isinstance(part, dict) and part["detail"]),
            "",
        )


Step = Callable[[Lab], Awaitable[object]]


class Drill(NamedTuple):
    """`said`: a part of what `/readyz` or `status` says first during the fault. `fails`: turns may fail meanwhile."""

    fault: Step
    alert: str
    said: str
    cure: Step
    fails: bool = False


async def lock_database(lab: Lab) -> None:
    lab.lock = sqlite3.connect(lab.system.database, isolation_level=None)
    lab.lock.execute("BEGIN EXCLUSIVE")


async def unlock_database(lab: Lab) -> None:
    assert lab.lock is not None
    lab.lock.close()


async def remove_database(lab: Lab) -> None:
    for path in lab.system.database.parent.glob("tailrace.db*"):
        path.unlink()


async def freeze_generator(lab: Lab) -> None:
    freeze(lab.system.generators[0])


async def replace_generator(lab: Lab) -> None:
    await lab.system.generators[0].stop(SIGKILL)
    await lab.system.generators[0].start()


async def refuse_key(lab: Lab) -> None:
    lab.is_key_refused = True


async def accept_key(lab: Lab) -> None:
    lab.is_key_refused = False


async def turn_clock(lab: Lab) -> None:
    assert lab.clock is not None
    lab.clock.jump(-180)


async def set_clock(lab: Lab) -> None:
    assert lab.clock is not None
    lab.clock.jump(0)


DRILLS = {
    "nats-server killed": Drill(
        lambda lab: lab.system.servers[0].stop(SIGKILL),
        "LogNotWritable",
        "nats: not connected",
        lambda lab: lab.system.servers[0].start(),
    ),
    "database locked": Drill(lock_database, "DatabaseFails", "database is locked (SQLITE_BUSY)", unlock_database),
    "database file gone": Drill(
        remove_database,
        "ProcessDown",
        "persistence: no persistence process answers",
        lambda lab: lab.system.persistence.start(),
    ),
    "generator frozen": Drill(
        freeze_generator, "ProcessFrozen", "too few answer: generators: 1 of 2", replace_generator
    ),
    "model key refused": Drill(
        refuse_key, "ModelKeyRefused", "generators: the model's API refuses the key", accept_key, fails=True
    ),
    "clock three minutes behind": Drill(turn_clock, "ClocksDiffer", "", set_clock),
}


class Result(NamedTuple):
    """Seconds from the fault to its first sign and to the alert, and from the cure until `/readyz` is 200."""

    said_s: float
    alert_s: float
    text: str
    whole_s: float
    turns: int
    failed: int
    wrong: int
    refused: int


@asynccontextmanager
async def lab_in(folder: Path, *, as_shipped: bool) -> AsyncIterator[Lab]:
    """Starts everything. Without a C compiler, `clock` is None."""
    found = ports.find_free(5)
    targets = {"persistence": found[:1], "generators": found[1:3], "gateway": found[3:]}
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(System(folder, sync="default"))
        await system.start_claude()
        parts = [
            await system.new_persistence(TAILRACE_METRICS_PORT=found[0]),
            *[await system.new_generator(TAILRACE_METRICS_PORT=port) for port in found[1:3]],
            await system.new_gateway(TAILRACE_METRICS_PORT=found[3]),
        ]
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part.start())
        clock = Clock.create(folder, "wrong")
        settings = {"TAILRACE_NATS_URL": as_user(system.nats_url, GATEWAY), "TAILRACE_PORT": 0}
        await stack.enter_async_context(
            Process(
                "gateway",
                folder,
                **settings | {"TAILRACE_METRICS_PORT": found[4]} | (clock.environ if clock else {}),
            )
        )
        prometheus = await stack.enter_async_context(Prometheus(folder, targets, as_shipped=as_shipped))
        yield Lab(system, prometheus, clock)


async def run(drill: Drill, lab: Lab) -> Result:
    """Runs a drill under load; returns its times. Fails if the alert, the first sign or the cure does not come."""
    lab.texts, lab.refused = [], []

    async def is_said() -> bool:
        return drill.said in f"{await lab.readyz()}\n{await lab.status()}"

    async def fires() -> str:
        return (await lab.prometheus.texts()).get(drill.alert, "")

    async def is_whole() -> bool:
        return not await lab.readyz() and (await lab.system.clients[0].get("/readyz")).status_code == 200

    async def is_quiet() -> bool:
        return not await fires()

    async def count_scraped() -> bool:
        return len(await lab.prometheus.query("up == 1")) == 5

    await until(count_scraped, WHOLE_S_MAX)
    reading = [asyncio.create_task(lab.read_turns()) for _ in range(READERS)]
    try:
        await until(lambda: len(lab.texts) >= READERS, WHOLE_S_MAX)
        begun_at = time.monotonic()
        await drill.fault(lab)
        await until(is_said, WHOLE_S_MAX)
        said_s = time.monotonic() - begun_at
        text = await until(fires, lab.alert_s_max)
        alert_s = time.monotonic() - begun_at
        cured_at, before = time.monotonic(), len(lab.texts)
        await drill.cure(lab)
        await until(is_whole, WHOLE_S_MAX)
        whole_s = time.monotonic() - cured_at
        await until(lambda: len(lab.texts) >= before + 2 * READERS, WHOLE_S_MAX)
        await until(is_quiet, lab.alert_s_max)
    finally:
        for one in reading:
            one.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    failed = sum(got != expected and expected.startswith(got) for expected, got in lab.texts)
    exact = sum(got == expected for expected, got in lab.texts)
    wrong = len(lab.texts) - failed - exact
    return Result(said_s, alert_s, text, whole_s, len(lab.texts), failed, wrong, len(lab.refused))


async def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with lab_in(Path(folder), as_shipped=True) as lab:
            for name in names or DRILLS:
                done = await run(DRILLS[name], lab)
                sys.stdout.write(
                    f"| {name} | {DRILLS[name].alert} | {done.said_s:.0f} | {done.alert_s:.0f} | {done.whole_s:.0f} | "
                    f"{done.turns} turns, {done.failed} failed, {done.wrong} wrong, {done.refused} POSTs refused | "
                    f"{done.text} |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
