"""A mutant, or the tree as it is, goes through its scenario and is judged; always by this tree's own checker."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.checker.bounds import Bounds
from tests.checker.invariants import judge
from tests.checker.run import load
from tests.mutants import tree
from tests.mutants.mutant import Mutant
from tests.promises import Verdict

# A scenario has waited for as long as it wants to.
BOUNDS = Bounds(end_s=0)


async def verdicts(scenario: str, mutant: Mutant | None = None) -> dict[str, Verdict]:
    """What the checker says of a scenario in a tree without the mutant's rule; without one, in the tree as it is."""
    with TemporaryDirectory(prefix="tailrace-mutant-") as folder:
        recorded = Path(folder) / "recorded"
        recorded.mkdir()
        living = tree.ROOT
        if mutant is not None:
            living = tree.copy(Path(folder) / "tree", mutant.edits)
        await tree.run(living, scenario, recorded)
        return judge(load(recorded), BOUNDS)


def broken(found: dict[str, Verdict]) -> dict[str, Verdict]:
    return {name: verdict for name, verdict in found.items() if verdict.holds is False}
