"""Measures the memory of an idle stream whose turn has no other reader, by process.

`python -m benchmarks.idle_turns --streams 300 600 --beside ../before` starts `tailrace up` of this checkout and of
others. Each stream is a POST that reads its own turn; the model has sent one delta and is silent. Freed memory is
reused, so each checkout has new processes, and the first streams may use memory that the start has left. Compare only
figures of one run.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys

import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.compare.__main__ import checkout
from benchmarks.compare.arms import ROOT, Arm, port_of, process, tailrace
from benchmarks.compare.attached_readers import AttachedReader
from benchmarks.process_usage import pss_kb, raise_file_limit

WARM_TURNS = 30
# Longer than the interval after which a gateway reads the log of a silent turn, so that this is part of the figure.
SETTLE_S = 8
SILENT_S = 600
OPENING_MAX = 20
ROLES = ("gateway", "generator", "NATS")


def request_of(arm: Arm, wait_s: int) -> bytes:
    """Returns the POST of a turn with one delta, which ends `wait_s` seconds later, with the headers of a client."""
    body = json.dumps(arm.body(f"#bench words=1 rate=1 wait={wait_s}")).encode()
    lines = [
        f"POST {arm.path} HTTP/1.1",
        f"Host: 127.0.0.1:{arm.port}",
        "Accept: text/event-stream",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "User-Agent: tailrace-benchmark/1",
        f"Idempotency-Key: {secrets.token_hex(16)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def open_streams(arm: Arm, streams: int, wait_s: int) -> list[AttachedReader]:
    """Opens streams, each of a new turn, and returns them when each has its delta."""
    loop, opening = asyncio.get_running_loop(), asyncio.Semaphore(OPENING_MAX)

    async def open_one() -> AttachedReader:
        async with opening:
            _, reader = await loop.create_connection(
                lambda: AttachedReader(request_of(arm, wait_s)), "127.0.0.1", arm.port
            )
            await reader.wait_for_words(1)
            return reader

    return await asyncio.gather(*(open_one() for _ in range(streams)))


def memory_kb(arm: Arm) -> dict[str, float]:
    """Returns the memory of each role (`Pss`)."""
    return {role: sum(map(pss_kb, arm.processes[role])) for role in ROLES}


async def measure(arm: Arm, steps: list[int]) -> list[dict[str, float]]:
    """Opens as many streams as each step says. Returns the kB that each of them takes, by role."""
    for reader in await open_streams(arm, WARM_TURNS, 0):
        reader.transport.close()
    await asyncio.sleep(SETTLE_S)
    found, opened = [], []
    before = memory_kb(arm)
    for streams in steps:
        opened += await open_streams(arm, streams, SILENT_S)
        await asyncio.sleep(SETTLE_S)
        after = memory_kb(arm)
        found.append({role: (after[role] - before[role]) / streams for role in ROLES})
        before = after
    for reader in opened:
        reader.transport.abort()
    return found


async def run(options: argparse.Namespace) -> None:
    """Measures all checkouts and prints a table."""
    print(f"| kB a stream | {' | '.join(ROLES)} |\n{'|---' * (len(ROLES) + 1)}|")
    with process(sys.executable, "-m", "benchmarks.compare.model") as model:
        url = f"http://127.0.0.1:{port_of(model)}"
        for path in [ROOT, *options.beside]:
            with tailrace(path.name, "--sync", "default", checkout=path)(url) as arm:
                for streams, kb in zip(options.streams, await measure(arm, options.streams), strict=True):
                    cells = " | ".join(f"{kb[role]:.1f}" for role in ROLES)
                    print(f"| {path.name}, {streams} streams | {cells} |", flush=True)
    print(f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--streams", type=count, nargs="+", default=[300, 600], help="opened one after the other")
    parser.add_argument("--beside", type=checkout, nargs="*", default=[], help="paths of other checkouts of Tailrace")
    options = parser.parse_args()
    raise_file_limit()
    uvloop.run(run(options))


if __name__ == "__main__":
    main()
