"""Random sessions in process: no call is refused because of thinking, and no more thinking is left out than must be.

`python -m tests.sessions` plays more of them.
"""

from collections import Counter

import pytest

from tests.sessions.client import KINDS
from tests.sessions.play import play_all

SEEDS, CHUNKS = 200, 2
CHANGES = ("system", "tools", "model", "branch", "results")


@pytest.mark.rule("R140")
@pytest.mark.no_cover  # other tests say what the lines are for
@pytest.mark.timeout(240)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_session_ends_because_of_its_thinking(chunk: int) -> None:
    """Whatever changes in prompts, tools, models and history, and whatever the product adds to a prompt.

    A session whose prompt does not change keeps all its thinking. A kind of turn that never happens proves nothing.
    """
    size = SEEDS // CHUNKS
    verdicts = play_all(range(chunk * size, (chunk + 1) * size))
    assert {verdict.seed: verdict.wrong for verdict in verdicts if verdict.wrong} == {}
    counts = sum((verdict.counts for verdict in verdicts), Counter[str]())
    wanted = {*(f"with {kind}" for kind in KINDS), *(f"with change of {change}" for change in CHANGES)}
    assert {one for one in wanted if not counts[one]} == set()
    assert counts["thinking words: kept"] > 0.9 * counts["thinking words: most accepted"]
