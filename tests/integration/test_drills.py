"""Each drill of an on-call person: the fault is named, its alert fires, and the step of the runbook makes all whole."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailrace.deploy.monitoring.rules import ALERTS
from tests.drills import DRILLS, Lab, lab_in, run
from tests.harness.prometheus import needs_prometheus

pytestmark = [needs_prometheus, pytest.mark.timeout(300)]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab_in(tmp_path, as_shipped=False) as lab:
        yield lab


async def test_each_drill_ends_whole_with_the_step_of_the_runbook(lab: Lab) -> None:
    alerts = {alert.name: alert for alert in ALERTS}
    for name, drill in DRILLS.items():
        if drill.alert == "ClocksDiffer" and lab.clock is None:
            continue
        done = await run(drill, lab)
        expected = alerts[drill.alert]
        assert done.text.startswith(f"{expected.summary} | {expected.action} | "), name
        assert done.text.endswith(f"#{expected.section}"), name
        assert (done.wrong, done.failed if not drill.fails else 0) == (0, 0), (name, done)
