"""`make kills`: kills each process at each entry of a turn, and writes docs/KILLS.md. Exit status 1 if a cell is red.

ARGS='--kinds text --processes gateway' kills less, and writes nothing.
"""

import argparse
import asyncio
import sys
from time import monotonic

from tests.kills.cell import KINDS
from tests.kills.matrix import run_all
from tests.kills.page import PAGE, page
from tests.kills.wave import PROCESSES


def main() -> int:
    parser = argparse.ArgumentParser(prog="make kills", description="Kill each process at each entry of a turn.")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--processes", nargs="*", choices=PROCESSES, default=list(PROCESSES))
    asked = parser.parse_args()
    began = monotonic()
    matrix = asyncio.run(run_all(asked.processes, asked.kinds))
    for line in matrix.report():
        print(line)
    print(f"{monotonic() - began:.0f} s")
    if (asked.kinds, asked.processes) == (list(KINDS), list(PROCESSES)):
        PAGE.write_text(page(matrix.hits, matrix.broken))
    return 0 if matrix.is_green else 1


if __name__ == "__main__":
    sys.exit(main())
