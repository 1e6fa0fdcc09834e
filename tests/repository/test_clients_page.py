"""docs/CLIENTS.md is generated from the client matrix and the `proves` marks of the tests."""

import re

from tests.clients.proofs import PAGE, ROOT, marks, page

MARK = re.compile(r"^\s*(?:@|marks=)pytest\.mark\.proves\(", re.MULTILINE)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "docs/CLIENTS.md is out of date: run `make schema`"


def test_every_mark_is_parsed() -> None:
    """The parser of marks finds as many as a search in the source text."""
    found = sum(len(MARK.findall(path.read_text())) for path in ROOT.glob("tests/**/test_*.py"))
    assert len(marks()) == found > 0
