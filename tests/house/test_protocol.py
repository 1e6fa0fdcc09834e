"""PROTOCOL.md and its tests: every rule has one that exists, and every mark has a rule."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "proto/PROTOCOL.md").read_text()
RULE = re.compile(r"^\*\*(R[0-9]+)\.\*\*(.*?)(?=^\*\*R[0-9]+\.\*\*|^## |\Z)", re.MULTILINE | re.DOTALL)
HELD_BY = re.compile(r"(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)")
MARK = re.compile(r'pytest\.mark\.rule\("([^"]*)"\)')

RULES: dict[str, str] = dict(RULE.findall(PROTOCOL))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_held_by_tests_that_exist(rule: str) -> None:
    """A rule without a test is a wish."""
    text, _, held_by = RULES[rule].partition("— test: ")
    assert text.strip()
    tests = HELD_BY.findall(held_by)
    assert tests, f"{rule} names no test"
    missing = [f"{path}::{name}" for path, name in tests if not is_there(path, name)]
    assert not missing, f"{rule} names tests that are not there"


def test_rules_are_numbered_once_and_in_order() -> None:
    """A number is never used twice: a test, a comment or a message may still cite it."""
    numbers = [int(rule[1:]) for rule, _ in RULE.findall(PROTOCOL)]
    assert numbers == sorted(set(numbers))
    assert numbers


def test_every_mark_names_a_rule() -> None:
    """A test that says it holds a rule holds one that exists."""
    marked = {mark for path in (ROOT / "tests").rglob("*.py") for mark in MARK.findall(path.read_text())}
    assert marked - {"", *RULES} == set()


@pytest.mark.parametrize("rule", RULES)
def test_every_test_that_is_marked_with_a_rule_of_ours_is_named_by_it(rule: str) -> None:
    """Who reads a rule finds all of its tests."""
    named = {name for _, name in HELD_BY.findall(RULES[rule])}
    marked = {name for path in (ROOT / "tests").rglob("test_*.py") for name in marked_with(rule, path.read_text())}
    assert marked <= named


def test_what_the_code_cites_is_a_rule() -> None:
    """A comment that says R14 means one that is there."""
    folders = ("proto", "gateway", "generators", "persistence", "deploy")
    sources = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    cited = {
        rule for text in sources for line in re.findall(r"PROTOCOL .*", text) for rule in re.findall(r"R\d+", line)
    }
    assert cited
    assert cited - set(RULES) == set()


def is_there(path: str, name: str) -> bool:
    file = ROOT / path
    return file.exists() and re.search(rf"^(async )?def {name}\(", file.read_text(), re.MULTILINE) is not None


def marked_with(rule: str, source: str) -> list[str]:
    """The names of the tests in `source` with that mark among their decorators."""
    tests = re.findall(r"((?:^@.*\n(?:^[ )].*\n)*)+)^(?:async )?def (test_\w+)", source, re.MULTILINE)
    return [name for decorators, name in tests if rule in MARK.findall(decorators)]
