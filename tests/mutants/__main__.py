"""`make mutants`: takes the rules away one at a time, and shows which invariant found out. Exit status 1 if none did.

Each scenario is first run in the tree as it is, where nothing may be false.

make mutants                      each of them
make mutants ARGS='fence prev'    those that have one of these words in their names
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from time import monotonic

from tests.mutants.judged import broken, verdicts
from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS
from tests.promises import Verdict

EVIDENCE_CHARS = 160


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "".join(f"\n  {one.name}" for one in MUTANTS)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants that have one of these in their names")
    parser.epilog = f"the mutants:{names}"
    words = parser.parse_args().words
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    if not chosen:
        parser.error(f"no mutant has {' or '.join(map(repr, words))} in its name: --help has the names")
    return asyncio.run(show(chosen))


async def show(mutants: list[Mutant]) -> int:
    print("| taken away | scenario | went red | evidence |\n|---|---|---|---|", flush=True)
    began, failures = monotonic(), 0
    for scenario in sorted({mutant.scenario for mutant in mutants}):
        red = broken(await verdicts(scenario))
        failures += bool(red)
        row("nothing", scenario, ", ".join(name.split()[0] for name in red) or "nothing", *first_evidence(red))
    for mutant in mutants:
        red = broken(await verdicts(mutant.scenario, mutant))
        is_caught = mutant.caught_by in red
        failures += not is_caught
        names = ", ".join(name.split()[0] for name in red) or "NOTHING"
        evidence = red[mutant.caught_by].evidence if is_caught else f"not by {mutant.caught_by}"
        row(mutant.name, mutant.scenario, names, evidence)
    print(
        f"\n{len(mutants)} mutants in {monotonic() - began:.0f} s; {failures} of them, or of the sound runs, are wrong"
    )
    return 1 if failures else 0


def first_evidence(red: Mapping[str, Verdict]) -> list[str]:
    return [verdict.evidence for verdict in red.values()][:1] or [""]


def row(*cells: str) -> None:
    print(f"| {' | '.join(cell[:EVIDENCE_CHARS] for cell in cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
