"""Time until the model call of a cancelled turn is closed: `python -m benchmarks.stop`. The limit is 1 s (FAULTS F28).

From the cancel request until the simulated Claude has seen its connection closed; half of the turns are streaming, half
are silent. The measurement is late by at most one response of `/_sim/stats`.
"""

import asyncio
import tempfile
import time
from pathlib import Path

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.latencies import percentile
from benchmarks.log_server import running_log
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness.generator_in_loop import append_request, running_generator, wait_for_open_streams

LINES = ("words=9000 rate=50", "words=9 rate=0 fault=stall@3")


async def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running_log(Path(folder), "always") as (nats, connection),
            run_simulated_claude() as claude,
            running_generator(nats.url, claude, stall_timeout_s=60),
        ):
            times = [await run(TurnLog(connection), claude, number) for number in range(runs)]
    p50, p99 = percentile(times, 50), percentile(times, 99)
    print(f"{runs} turns; cancelled until the model's connection is closed: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


async def run(log: TurnLog, claude: str, number: int) -> float:
    """In milliseconds."""
    key = await append_request(log, f"{LINES[number % len(LINES)]} tag=x{number}")
    await wait_for_open_streams(claude, 1)
    async with httpx2.AsyncClient(base_url=claude, trust_env=False) as client:
        begun = time.perf_counter()
        await cancel(log, ScopedKey.whole(key), "request")
        while (await client.get("/_sim/stats")).json()["streams_open"]:
            pass
        return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--runs", type=count, default=60, help="cancelled turns")
    asyncio.run(main(parser.parse_args().runs))
