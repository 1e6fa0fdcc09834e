"""Delay that Tailrace adds between the model's delta and the reader, beside an in-process relay in the same run.

`make bench`, or `python -m benchmarks.latency --turns 1,50 --words 200 --rate 50`. A delta is timed in the TCP proxy in
front of the simulated Claude and again when it reaches the reader, with the same clock.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks.tap import WORD, Tap

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 30
READ_TIMEOUT_S = 120
_tags = ("".join(letters) for letters in itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=3))


@contextlib.contextmanager
def process(
    *command: str, env: dict[str, str] | None = None, fd: int | None = None, cwd: Path = ROOT
) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(fd,) if fd is not None else (),
        text=True,
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()


def line_with(started: subprocess.Popen[str], pattern: str) -> str:
    assert started.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    for line in started.stdout:
        if match := re.search(pattern, line):
            return match[1]
        if time.monotonic() > deadline:
            break
    raise SystemExit(f"nothing said {pattern!r} within {START_TIMEOUT_S} s")


async def lines_of(port: int, path: str, body: dict[str, object]) -> AsyncIterator[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while line := await reader.readline():
                yield line
    finally:
        writer.close()


async def read(tap: Tap, port: int, path: str, words: int, rate: int) -> list[float]:
    """Seconds that each word of one turn took from the tap to here."""
    tag = next(_tags)
    took: list[float] = []
    async with contextlib.aclosing(
        lines_of(port, path, {"message": f"#sim words={words} rate={rate} tag={tag}"})  # type: ignore[type-var]
    ) as lines:
        async for line in lines:
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            if b'"delta"' in line:
                took += [now - tap.passed[m[1], m[2]] for m in WORD.finditer(line)]
            if b'"done"' in line or b'"error"' in line:
                break
    if len(took) != words:
        raise SystemExit(f"{path}: {len(took)} of {words} words arrived")
    return took


async def measure(tap: Tap, port: int, path: str, turns: int, words: int, rate: int) -> list[float]:
    async def one(index: int) -> list[float]:
        await asyncio.sleep(index / turns / rate)  # not all in the same millisecond, as people are not
        return await read(tap, port, path, words, rate)

    return [seconds for turn in await asyncio.gather(*(one(i) for i in range(turns))) for seconds in turn]


def row(name: str, turns: int, took: list[float]) -> str:
    cuts = statistics.quantiles(took, n=100)
    return (
        f"{name:<10} {turns:>5} {len(took):>8} {cuts[49] * 1e3:>10.2f} {cuts[98] * 1e3:>10.2f} {max(took) * 1e3:>10.2f}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", default="1,50", help="turns at once, several runs joined by commas")
    parser.add_argument("--words", type=int, default=200, help="deltas of each turn")
    parser.add_argument("--rate", type=int, default=50, help="deltas a second of each turn")
    parser.add_argument("--generators", default="2")
    parser.add_argument("--sync", default="always")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        simulated = stack.enter_context(process("-m", "tailrace.deploy.simulated_claude", "--port", "0"))
        async with Tap(int(line_with(simulated, r"http://127\.0\.0\.1:(\d+)"))) as tap:
            env = {"ANTHROPIC_API_KEY": "simulated", "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{tap.port}"}
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            relay_port = listening.getsockname()[1]
            stack.enter_context(process("benchmarks/relay.py", str(listening.fileno()), env=env, fd=listening.fileno()))
            data = stack.enter_context(tempfile.TemporaryDirectory())
            options = ("--port", "0", "--data", data, "--generators", asked.generators, "--sync", asked.sync)
            up = stack.enter_context(process("-m", "tailrace", "up", *options, env=env))
            port = int(await asyncio.to_thread(line_with, up, r"^ready http://127\.0\.0\.1:(\d+)"))
            print(f"{'path':<10} {'turns':>5} {'deltas':>8} {'median ms':>10} {'p99 ms':>10} {'max ms':>10}")
            for turns in map(int, asked.turns.split(",")):
                for name, to, path in (("relay", relay_port, "/chat"), ("tailrace", port, "/v1/turns")):
                    await measure(tap, to, path, turns, 20, asked.rate)  # connections and caches, not counted
                    took = await measure(tap, to, path, turns, asked.words, asked.rate)
                    print(row(name, turns, took), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
