"""Many turns that wait, over a restart of every process: each goes on once."""

from pathlib import Path

import pytest

from benchmarks.parked_turns import measure


@pytest.mark.rule("R136")
@pytest.mark.timeout(240)
async def test_each_parked_turn_goes_on_once_after_a_restart_of_all_processes(tmp_path: Path) -> None:
    """Each decision comes twice, from two gateways at once."""
    result = await measure(tmp_path, 200)
    assert (result.waiting, result.continued, result.repeated) == (200, 200, 0)
