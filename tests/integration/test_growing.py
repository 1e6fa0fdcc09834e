"""Scaling up and down, and a rolling restart, under running turns. `python -m benchmarks.growing` is the long one."""

from pathlib import Path

import pytest

from benchmarks.growing import SETTINGS, ScalingRun
from tests.harness.system import System


@pytest.mark.rule("R100")
async def test_scaling_and_a_rolling_restart_break_no_promise_and_cost_no_model_call(tmp_path: Path) -> None:
    async with System(tmp_path, sync="default", settings=SETTINGS) as system:
        growing = ScalingRun(system, turns=8, line="words=40 rate=20")
        await growing.run(generators=2, gateways=2)
        assert (growing.broken, growing.refused, await growing.extra_calls()) == ([], [], 0)
        assert any(phase.resumed for phase in growing.phases)
