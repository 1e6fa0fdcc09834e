"""`python -m tests.checker FOLDER` checks a recorded run. Exit status 1 if an invariant is violated."""

import argparse
import sys
from pathlib import Path

from tests.checker.invariants import judge, report
from tests.checker.run import load


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description="Check a recorded run.")
    parser.add_argument("folder", type=Path)
    verdicts = judge(load(parser.parse_args().folder))
    for line in report(verdicts):
        print(line)
    return 1 if any(verdict.holds is False for verdict in verdicts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
