"""A short chaos run: faults of each group once; `make chaos` injects all of them, for as many minutes as are given."""

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, run_campaign
from tests.chaos.faults import KINDS
from tests.chaos.run import BATCH_FAULTS, UNKNOWN_WITHOUT_BATCHES, judge, report, select_possible
from tests.chaos.system import Size
from tests.checker.invariants import find_failed
from tests.checker.run import load

# The log has one fault at a time, so each of its kinds takes some seconds. Other tests cause these alone: SIGTERM of
# each process and each server, full disks, and a leader that is frozen or steps down (test_cluster_faults.py).
LEFT_OUT = {
    *("restart-gateway", "restart-generator", "restart-persistence", "restart-node", "fill-node", "fill-database"),
    *("stop-node", "step-down"),
    *("cut-route", "deaf-route", "delay-route", "throttle-route"),
    *BATCH_FAULTS,
}


@pytest.mark.rule("F13")
@pytest.mark.rule("F19")
@pytest.mark.timeout(300)
async def test_every_promise_and_invariant_holds_with_faults_of_each_group(tmp_path: Path) -> None:
    """On three nats-servers, with the default settings; each fault had an effect."""
    size = Size()
    faults = select_possible([name for name in KINDS if name not in LEFT_OUT], size)
    campaign = Campaign(seed=7, minutes=0, faults=faults, size=size, concurrent_turns=6)
    print(f"seed {campaign.seed}; {size}")
    observed = await run_campaign(campaign, tmp_path)
    run = load(tmp_path)
    print(*report(campaign, observed, run), sep="\n")
    assert find_failed(judge(campaign, observed, run), UNKNOWN_WITHOUT_BATCHES) == {}
