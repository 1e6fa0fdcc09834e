"""`python -m tests.checker FOLDER` checks a recorded run. Status 1: an invariant is violated, or none holds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.checker.invariants import judge, report
from tests.checker.run import load


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description="Check a recorded run.")
    parser.add_argument("folder", type=Path)
    verdicts = judge(load(parser.parse_args(argv).folder))
    for line in report(verdicts):
        print(line)
    # A run that shows nothing is no success.
    found = {verdict.holds for verdict in verdicts.values()}
    return 0 if True in found and False not in found else 1


if __name__ == "__main__":
    sys.exit(main())
