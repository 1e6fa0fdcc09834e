"""Large bodies of one tenant and the time to first token of another: `python -m benchmarks.large_bodies`.

One gateway, one generator, persistence, nats-server and the simulated Claude, with the settings of the product. Tenant
`a` sends bodies of 31 MB over three connections, on each one after the other, from a process of its own; each is a new
picture, or with `--same` the same one. Tenant `b` starts a turn of one word every 0.1 s. Printed are the times
to first token of `b` before, during and after, and the memory of each process: before, most, and at the end.
"""

import argparse
import asyncio
import hashlib
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.latencies import percentile
from tailrace import AsyncClient
from tests.harness.system import Settings, System

TENANTS = {"a": "sk-large", "b": "sk-small"}
BEFORE_S, AFTER_S = 8.0, 10.0
EVERY_S = 0.1
LOG_BYTES = 16 * 2**30


BODY = """{"model": "claude-haiku-5-5", "max_tokens": 99, "messages": [{"role": "user", "content": [
{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "DATA"}},
{"type": "text", "text": "#sim words=0 files=1 rate=0"}]}]}"""


async def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--connections", type=count, default=3)
    parser.add_argument("--megabytes", type=float, default=31)
    parser.add_argument("--seconds", type=float, default=20, help="how long bodies are sent")
    parser.add_argument("--same", action="store_true", help="send the same picture again and again")
    parser.add_argument("--path", default="/v1/turns", help="/v1/turns or /v1/messages")
    parser.add_argument("--send", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    await (send(options) if options.send else measure(options))


async def measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        keys = ",".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in TENANTS.items())
        settings: Settings = {"gateway": {"TAILRACE_API_KEYS": keys}}
        async with System(Path(folder), settings=settings, log_bytes=LOG_BYTES) as system:
            await system.start()
            port = int(system.gateways[0].url.rpartition(":")[2])
            client = AsyncClient(system.gateways[0].url, TENANTS["b"], tries_max=0, http=await system.new_client(port))
            pids = system.pids | {"claude": system.claude.pid, "nats-server": system.servers[0].process.pid}
            before_bytes = {name: memory(pid, "VmRSS") for name, pid in pids.items()}
            print(f"load of the machine: {os.getloadavg()[0]:.1f}", flush=True)
            await tokens(client, asyncio.sleep(1))
            report("before", await tokens(client, asyncio.sleep(BEFORE_S)))
            command = [sys.executable, "-m", "benchmarks.large_bodies", *sys.argv[1:], "--send", str(port)]
            sender = await asyncio.create_subprocess_exec(*command)
            try:
                report("during", await tokens(client, sender.wait()))
            finally:
                with suppress(ProcessLookupError):
                    sender.kill()
            report("after", await tokens(client, asyncio.sleep(AFTER_S)))
            for name, pid in pids.items():
                figures = before_bytes[name], memory(pid, "VmHWM"), memory(pid, "VmRSS")
                print("{:12}  {:5.0f} MB before, {:5.0f} MB most, {:5.0f} MB at the end".format(name, *figures))


async def tokens(client: AsyncClient, until: Awaitable[object]) -> list[float]:
    """Starts a turn every EVERY_S until `until` is done; returns their times to first token."""
    done = asyncio.ensure_future(until)
    async with asyncio.TaskGroup() as group:
        tasks = []
        while not done.done():
            tasks.append(group.create_task(first_word_s(client)))
            await asyncio.sleep(EVERY_S)
    return [task.result() for task in tasks]


async def first_word_s(client: AsyncClient) -> float:
    """Returns the seconds until the first word of a new turn."""
    begun = time.perf_counter()
    async with await client.ask("#sim words=1 rate=0") as answer:
        async for event in answer:
            if event.type == "delta":
                return time.perf_counter() - begun
    raise AssertionError("the turn ended without a word")


def report(name: str, times: list[float]) -> None:
    figures = *(1000 * percentile(times, percent) for percent in (50, 99)), 1000 * max(times), len(times)
    print("{:6}  p50 {:4.0f} ms, p99 {:4.0f} ms, most {:4.0f} ms of {} turns".format(name, *figures), flush=True)


def memory(pid: int, field: str) -> float:
    """Returns `VmRSS` or `VmHWM` (the peak of VmRSS) in MB."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


async def send(options: argparse.Namespace) -> None:
    statuses: Counter[int | str] = Counter()
    until = time.monotonic() + options.seconds
    await asyncio.gather(*(send_bodies(options, until, statuses) for _ in range(options.connections)))
    print(f"bodies of {options.megabytes:g} MB by status: {dict(statuses)}", flush=True)


async def send_bodies(options: argparse.Namespace, until: float, statuses: Counter[int | str]) -> None:
    before, after = (part.encode() for part in BODY.split("DATA"))
    rest = b"A" * int(options.megabytes * 1_000_000 - len(before) - len(after) - 32)
    headers = {"authorization": f"Bearer {TENANTS['a']}", "content-type": "application/json"}
    url = f"http://127.0.0.1:{options.send}"
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        while time.monotonic() < until:
            name = b"0" * 32 if options.same else os.urandom(16).hex().encode()
            try:
                answer = await client.post(options.path, content=before + name + rest + after)
            except httpx2.TransportError as error:
                statuses[type(error).__name__] += 1
                continue
            statuses[answer.status_code] += 1
            if answer.status_code == 503:
                await asyncio.sleep(float(answer.headers["retry-after"]))


if __name__ == "__main__":
    asyncio.run(main())
