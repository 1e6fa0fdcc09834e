"""The lines of `tailrace limits` about a budget."""

import pytest

from tailrace.deploy.cli.limits import describe_budget

UNTIL = "until 2027-01-01"
RESERVED = "$0.1000 is reserved for running turns"


@pytest.mark.parametrize(
    ("limit", "spent", "left", "line"),
    [
        (2.0, 0.4, 1.5, f"$0.4000 of $2 is spent, {RESERVED}, $1.5000 is left {UNTIL}"),
        (0.3, 0.1, 0.2, f"$0.1000 of $0.3 is spent, $0.2000 is left {UNTIL}"),
        (1.0, 1.0, 0.0, f"$1.0000 of $1 is spent, $0.0000 is left {UNTIL}: new turns are refused"),
        (1.0, 0.9, 0.0, f"$0.9000 of $1 is spent, {RESERVED}, $0.0000 is left {UNTIL}: new turns are refused"),
        (1.0, 1.2, 0.0, f"$1.2000 of $1 is spent, $0.0000 is left {UNTIL}: new turns are refused"),
    ],
)
def test_what_is_spent_reserved_and_left_are_the_whole_budget(
    limit: float, spent: float, left: float, line: str
) -> None:
    budget = {"name": "usd_month", "limit": limit, "spent": spent, "left": left, "renews_at": "2027-01-01T00:00:00Z"}
    assert describe_budget(budget) == f"usd_month: {line}"
