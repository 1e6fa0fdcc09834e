"""Every kind of fault once, and everything holds; `make chaos` is the long one."""

from pathlib import Path

import pytest

from tests.chaos.faults import KINDS
from tests.chaos.run import UNKNOWN, possible, report, verdicts
from tests.chaos.storm import Storm, rage
from tests.chaos.system import Size
from tests.checker.invariants import not_held
from tests.checker.run import load


@pytest.mark.rule("F13")
@pytest.mark.rule("F19")
@pytest.mark.timeout(300)
async def test_every_promise_and_invariant_holds_whatever_is_broken(tmp_path: Path) -> None:
    """On three nats-servers; each fault was felt."""
    size = Size(lease_s=1.5)
    storm = Storm(seed=7, minutes=0, faults=possible(list(KINDS), size), size=size)
    print(f"seed {storm.seed}")
    seen = await rage(storm, tmp_path)
    run = load(tmp_path)
    print(*report(storm, seen, run), sep="\n")
    assert not_held(verdicts(storm, seen, run), UNKNOWN) == {}
