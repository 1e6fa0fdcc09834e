"""Turns that wait for decisions about tool calls, over a restart of all processes: each must go on once.

    python -m benchmarks.parked_turns --turns 10000

Prints how many have waited, gone on, and gone on twice, the seconds of each part, and the size of the database.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx2

from benchmarks.command_line import count, new_parser
from tests.harness.system import System
from tests.harness.until import until

TURN = {"message": "#sim words=2 rate=0 tool=look", "tools": [{"name": "look", "input_schema": {"type": "object"}}]}
AT_ONCE = 50
WAIT_S_MAX = 60.0

T = TypeVar("T")


class Result(NamedTuple):
    """The counts and times of one run."""

    waiting: int
    """Sessions that required action after the restart."""
    continued: int
    """Sessions with one turn after the decided one, which is completed."""
    repeated: int
    """Sessions with more than one."""
    parked_s: float
    decided_s: float
    database_bytes: int


async def measure(folder: Path, turns: int) -> Result:
    """Parks `turns` turns, restarts all processes but nats-server, decides each call twice, and counts."""
    async with System(folder, sync="default") as system:
        await system.start(gateways=2)
        began = time.monotonic()
        sessions = await at_once(turns, lambda _: park(system.clients[0]))
        parked_s = time.monotonic() - began
        for process in (*system.generators, *system.gateways, system.persistence):
            await process.stop()
        for process in (system.persistence, *system.generators, *system.gateways):
            await process.start()
        first, second = system.clients
        waiting = await count_waiting(first)
        began = time.monotonic()
        by_first = at_once(turns, lambda number: decide(first, sessions[number]))
        by_second = at_once(turns, lambda number: decide(second, sessions[number]))
        await asyncio.gather(by_first, by_second)
        decided_s = time.monotonic() - began
        await system.wait_until_settled()
        outcomes = await at_once(turns, lambda number: follow_ups(first, sessions[number]))
        return Result(
            waiting=waiting,
            continued=outcomes.count(["completed"]),
            repeated=sum(len(one) > 1 for one in outcomes),
            parked_s=parked_s,
            decided_s=decided_s,
            database_bytes=system.database.stat().st_size,
        )


async def at_once(number: int, work: Callable[[int], Awaitable[T]]) -> list[T]:
    """Returns the results of `work(0)`, `work(1)`…, of which at most AT_ONCE run at once."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def run(index: int) -> T:
        async with slots:
            return await work(index)

    return await asyncio.gather(*map(run, range(number)))


async def park(client: httpx2.AsyncClient) -> str:
    """Returns the session of a turn that has ended with a call."""
    accepted = (await client.post("/v1/turns", json=TURN)).json()
    await client.get(accepted["links"]["events"])
    return str(accepted["session"])


async def count_waiting(client: httpx2.AsyncClient) -> int:
    found, after = 0, ""
    while True:
        page = (await client.get(f"/v1/sessions?state=requires_action&limit=200{after}")).json()
        found += len(page["data"])
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def decide(client: httpx2.AsyncClient, session: str) -> None:
    """Decides about the call of a session, again while the gateway is busy."""
    for call in (await client.get(f"/v1/sessions/{session}/calls")).json()["calls"]:

        async def is_decided(path: str = f"/v1/sessions/{session}/calls/{call['call']}") -> bool:
            return (await client.post(path, json={"result": "blue"})).status_code in (200, 404)

        await until(is_decided, WAIT_S_MAX)


async def follow_ups(client: httpx2.AsyncClient, session: str) -> list[str]:
    """Returns the outcomes of the turns after the first one of a session."""
    return [one["outcome"] for one in (await client.get(f"/v1/sessions/{session}/turns")).json()["turns"][1:]]


def main() -> int:
    """Runs the measurement and prints its result. Returns the exit status: 1 if a turn did not go on once."""
    parser = new_parser(__doc__)
    parser.add_argument("--turns", type=count, default=10_000, help="how many turns wait (default: 10000)")
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Path(folder), turns))
    sys.stdout.write(f"{result}\n")
    return int((result.waiting, result.continued, result.repeated) != (turns, turns, 0))


if __name__ == "__main__":
    sys.exit(main())
