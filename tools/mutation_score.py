"""Runs mutmut, and prints the share of mutants that the unit tests find. Exit status 1 if it is below the floor."""

import argparse
import subprocess
import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
LOG, STATS = ROOT / "mutants.log", ROOT / "mutants/mutmut-cicd-stats.json"
MUTMUT = Path(sys.executable).with_name("mutmut")
# Below the last measured score (CONTRIBUTING.md), because a slow machine moves a few mutants between the counts.
FLOOR_PERCENT = 90.0


class Stats(msgspec.Struct):
    """How many mutants ended how; mutmut writes more counts than these."""

    killed: int
    timeout: int
    skipped: int
    total: int

    @property
    def found_count(self) -> int:
        """The mutants with which a test fails or does not end, which mutmut's own badge counts as well."""
        return self.killed + self.timeout

    @property
    def tested_count(self) -> int:
        """All mutants that were not skipped."""
        return self.total - self.skipped

    def is_enough(self) -> bool:
        """Returns whether the share of found mutants reaches FLOOR_PERCENT. Without any mutant it does not."""
        return self.tested_count > 0 and 100 * self.found_count >= FLOOR_PERCENT * self.tested_count

    def __str__(self) -> str:
        percent = 100 * self.found_count / max(self.tested_count, 1)
        return (
            f"{self.found_count} of {self.tested_count} mutants found: {percent:.1f} % (at least {FLOOR_PERCENT:.0f} %)"
        )


def main() -> int:
    """Prints the score and returns the exit status. Raises CalledProcessError if mutmut fails; LOG says why."""
    argparse.ArgumentParser(prog="python -m tools.mutation_score", description=__doc__).parse_args()
    with LOG.open("w") as log:
        subprocess.run([MUTMUT, "run", "--max-children", "2"], cwd=ROOT, stdout=log, stderr=log, check=True)
    subprocess.run([MUTMUT, "export-cicd-stats"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    stats = msgspec.json.decode(STATS.read_bytes(), type=Stats)
    sys.stdout.write(f"mutation: {stats}\n")
    return 0 if stats.is_enough() else 1


if __name__ == "__main__":
    sys.exit(main())
