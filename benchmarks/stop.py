"""Time until the model call of a cancelled turn is closed: `python -m benchmarks.stop`. The limit is 1 s (FAULTS F28).

From the cancel request until the simulated Claude has seen its connection closed; half of the turns are streaming, half
are silent. The measurement is late by at most one response of `/_sim/stats`.
"""

import asyncio
import tempfile
import time
from pathlib import Path

import httpx2

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.nats import Connection, TurnLog
from tests.conftest import apply_streams
from tests.harness.generator_in_loop import append_request, running_generator, wait_for_open_streams

RUNS = 60
LINES = ("words=9000 rate=50", "words=9 rate=0 fault=stall@3")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with NatsServer(Path(folder), sync="always") as nats, run_simulated_claude() as claude:
            await apply_streams(nats.url)
            connection = await Connection.open(nats.url, "bench")
            async with running_generator(nats.url, claude, stall_timeout_s=60):
                times = sorted([await run(TurnLog(connection), claude, number) for number in range(RUNS)])
            await connection.close()
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    print(f"{RUNS} turns; cancelled until the model's connection is closed: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


async def run(log: TurnLog, claude: str, number: int) -> float:
    """In milliseconds."""
    key = await append_request(log, f"{LINES[number % len(LINES)]} tag=x{number}")
    await wait_for_open_streams(claude, 1)
    async with httpx2.AsyncClient(base_url=claude, trust_env=False) as client:
        begun = time.perf_counter()
        await cancel(log, key)
        while (await client.get("/_sim/stats")).json()["streams_open"]:
            pass
        return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    asyncio.run(main())
