"""A short run of purchases under kills; `python -m tests.kills.budgets` makes 500."""

from pathlib import Path

import msgspec
import pytest

from tests.kills.budgets import FATES, measure
from tests.kills.steers import ROLES
from tests.promises import Verdict


@pytest.mark.rule("F38")
@pytest.mark.timeout(300)
async def test_no_budget_is_held_for_turns_that_are_deleted_while_processes_are_killed(tmp_path: Path) -> None:
    result = await measure(tmp_path, 32, sessions=4, kill_every_s=1.0, seed=1)
    assert result.is_green, result.report()
    assert (result.accepted, set(result.kills), set(result.fates)) == (32, set(ROLES), set(FATES))
    assert not msgspec.structs.replace(result, held=Verdict(None)).is_green
