"""docs/CLIENTS.md says what the tests say, and no more."""

import re

from tests.clients.proofs import PAGE, ROOT, page, proofs

MARK = re.compile(r"^\s*(?:@|marks=)pytest\.mark\.proves\(", re.MULTILINE)


def test_the_page_of_clients_is_what_the_tests_prove() -> None:
    """A row that no test is would be a promise; a test that has no row is not found."""
    assert PAGE.read_text() == page(), "docs/CLIENTS.md is old: run `make schema`"


def test_every_mark_is_read_as_a_row() -> None:
    """A mark that the page's reader passes over, because of how it is written, would prove nothing to anybody."""
    marks = sum(len(MARK.findall(path.read_text())) for path in ROOT.glob("tests/**/test_*.py"))
    assert len(proofs()) == marks > 0
