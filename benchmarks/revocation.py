"""Time until the streams of a revoked key are closed: `python -m benchmarks.revocation`. Three gateway processes.

Prints two times: from the start of `tailrace keys revoke`, and from the moment when NATS had stored the revocation, to
the end of the last stream.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.log_server import running_log
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import NewKey, new_key
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.processes import CHECKOUT
from tests.harness.turn_writer import Writer

GATEWAYS = 3
STREAMS = 30
TENANT = Tenant("acme")


async def main(runs: int) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats, connection = await stack.enter_async_context(running_log(folder, sync="always"))
        first = new_key(TENANT, now=1, scopes=SCOPES)
        await KeyStore(connection).create(first.record)
        urls = []
        for number in range(GATEWAYS):
            own = folder / str(number)
            own.mkdir()
            urls.append((await stack.enter_async_context(processes.gateway(own, nats.url))).url)
        turn = TurnKey(TENANT, TurnId(new_id()))
        await Writer(TurnLog(connection), turn).open("half an answer")
        stored = [await run(KeyStore(connection), urls, turn, is_typed=False) for _ in range(runs)]
        keys = KeyStore(connection)
        typed = [await run(keys, urls, turn, is_typed=True, nats_url=nats.url) for _ in range(-(-runs // 4))]
    print(f"{GATEWAYS} gateways, {GATEWAYS * STREAMS} streams of the key; until the last one is closed, in ms")
    for name, times in (("from stored", stored), ("from typed", typed)):
        print(f"{name:12} median {median(times):5.0f}   most {max(times):5.0f}   of {len(times)} runs")


async def run(keys: KeyStore, urls: list[str], turn: TurnKey, *, is_typed: bool, nats_url: str = "") -> float:
    key = new_key(TENANT, now=1, scopes=SCOPES)
    await keys.create(key.record)
    opened: asyncio.Queue[None] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        reading = [group.create_task(read(url, turn, key, opened)) for url in urls for _ in range(STREAMS)]
        for _ in reading:
            await opened.get()
        begun = time.perf_counter()
        if is_typed:
            await revoke_by_hand(key.record.id, nats_url)
        else:
            await keys.revoke(key.record.id, 2)
            begun = time.perf_counter()
    return 1000 * (max(task.result() for task in reading) - begun)


async def revoke_by_hand(key_id: str, nats_url: str) -> None:
    command = (sys.executable, "-m", "tailrace", "keys", "revoke", key_id)
    process = await asyncio.create_subprocess_exec(*command, cwd=CHECKOUT, env={"TAILRACE_NATS_URL": nats_url})
    assert await process.wait() == 0


async def read(url: str, turn: TurnKey, key: NewKey, opened: asyncio.Queue[None]) -> float:
    """Returns when the stream was closed. tailrace.AsyncClient would resume it."""
    headers = {"authorization": f"Bearer {key.secret}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        while True:
            async with client.stream("GET", f"/v1/turns/{turn.turn}/events") as answer:
                if answer.status_code == 401:
                    # The gateway has not received the key yet.
                    await asyncio.sleep(0.01)
                    continue
                opened.put_nowait(None)
                async for _ in answer.aiter_raw():
                    pass
                return time.perf_counter()


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--runs", type=count, default=20)
    asyncio.run(main(parser.parse_args().runs))
