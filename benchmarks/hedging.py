"""The effect of hedging on a late first token, and its cost: `python -m benchmarks.hedging`.

In every second turn the first call opens its message and then stays silent; every other call answers at once. Two
generators run in this process, without and with hedging. Times are from the request to the first text in the log.
"""

import asyncio
import statistics
import tempfile
from contextlib import aclosing
from pathlib import Path

from benchmarks.command_line import count, new_parser
from benchmarks.log_server import running_log
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.proto import events
from tailrace.proto.entries import Event
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tests.harness.generator_in_loop import append_request, read_stats, running_generator

HEDGE_AFTER_S = 0.5
STALL_TIMEOUT_S = 5.0


async def first_text_s(log: TurnLog, line: str) -> float:
    begun = asyncio.get_running_loop().time()
    key = await append_request(log, line)
    await first_text(log, key)
    return asyncio.get_running_loop().time() - begun


async def first_text(log: TurnLog, key: TurnKey) -> None:
    async with aclosing(log.follow(key)) as following:
        async for some in following:
            for stored in some:
                match stored.entry:
                    case Event(event=raw) if isinstance(events.decode(raw), events.BlockDelta):
                        return


async def measure_hedging(folder: Path, hedge_after_s: float, pairs: int) -> None:
    async with running_log(folder) as (server, connection), run_simulated_claude() as claude:
        given = {"hedge_after_s": hedge_after_s, "stall_timeout_s": STALL_TIMEOUT_S}
        log = TurnLog(connection)
        async with running_generator(server.url, claude, **given), running_generator(server.url, claude, **given):
            # The first calls of a process are slower than all others.
            await asyncio.gather(*(first_text_s(log, f"words=1 rate=0 tag=warm{number}") for number in range(4)))
            before = (await read_stats(claude))["calls"]
            late, prompt = [], []
            for number in range(pairs):
                both = (f"words=9 rate=0 tag=a{number} fault=stall@0x1", f"words=9 rate=0 tag=b{number}")
                took = await asyncio.gather(*(first_text_s(log, line) for line in both))
                late.append(took[0])
                prompt.append(took[1])
            calls = (await read_stats(claude))["calls"] - before
    name = f"hedged after {hedge_after_s:g} s" if hedge_after_s else f"not hedged, {STALL_TIMEOUT_S:g} s until broken"
    print(
        f"{name:<28} first token, median: stalled {statistics.median(late):.2f} s, "
        f"other {statistics.median(prompt) * 1000:.0f} ms; {calls} calls for {2 * pairs} turns"
    )


async def main(pairs: int) -> None:
    for hedge_after_s in (0.0, HEDGE_AFTER_S):
        with tempfile.TemporaryDirectory() as folder:
            await measure_hedging(Path(folder), hedge_after_s, pairs)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--pairs", type=count, default=6, help="of a stalled turn and another one")
    asyncio.run(main(parser.parse_args().pairs))
