"""Random sessions in process: no call is refused because of thinking, and no more thinking is left out than must be.

`python -m tests.sessions` plays more of them.
"""

from collections import Counter

import pytest

from tests.sessions import client
from tests.sessions.client import BAD_KINDS, KINDS, PROFILES, SECOND_KINDS
from tests.sessions.play import play_all

SEEDS, CHUNKS = 200, 2
CHANGES = ("system", "tools", "model", "branch", "results", "patch")
# A hundred sessions need not have each of these.
RARE = (*BAD_KINDS, *SECOND_KINDS)
SEEDS_OF_KILLS = 40


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
    wanted = {
        *(f"with {kind}" for kind in KINDS if kind not in RARE),
        *(f"with change of {change}" for change in CHANGES),
    }
    assert {one for one in wanted if not counts[one]} == set()
    assert counts["thinking words: kept"] > 0.9 * counts["thinking words: most accepted"]


@pytest.mark.rule("R140")
@pytest.mark.no_cover
@pytest.mark.timeout(120)
def test_no_answer_ends_because_of_its_own_thinking_after_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator of each turn is killed, often several times. The answer continues without what it cannot send."""
    monkeypatch.setattr(client, "PROFILES", tuple(profile._replace(kinds=("kill",)) for profile in PROFILES))
    verdicts = play_all(range(SEEDS_OF_KILLS))
    assert {verdict.seed: verdict.wrong for verdict in verdicts if verdict.wrong} == {}
    assert sum(verdict.counts["with a further attempt"] for verdict in verdicts) > SEEDS_OF_KILLS // 2
