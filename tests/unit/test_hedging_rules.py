"""Which attempts may be raced by another generator. No network."""

import pytest

from tailrace.generators.failover import Source
from tailrace.generators.hedging import is_due
from tailrace.generators.plan import MakeAttempt


@pytest.mark.rule("R51")
@pytest.mark.parametrize(
    ("number", "backend", "is_raced"),
    [(1, "claude", True), (1, "litellm", True), (2, "claude", False), (9, "claude", False), (1, "claude_code", False)],
)
def test_a_turns_first_attempt_is_hedged_unless_it_acts(number: int, backend: str, is_raced: bool) -> None:
    """So no turn has two hedges, whoever carries it; and what works in a folder works there alone."""
    assert is_due(MakeAttempt(number, "fresh"), Source(backend)) == is_raced
