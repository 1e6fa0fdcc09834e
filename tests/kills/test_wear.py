"""A short run of `make wear`: long answers outlive more generators than a turn may have fruitless attempts."""

from pathlib import Path

import pytest

from tests.kills.wear import Plan, wear


@pytest.mark.rule("R73")
@pytest.mark.timeout(150)
async def test_long_answers_are_whole_after_many_generator_deaths(tmp_path: Path) -> None:
    """With default settings, a generator is killed every second; answers take twelve seconds without any death."""
    worn = await wear(Plan(turns=6, seconds=12, kill_every_s=1, kill_for_s=14), tmp_path)
    assert worn.whole == len(worn.turns) == 6, worn.report()
    assert worn.attempts > worn.kills >= 6
