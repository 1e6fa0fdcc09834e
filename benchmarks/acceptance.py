"""CPU time and latency that rate limits add to a POST: `python -m benchmarks.acceptance`.

Gateways with and without limits receive POSTs in turns. The figures are multiples of those without limits, so that load
of other programs affects both alike. No generator runs.
"""

import asyncio
import hashlib
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.log_server import running_log
from benchmarks.process_usage import cpu_s
from tests.harness import processes
from tests.harness.processes import Process

KEY = "a-key-of-the-bench"
COUNTED = "requests=1000000, tokens=1000000000, usd_day=1000000, usd_month=1000000"
LIMITS = {
    "no limits": {},
    "four of the key": {"TAILRACE_LIMITS_KEY": COUNTED},
    "four of each": {"TAILRACE_LIMITS_KEY": COUNTED, "TAILRACE_LIMITS_TENANT": COUNTED},
    "and running": {"TAILRACE_LIMITS_KEY": f"{COUNTED}, running=256", "TAILRACE_LIMITS_TENANT": COUNTED},
}
BODY = {"message": "Why is the sky blue?", "model": "claude-haiku-5-5", "max_tokens": 500}


async def main(posts: int) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats, _ = await stack.enter_async_context(running_log(folder))
        client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=30))
        gateways: dict[str, Process] = {}
        for number, (name, limits) in enumerate(LIMITS.items()):
            keys = f"tenant-{number}:{hashlib.sha256(KEY.encode()).hexdigest()}"
            gateway = processes.gateway(folder, nats.url, TAILRACE_API_KEYS=keys, **limits)
            gateways[name] = await stack.enter_async_context(gateway)
            await post(client, gateway)
        used = {name: cpu_s(gateway.pid) for name, gateway in gateways.items()}
        waited: dict[str, list[float]] = {name: [] for name in gateways}
        for _ in range(posts):
            for name, gateway in gateways.items():
                waited[name].append(await post(client, gateway))
        cpu = {name: cpu_s(gateway.pid) - used[name] for name, gateway in gateways.items()}
    ms = {name: 1000 * median(times) for name, times in waited.items()}
    bare = "no limits"
    print(f"{posts} POSTs one after another; a median, and CPU of the gateway")
    for name in gateways:
        print(
            f"{name:16} {ms[name]:6.2f} ms  x {ms[name] / ms[bare]:4.2f}   "
            f"CPU {1000 * cpu[name] / posts:6.2f} ms  x {cpu[name] / cpu[bare]:4.2f}"
        )


async def post(client: httpx2.AsyncClient, gateway: Process) -> float:
    """Creates a turn; returns the seconds until it was accepted."""
    begun = time.perf_counter()
    answer = await client.post(f"{gateway.url}/v1/turns", json=BODY, headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 202, answer.text
    return time.perf_counter() - begun


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--posts", type=count, default=200)
    asyncio.run(main(parser.parse_args().posts))
