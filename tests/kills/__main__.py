"""`make kills`: kills each process at each entry of a turn, and keeps the result. Exit status 1 if a cell is red.

make kills                               everything, and tests/kills/result.json anew: hundreds of kills
make kills ARGS='--processes gateway'    the gateway alone; writes nothing
make kills ARGS="--kinds text 'tool use' --processes nats-server persistence"
"""

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from time import monotonic

from tests.kills.cell import KINDS
from tests.kills.matrix import run_all
from tests.kills.page import summarize, write
from tests.kills.round import PROCESSES


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"kinds of answer, of {', '.join(map(repr, KINDS))}",
    )
    parser.add_argument(
        "--processes",
        nargs="+",
        choices=PROCESSES,
        default=list(PROCESSES),
        metavar="PROCESS",
        help=f"what is killed, of {', '.join(PROCESSES)}",
    )
    given = parser.parse_args()
    began = monotonic()
    print(
        "settings: defaults, but TAILRACE_CONCURRENCY is the turns of each generator, and TAILRACE_TENANT_SHARE=1",
        flush=True,
    )
    matrix = asyncio.run(run_all(given.processes, given.kinds))
    for line in matrix.report():
        print(line)
    print(f"{monotonic() - began:.0f} s")
    if (given.kinds, given.processes) == (list(KINDS), list(PROCESSES)):
        write(summarize(datetime.now(UTC).date().isoformat(), matrix.hits, matrix.broken))
    return 0 if matrix.is_green else 1


if __name__ == "__main__":
    sys.exit(main())
