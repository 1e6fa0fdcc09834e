"""A batch of 1,000 inputs whose generator is killed repeatedly: `python -m benchmarks.batch`.

The simulated Claude answers. Checks that each input has exactly one complete turn, in
order, and prints the number of extra model calls that the kills cost.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import msgspec

from benchmarks.command_line import count, new_parser
from benchmarks.log_server import running_log
from tailrace.proto.entries import Progress, Request
from tailrace.proto.ids import BEFORE_FIRST, Tenant, TurnId, TurnKey, child_id
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.generator_in_loop import read_stats, words
from tests.harness.until import until

TENANT = Tenant("local")
WAIT_S_MAX = 120.0
SPEED = "words=3 rate=100"


async def main(inputs: int, parallel: int) -> int:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats, connection = await stack.enter_async_context(running_log(folder))
        claude = await stack.enter_async_context(processes.simulated_claude(folder))
        gateway = await stack.enter_async_context(processes.gateway(folder, nats.url))
        await stack.enter_async_context(processes.persistence(folder, nats.url))
        generators = [
            await stack.enter_async_context(processes.generator(folder, nats.url, claude.url)) for _ in range(2)
        ]
        log = TurnLog(connection)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=60, trust_env=False))
        requests = [
            {"custom_id": f"c{number}", "params": {"message": f"#sim {SPEED} tag=n{number}x"}}
            for number in range(inputs)
        ]
        began = time.monotonic()
        body = {"requests": requests, "parallel": parallel}
        batch = (await client.post(f"{gateway.url}/v1/turn-batches", json=body)).json()
        accepted_s = time.monotonic() - began
        key = TurnKey(TENANT, TurnId(batch["batch"]))

        async def shows_progress(share: float) -> bool:
            progress = (await log.read_turn(key)).progress
            return progress is not None and progress.done + progress.failed >= share * inputs

        killed = []
        for share, name in ((0.1, "generator 1"), (0.3, "generator 2"), (0.5, "gateway"), (0.6, "NATS"), (0.8, "both")):
            await until(lambda share=share: shows_progress(share), WAIT_S_MAX)  # type: ignore[misc]
            victims = {"generator 1": generators[:1], "generator 2": generators[1:], "both": generators}.get(name, [])
            for victim in (*victims, *([gateway] if name == "gateway" else [])):
                await victim.stop(SIGKILL)
                await victim.start()
            if name == "NATS":
                await nats.stop(SIGKILL)
                await nats.start()
            killed.append(name)
        await until(lambda: shows_progress(1), WAIT_S_MAX)
        whole_s = time.monotonic() - began
        answer = await client.get(gateway.url + batch["links"]["results"])
        lines: list[dict[str, Any]] = [msgspec.json.decode(line) for line in answer.content.splitlines()]
        right = [
            line["text"] == words(3, f"n{number}x") and line["custom_id"] == f"c{number}"
            for number, line in enumerate(lines)
        ]
        request_counts = [
            await _count_requests(log, TurnKey(TENANT, child_id(key.turn, number))) for number in range(inputs)
        ]
        done = [one.done + one.failed for one in await _progress(log, key)]
        turn = await log.read_turn(key)
        calls = (await read_stats(claude.url))["calls"]
    print(f"{inputs} inputs, {parallel} at once, accepted in {accepted_s:.2f} s; killed: {', '.join(killed)}")
    print(f"turns with exactly one request: {request_counts.count(1)}; answers whole and in order: {right.count(True)}")
    print(f"calls to the model: {calls}; attempts at the batch: {turn.attempt}; entries of progress: {len(done)}")
    print(f"all ended after {whole_s:.1f} s")
    is_right = request_counts.count(1) == right.count(True) == len(lines) == inputs and done == sorted(set(done))
    print("all of it as it should be" if is_right else "NOT as it should be")
    return 0 if is_right else 1


async def _count_requests(log: TurnLog, key: TurnKey) -> int:
    return sum(isinstance(stored.entry, Request) for stored in await log.read_entries(key))


async def _progress(log: TurnLog, key: TurnKey) -> list[Progress]:
    found, last = [], BEFORE_FIRST
    while page := await log.read_entries(key, last):
        found += [stored.entry for stored in page if isinstance(stored.entry, Progress)]
        last = page[-1].seq
    return found


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=count, default=1000)
    parser.add_argument("--parallel", type=count, default=16)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.count, given.parallel)))
