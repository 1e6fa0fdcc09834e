"""The tables of docs/CLIENTS.md are made from the client matrix and the `proves` marks of the tests."""

import re

from tests.clients.proofs import ROOT, Proof, marks, proofs, tables

MARK = re.compile(r"^\s*(?:@|marks=)pytest\.mark\.proves\(", re.MULTILINE)


def test_the_tables_have_each_client_at_its_dialect_and_feature() -> None:
    shown = set()
    for dialect, table in re.findall(r"^## (.+)\n\n((?:\|.*\n)+)", tables(), re.MULTILINE):
        for feature, clients in re.findall(r"^\| (.+) \| (.+) \|$", table, re.MULTILINE)[1:]:
            shown |= {Proof(dialect, feature, client) for client in re.split(r", (?![^(]*\))", clients)}
    assert shown == set(proofs())


def test_every_mark_is_parsed() -> None:
    """The parser of marks finds as many as a search in the source text."""
    found = sum(len(MARK.findall(path.read_text())) for path in ROOT.glob("tests/**/test_*.py"))
    assert len(marks()) == found > 0
