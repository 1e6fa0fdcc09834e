"""`tailrace restart --generators N` under running answers: `python -m benchmarks.scaling --turns 30 --numbers 4 1`.

A real `tailrace up` begins with one generator. Half of the answers begin before the first change of the number, half
after it. Each reader follows one answer with the Python client. Printed are the answers that arrived whole, the longest
time in which a reader received nothing, and the calls of the model. A generator that stops finishes its answers first;
with TAILRACE_GRACE_S=5 it hands them over after 5 s.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from signal import SIGTERM

import httpx2

from benchmarks.command_line import count, new_parser
from tailrace.client import AsyncClient
from tests.harness.up import LEAN, Up

# Of each answer, which takes 90 s.
RATE, WORDS = 10, 900
# All answers have begun by then.
START_S = 3


async def read(client: AsyncClient) -> tuple[str, float]:
    """Returns the text of an answer and the longest time in seconds between two of its events."""
    text, pause_s, before = "", 0.0, time.monotonic()
    async for event in await client.ask(f"#sim words={WORDS} rate={RATE}"):
        pause_s, before = max(pause_s, time.monotonic() - before), time.monotonic()
        if event.type == "delta":
            text += event.text
        elif event.type in ("reset", "error"):
            text = ""
    return text, pause_s


async def main(turns: int, numbers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        up = Up(Path(folder), *LEAN, is_real=True)
        try:
            url = await up.ready()
            async with AsyncClient(url) as client:
                readers = [asyncio.create_task(read(client)) for _ in range(turns - turns // 2)]
                await asyncio.sleep(START_S)
                for index, number in enumerate(numbers):
                    begun = time.monotonic()
                    await restart(up.folder, number)
                    print(f"{number} generators after {time.monotonic() - begun:.1f} s", flush=True)
                    if index == 0:
                        readers += [asyncio.create_task(read(client)) for _ in range(turns // 2)]
                        await asyncio.sleep(START_S)
                found = await asyncio.gather(*readers)
            claude = next(line for line in up.lines if line.strip().startswith("simulated-claude")).split()[-1]
            calls = httpx2.get(f"{claude}/_sim/stats", trust_env=False).json()["calls"]
        finally:
            up.process.send_signal(SIGTERM)
            await asyncio.to_thread(up.process.wait)
    whole = " ".join(f"w{number:06d}" for number in range(WORDS))
    pauses_s = [pause_s for _, pause_s in found]
    whole_count = sum(text == whole for text, _ in found)
    print(f"{whole_count} of {turns} answers whole; longest pause {max(pauses_s):.2f} s; {calls} calls of the model")


async def restart(folder: Path, generators: int) -> None:
    command = [sys.executable, "-m", "tailrace", "restart", "--data", str(folder), "--generators", str(generators)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    if await process.wait() != 0:
        raise SystemExit("the restart failed")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--turns", type=count, default=30, help="running answers")
    parser.add_argument("--numbers", type=count, nargs="+", default=[4, 1], help="numbers of generators, in order")
    given = parser.parse_args()
    asyncio.run(main(given.turns, given.numbers))
