"""A short run of messages at the same moment under kills; `python -m tests.kills.lines` sends 500."""

from pathlib import Path

import pytest

from tests.kills.lines import measure


@pytest.mark.rule("R137")
@pytest.mark.timeout(300)
async def test_steers_and_queued_messages_at_the_same_moment_form_a_line(tmp_path: Path) -> None:
    result = await measure(tmp_path, 24, sessions=3, kill_every_s=2.0, seed=1)
    assert result.is_green, result.report()
    assert result.accepted == 24
