"""Which attempts may have a hedge."""

import pytest

from tailrace.generators.hedging import may_hedge


@pytest.mark.rule("R51")
@pytest.mark.parametrize(
    ("number", "backend", "is_hedged"),
    [(1, "claude", True), (1, "litellm", True), (2, "claude", False), (9, "claude", False), (1, "claude_code", False)],
)
def test_only_a_first_attempt_without_side_effects_may_be_hedged(number: int, backend: str, is_hedged: bool) -> None:
    """So a turn has one hedge at most, and two calls of Claude Code never work in one folder."""
    assert may_hedge(number, backend) == is_hedged
