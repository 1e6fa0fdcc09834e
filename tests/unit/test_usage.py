"""What a turn has used: whole tokens, never a float."""

import pytest

from tailrace.proto.usage import Usage


@pytest.mark.rule("R23")
def test_usages_add_up_field_by_field() -> None:
    """Tokens of several calls are summed under Anthropic's names."""
    assert Usage(1, 2, 3, 4) + Usage(10, 20, 30, 40) == Usage(11, 22, 33, 44)
