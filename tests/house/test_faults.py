"""docs/FAULTS.md: each fault has what comes of it, a figure or the word that there is none, and tests that exist."""

import re

import pytest

from tests.house.test_protocol import is_there
from tests.house.test_security import ROOT

PAGE = (ROOT / "docs/FAULTS.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if re.match(r"\| F\d+ ", line)
]
TEST = re.compile(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_fault_is_caused_by_tests_that_exist(row: list[str]) -> None:
    """What nobody has broken is not known to hold."""
    _, what, comes, measured, tests = row
    assert what
    assert comes
    assert measured
    named = TEST.findall(tests)
    assert len(named) == len(tests.split("<br>"))
    assert [f"{path}::{name}" for name, path in named if not is_there(path, name)] == []


def test_faults_are_numbered_once_and_in_order() -> None:
    """A test or a comment may cite a number."""
    assert [row[0] for row in ROWS] == [f"F{number}" for number in range(1, 33)]
    cited = {
        number for path in (ROOT / "tests").rglob("*.py") for number in re.findall(r"FAULTS (F\d+)", path.read_text())
    }
    assert cited
    assert cited <= {row[0] for row in ROWS}
