"""docs/KILLS.md has a cell for all that the code's tables have, and none of them is red."""

import re
from typing import get_args

from gateway.dialects import DIALECTS
from proto.entries import OnInterrupt
from tests.checker.oracle import KINDS
from tests.kills.cell import ALONE, OF_BLOCK, POLICIES, cells
from tests.kills.page import PAGE
from tests.kills.wave import PROCESSES

ROW = re.compile(r"^\| (.+?) \|(.*)\|$", re.MULTILINE)


def test_the_kill_matrix_has_every_kind_policy_and_process() -> None:
    """A kind of block that the model may answer with, or a policy, that is not killed is not proved."""
    page = PAGE.read_text()
    heads = {f"{kind}, `{policy}`" for kind in ALONE for policy in get_args(OnInterrupt)}
    assert {kind.replace(" ", "_") for kind in ALONE} == set(KINDS)
    assert set(POLICIES) == set(get_args(OnInterrupt))
    assert all(page.count(f"| {head} |") == len(PROCESSES) for head in heads)
    rows = [name for name, _ in ROW.findall(page)]
    for entry in {cell.entry for kind in ALONE for cell in cells(kind)}:
        assert rows.count(entry) == len(PROCESSES) * (1 if entry in OF_BLOCK else 2), entry


def test_the_kill_matrix_has_every_dialect() -> None:
    page = PAGE.read_text()
    told = dict(ROW.findall(page.partition("## The dialects")[2]))
    assert {f"`{name}`" for name in DIALECTS} < set(told)
    assert all(told[f"`{name}`"].count("✓") == len(PROCESSES) for name in DIALECTS)


def test_no_cell_of_the_kill_matrix_is_red() -> None:
    assert "| ✗ |" not in PAGE.read_text()
    assert "## What did not hold" not in PAGE.read_text()
