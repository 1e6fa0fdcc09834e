"""A short storm: the promises hold while generators are killed and readers cut; `make chaos` is the long one."""

from pathlib import Path

import pytest

from tests.chaos.run import report, verdicts
from tests.chaos.storm import Storm, rage


@pytest.mark.timeout(120)
async def test_the_promises_hold_when_generators_are_killed_and_readers_cut(tmp_path: Path) -> None:
    """All five, and nothing is told or paid for twice; each fault did happen."""
    storm = Storm(seed=7, turns=40, at_once=20, seconds_between_kills=1.2, lease_s=1.5, seconds_max=60)
    print(f"seed {storm.seed}")
    seen = await rage(storm, tmp_path)
    print(*report(seen), sep="\n")
    assert {name: verdict for name, verdict in verdicts(seen).items() if not verdict.is_green} == {}
    assert len(seen.histories) == storm.turns
