"""A short run of steers under kills; `python -m tests.kills.steers` makes 500."""

from pathlib import Path

import msgspec
import pytest

from tests.kills.steers import ROLES, measure


@pytest.mark.rule("R137")
@pytest.mark.rule("R138")
@pytest.mark.timeout(240)
async def test_each_accepted_message_is_applied_once_whatever_process_is_killed(tmp_path: Path) -> None:
    result = await measure(tmp_path, 24, sessions=4, kill_every_s=1.0, seed=1)
    assert result.is_green, result.report()
    assert (result.accepted, result.readers) == (24, 4)
    assert set(result.kills) == set(ROLES)
    assert not msgspec.structs.replace(result, once=23).is_green
    assert not msgspec.structs.replace(result, lost=1).is_green
