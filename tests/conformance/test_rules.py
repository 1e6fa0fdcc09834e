"""A session ends as docs/CLAUDE_API.md says where its client, or Tailrace, would break a rule of requests.

The model gets the same of an odd history in each way in which a client can send it.
"""

import asyncio
from pathlib import Path

import httpx2
import pytest
from hypothesis import given, settings

from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tests.conformance import history_ways
from tests.conformance.case import read_cases
from tests.conformance.history_case import Item, read_histories
from tests.conformance.random_histories import histories, judge
from tests.conformance.rule_case import WAYS, read_rules
from tests.conformance.rule_ways import PLAYERS, play_verbatim
from tests.harness import processes
from tests.harness.system import System
from tests.sessions.play import patched
from tools.api_surface import read_table

# Histories times the ways that can express them.
CELLS_MIN = 1300
ROWS = read_table()["request_rules"].rows


def test_the_table_has_each_rule_and_each_way() -> None:
    assert set(ROWS) == set(read_rules())
    for name, case in read_rules().items():
        assert {way for way in WAYS if getattr(ROWS[name], way)} == set(case.ways)
        assert all(bool(turn.message) is not bool(turn.result) for turn in case.turns), name


async def set_cases(claude: httpx2.AsyncClient) -> None:
    """Gives the simulated Claude the answers of the cases."""
    for name in {case.case for case in read_rules().values() if case.case}:
        await claude.post(f"/_sim/cases/{name}", content=b"\n".join(read_cases()[name].lines))


@pytest.mark.parametrize("name", read_rules())
async def test_the_api_ends_the_session_as_the_case_says(name: str) -> None:
    """For a client that sends the conversation back as it is."""
    async with run_simulated_claude() as url, httpx2.AsyncClient(base_url=url, timeout=30) as claude:
        await set_cases(claude)
        assert read_rules()[name].verbatim in await play_verbatim(claude, read_rules()[name])


@pytest.mark.timeout(240)
async def test_each_session_ends_in_each_way_as_the_table_says(tmp_path: Path) -> None:
    differences = []
    quick = processes.QUICK_RETRY | {"TAILRACE_ATTEMPTS_MAX": 2}
    async with System(tmp_path, settings={"generator": quick}) as system:
        await system.start()
        async with httpx2.AsyncClient(base_url=system.claude.url, timeout=30) as claude:
            await set_cases(claude)
        for name, case in read_rules().items():
            for way in case.ways:
                ended = await PLAYERS[way](system.clients[0], case, f"{name}-{way}")
                if ended != getattr(ROWS[name], way):
                    differences.append(f"{name} {way}: {ended[:300]}")
    assert not differences, "\n".join(differences)


@pytest.mark.rule("R111")
@pytest.mark.timeout(120)
async def test_the_model_gets_the_same_of_a_history_in_each_way() -> None:
    """Except where a way has a rule of its own, which the case names with its source."""
    count, differences = await history_ways.find_differences(read_histories())
    assert not differences, "\n".join(differences)
    assert count > CELLS_MIN


@pytest.mark.no_cover
@pytest.mark.timeout(120)
# The same ones each time: `make histories` draws others.
@settings(max_examples=150, derandomize=True)
@given(histories())
def test_the_model_gets_the_same_of_a_random_history_in_each_way(items: list[Item]) -> None:
    """Or a row names the rule of the way. `make histories` tries more of them."""
    with patched():
        assert asyncio.run(judge(items)).wrong == []


def test_each_own_rule_of_a_way_is_for_a_way() -> None:
    """And has its source."""
    for name, case in read_histories().items():
        assert case.source, name
        for names, own in case.own.items():
            assert own.why, name
            for one in names.split(", "):
                assert any(way == one or way.startswith(f"{one}-") for way in history_ways.WAYS), (name, one)
