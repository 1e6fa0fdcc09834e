"""Plays random answers over real sockets into a real log. Exit status 1 if one of them is not stored as it was sent.

python -m tests.sockets --seeds 0:500
python -m tests.sockets --seeds 7:8             one seed
"""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import structlog
import uvloop

from tailrace.deploy.local.nats_server import NatsServer
from tests.conftest import apply_streams
from tests.harness.certificates import make_self_signed
from tests.schedules.__main__ import range_of
from tests.sockets.example import make_example
from tests.sockets.model_server import ModelServer
from tests.sockets.play import play


async def play_all(seeds: range, folder: Path, *, stops_at_first: bool) -> int:
    """Plays the seeds and prints what is wrong; returns how many are wrong."""
    certificate = make_self_signed(folder, "localhost")
    os.environ["SSL_CERT_FILE"] = str(certificate[0])
    wrong, faults = 0, Counter[str]()
    async with NatsServer(folder) as nats:
        await apply_streams(nats.url)
        with ModelServer(certificate) as server:
            for number, seed in enumerate(seeds, 1):
                example = make_example(seed)
                faults[example.fault] += 1
                found = await play(example, server, nats.url)
                wrong += bool(found)
                for line in found:
                    print(f"seed {seed} ({example.fault}): {line}", flush=True)
                if found and stops_at_first:
                    print(f"found after {number} examples")
                    return wrong
                if number % 50 == 0:
                    print(f"{number} of {len(seeds)}, {wrong} wrong", file=sys.stderr, flush=True)
    print(f"{len(seeds)} examples ({', '.join(f'{n} {fault}' for fault, n in faults.most_common())}), {wrong} wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sockets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds",
        type=range_of,
        default="0:500",
        metavar="FIRST:AFTER_LAST",
        help="play these seeds (default: %(default)s)",
    )
    parser.add_argument("--first", action="store_true", help="stop at the first example that is wrong")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-sockets-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return 1 if runner.run(play_all(options.seeds, Path(folder), stops_at_first=options.first)) else 0


if __name__ == "__main__":
    sys.exit(main())
