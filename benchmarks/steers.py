"""Messages that are put into the answers of one session, one after the other: each must be answered, in one order.

    python -m benchmarks.steers --steers 10000

After 50 messages in a row the client waits for a whole answer. Prints the time of a request among the first and the
last hundred, the size of the conversation and the memory of the processes.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.process_usage import resident_bytes
from tests.harness.system import System
from tests.harness.until import until

LONG = "#sim words=4000 rate=20 tag=t{number}x"
SHORT = "#sim words=2 rate=0 tag=t{number}x"
IN_A_ROW = 50
WINDOW = 100
WAIT_S_MAX = 120.0


class Result(NamedTuple):
    """The counts, times and sizes of one run."""

    accepted: int
    in_order: int
    """Accepted messages whose turns follow each other in the session as they were accepted."""
    refused: str
    """The first refusal, at which the run ends; empty without one."""
    first_s: float
    """Median of the first hundred requests."""
    last_s: float
    took_s: float
    memory_mb: dict[str, tuple[int, int]]
    """Of each process, before and after the run."""


async def measure(folder: Path, steers: int) -> Result:
    """Steers the newest turn of a session so many times."""
    async with System(folder, sync="default") as system:
        await system.start()
        [client] = system.clients
        processes = {name: process.pid for name, process in system.processes.items()}
        before = {name: resident_bytes(pid) for name, pid in processes.items()}
        began = time.monotonic()
        first = (await client.post("/v1/turns", json={"message": LONG.format(number=0)})).json()
        turns, times, refused = [first["turn"]], list[float](), ""
        for number in range(1, steers + 1):
            is_row_over = number % IN_A_ROW == 0
            message = (SHORT if is_row_over or number == steers else LONG).format(number=number)
            at = time.monotonic()
            response = await client.post(f"/v1/turns/{turns[-1]}/steer", json={"message": message})
            if response.status_code != 202:
                refused = f"{number}: {response.text}"
                break
            times.append(time.monotonic() - at)
            turns.append(response.json()["turn"])
            if is_row_over:
                await wait_for_end(client, turns[-1])
        await client.post(f"/v1/turns/{turns[-1]}/cancel")
        took_s = time.monotonic() - began
        stored = await list_turns(client, first["session"], len(turns))
        return Result(
            accepted=len(times),
            in_order=sum(one == other for one, other in zip(stored, turns, strict=False)) - 1,
            refused=refused,
            first_s=statistics.median(times[:WINDOW]),
            last_s=statistics.median(times[-WINDOW:]),
            took_s=took_s,
            memory_mb={name: (before[name] >> 20, resident_bytes(pid) >> 20) for name, pid in processes.items()},
        )


async def wait_for_end(client: httpx2.AsyncClient, turn: str) -> None:
    async def has_ended() -> bool:
        return bool((await client.get(f"/v1/turns/{turn}")).json()["outcome"] != "running")

    await until(has_ended, WAIT_S_MAX)


async def list_turns(client: httpx2.AsyncClient, session: str, number: int) -> list[str]:
    """Returns the turns of a session, oldest first, when it has so many."""
    found: list[dict[str, Any]] = []

    async def read() -> bool:
        found.clear()
        after = ""
        while True:
            page = (await client.get(f"/v1/sessions/{session}/turns?limit=200{after}")).json()
            found.extend(page["turns"])
            if page.get("next") is None:
                return len(found) >= number
            after = f"&after={page['next']}"

    await until(read, WAIT_S_MAX)
    return [one["turn"] for one in found]


def main() -> int:
    """Runs the measurement and prints its result. Returns the exit status: 1 unless all messages are in order."""
    parser = new_parser(__doc__)
    parser.add_argument("--steers", type=count, default=10_000, help="how many messages (default: 10000)")
    steers = parser.parse_args().steers
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Path(folder), steers))
    sys.stdout.write(f"{result}\n")
    return int((result.accepted, result.in_order) != (steers, steers))


if __name__ == "__main__":
    sys.exit(main())
