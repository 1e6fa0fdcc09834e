"""Plays random sessions against a simulated Claude that checks thinking. Exit status 1 if one of them is wrong.

python -m tests.sessions --seeds 0:10000 --processes 2      in process
python -m tests.sessions --seeds 7:8                        one seed
python -m tests.sessions --seeds 0:300 --real               real processes, and kills
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.schedules.__main__ import range_of
from tests.sessions.judge import Verdict
from tests.sessions.play import play_all
from tests.sessions.real import play_real

CHUNK = 50


def verdicts(seeds: range, processes: int) -> Iterator[Verdict]:
    """Yields the verdicts on the sessions of the seeds, in order."""
    chunks = [seeds[begin : begin + CHUNK] for begin in range(0, len(seeds), CHUNK)]
    if processes == 1:
        for chunk in chunks:
            yield from play_all(chunk)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for found in pool.map(play_all, chunks):
            yield from found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sessions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds",
        type=range_of,
        default="0:1000",
        metavar="FIRST:AFTER_LAST",
        help="play these seeds (default: %(default)s)",
    )
    parser.add_argument("--processes", type=int, default=1, help="play in so many processes (default: %(default)s)")
    parser.add_argument("--real", action="store_true", help="play with real processes, and kill generators")
    options = parser.parse_args()
    began, wrong, counts = time.monotonic(), 0, Counter[str]()
    found = asyncio.run(play_real(options.seeds)) if options.real else verdicts(options.seeds, options.processes)
    for number, verdict in enumerate(found, 1):
        counts.update(verdict.counts)
        wrong += bool(verdict.wrong)
        if verdict.wrong:
            again = f"python -m tests.sessions --seeds {verdict.seed}:{verdict.seed + 1}"
            print(f"{again}: {verdict.wrong[0]}; {len(verdict.wrong) - 1} more", flush=True)
            if len(options.seeds) == 1:
                print("\n".join(verdict.wrong))
        if number % 500 == 0:
            print(f"{number} of {len(options.seeds)}, {wrong} wrong", file=sys.stderr, flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:10} {name}")
    print(f"{len(options.seeds)} sessions, {wrong} wrong, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
