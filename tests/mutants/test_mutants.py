"""The checker goes red when a rule is taken away, and is green when none is. `make mutants` takes away all of them."""

from pathlib import Path

import pytest

from tests.checker.invariants import INVARIANTS
from tests.mutants.judged import broken, verdicts
from tests.mutants.mutant import Edit, Mutant
from tests.mutants.scenarios import SCENARIOS
from tests.mutants.table import MUTANTS
from tests.mutants.tree import ROOT

# The short version: they need the fewest processes, and are caught by a reader's frames and by the model's account.
SHORT = ("de-duplication at the reader", "the gap check at the reader", "cancelling closes the call at once")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_made_of_text_that_is_there(mutant: Mutant, tmp_path: Path) -> None:
    """A mutant that changes nothing would be found sound."""
    for edit in mutant.edits:
        copy = tmp_path / edit.path
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text((ROOT / edit.path).read_text())
        edit.apply(tmp_path)
        compile(copy.read_text(), copy, "exec")
    assert mutant.scenario in SCENARIOS
    assert mutant.caught_by in INVARIANTS


def test_a_mutant_of_text_that_has_changed_says_so(tmp_path: Path) -> None:
    """Whoever changes a rule's text makes its mutant anew."""
    (tmp_path / "rule.py").write_text("a = 1\n")
    with pytest.raises(AssertionError, match=r"rule\.py has this 0 times"):
        Edit("rule.py", "b = 1", "b = 2").apply(tmp_path)


@pytest.mark.timeout(180)
async def test_while_no_rule_is_taken_away_nothing_is_false() -> None:
    """The scenario of two of the short version; that of the third is told by tests/checker, too."""
    assert broken(await verdicts("feed")) == {}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", SHORT)
async def test_a_rule_that_is_taken_away_is_missed(name: str) -> None:
    """The invariant that stands for it goes red."""
    (mutant,) = [one for one in MUTANTS if one.name == name]
    assert mutant.caught_by in broken(await verdicts(mutant.scenario, mutant))
