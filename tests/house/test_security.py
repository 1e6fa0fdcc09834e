"""SECURITY.md: every attack has an answer, and a test that exists; its sections are those that a reader looks for."""

import re
from pathlib import Path

import pytest

from tests.house.test_protocol import is_there

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
HEADING = "| | attack | answer | tests |"
ROWS = [
    [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
    for line in PAGE.partition(HEADING)[2].splitlines()
    if line.startswith("| ") and not line.startswith("| | **")
]
TEST = re.compile(r"\[(test_\w+)\]\((tests/[\w/]+\.py)\)")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1][:40])
def test_an_attack_is_held_off_by_tests_that_exist(row: list[str]) -> None:
    """What nobody tries is a hope."""
    _, attack, answer, tests = row
    assert attack
    assert answer
    named = TEST.findall(tests)
    assert len(named) == len(tests.split("<br>"))
    assert [f"{path}::{name}" for name, path in named if not is_there(path, name)] == []


def test_the_page_says_whom_it_trusts_and_how_to_report() -> None:
    """And there are rows at all."""
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert headings == [
        "To report something",
        "Who is trusted with what",
        "What is promised",
        "What is not",
        "What was tried",
    ]
    assert len(ROWS) > 40


def test_every_threat_of_the_list_is_found_by_its_number() -> None:
    """S1 to S19, in whichever section."""
    assert {row[0] for row in ROWS} == {"", *(f"S{number}" for number in range(1, 20))}
