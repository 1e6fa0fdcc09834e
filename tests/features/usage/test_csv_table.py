"""Usage as CSV: no name is computed by a spreadsheet, whatever it divides lines at, and all names stay different."""

import csv
import io

import pytest

from tailrace.features.usage.csv_table import render_csv
from tailrace.features.usage.records import UsageRecord
from tailrace.proto.usage import Usage


def cells_of(*texts: str | None) -> list[str]:
    """Returns the texts of the only row."""
    record = UsageRecord(
        key=None, turns=1, message_count=1, usage=Usage(), cost_usd=0.0, total_tokens=0, total_cost=0.0, last_used=None
    )
    _, row = csv.reader(io.StringIO(render_csv(["name"] * len(texts), [(texts, record)]), newline=""))
    return row[: len(texts)]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+41 79", "'+41 79"),
        ("-x", "'-x"),
        ("@cmd", "'@cmd"),
        ("\t=1+1", "'\t'=1+1"),
        ("\N{FULLWIDTH EQUALS SIGN}1+1", "'\N{FULLWIDTH EQUALS SIGN}1+1"),
        ("x;=1+1", "x;'=1+1"),
        ("x; =1+1", "x; '=1+1"),
        ("x\n=1+1", "x\n'=1+1"),
        ("a=b, c-d; e@f", "a=b, c-d; e@f"),
        ('eve, the "2nd"', 'eve, the "2nd"'),
    ],
)
def test_the_mark_precedes_what_a_spreadsheet_would_compute(name: str, cell: str) -> None:
    assert cells_of("2026-01-31", name) == ["2026-01-31", cell]


def test_different_names_are_different_cells() -> None:
    names = (None, "-", "'-", "''-", "=x", "'=x", "a;=x", "a;'=x", "x\n=1")
    assert len(set(cells_of(*names))) == len(names)
