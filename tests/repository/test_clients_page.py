"""docs/CLIENTS.md is generated from the `proves` marks of the tests."""

import re

from tests.clients.proofs import PAGE, ROOT, page, proofs

MARK = re.compile(r"^\s*(?:@|marks=)pytest\.mark\.proves\(", re.MULTILINE)


def test_clients_page_equals_the_marks() -> None:
    """Each row is a mark and each mark is a row."""
    assert PAGE.read_text() == page(), "docs/CLIENTS.md is out of date: run `make schema`"


def test_every_mark_is_parsed() -> None:
    """The parser of marks finds as many as a search in the source text."""
    marks = sum(len(MARK.findall(path.read_text())) for path in ROOT.glob("tests/**/test_*.py"))
    assert len(proofs()) == marks > 0
