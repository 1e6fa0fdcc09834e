"""A short chaos run: each kind of fault once; `make chaos` is the long one."""

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, run_campaign
from tests.chaos.faults import KINDS
from tests.chaos.run import judge, possible, report
from tests.chaos.system import Size
from tests.checker.invariants import not_held
from tests.checker.run import load


@pytest.mark.rule("F13")
@pytest.mark.rule("F19")
@pytest.mark.timeout(300)
async def test_every_promise_and_invariant_holds_with_each_kind_of_fault(tmp_path: Path) -> None:
    """On three nats-servers, with the default settings; each fault had an effect."""
    size = Size()
    campaign = Campaign(seed=7, minutes=0, faults=possible(list(KINDS), size), size=size, concurrent_turns=8)
    print(f"seed {campaign.seed}; {size}")
    observed = await run_campaign(campaign, tmp_path)
    run = load(tmp_path)
    print(*report(campaign, observed, run), sep="\n")
    assert not_held(judge(campaign, observed, run)) == {}
