"""The turns that waited longest for their first token, or cost most, over HTTP: SQLite and PostgreSQL."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest_asyncio

from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.requests import post_until_ended
from tests.integration.conftest import Gateway

WAITS = {"quick": "wait=0", "slow": "wait=0.7", "slower": "wait=1.4"}


@pytest_asyncio.fixture
async def gateway(own: OwnSystem, own_gateway: Gateway, either_database: Path | str) -> AsyncIterator[Gateway]:
    async with own.running_generator(), Persistence(own.server.url, either_database):
        yield own_gateway


async def test_turns_are_listed_by_the_time_to_their_first_token(gateway: Gateway) -> None:
    """Of some days, of one user or outcome, and not those of another day."""
    turns = {
        name: (await post_until_ended(gateway, message=f"#sim words=1 {speed}", user=name))["turn"]
        for name, speed in WAITS.items()
    }
    names = {turn: name for name, turn in turns.items()}
    today = datetime.now(UTC).date()
    yesterday, tomorrow = today - timedelta(days=1), today + timedelta(days=1)

    async def list_slowest(**query: str) -> list[str]:
        parameters = {"order": "first_token_s", "from": yesterday.isoformat(), **query}
        page = (await gateway.client.get("/v1/turns", params=parameters)).json()
        waited = [turn["first_token_s"] for turn in page["data"]]
        assert (waited, page["next"]) == (sorted(waited, reverse=True), None)
        return [names[turn["turn"]] for turn in page["data"]]

    assert await list_slowest() == ["slower", "slow", "quick"]
    assert await list_slowest(limit="2", status="completed") == ["slower", "slow"]
    assert await list_slowest(user="slow") == ["slow"]
    assert await list_slowest(status="failed") == []
    assert await list_slowest(**{"from": tomorrow.isoformat()}) == []
    assert await list_slowest(to=yesterday.isoformat()) == []
    assert await list_slowest(to=today.isoformat()) == ["slower", "slow", "quick"]


async def test_turns_are_listed_by_their_cost(gateway: Gateway) -> None:
    """Of some days, of one user, field of metadata or outcome, and not those of another day."""
    lengths = {"short": 1, "longest": 900, "long": 300}
    turns = {}
    for name, length in lengths.items():
        body = {"message": f"#sim words={length} rate=0", "user": name, "metadata": {"kind": name[:4]}}
        turns[(await post_until_ended(gateway, **body))["turn"]] = name
    today = datetime.now(UTC).date()
    tomorrow = today + timedelta(days=1)

    async def list_costliest(**query: str) -> list[str]:
        parameters = {"order": "-cost_usd", "from": today.isoformat(), **query}
        page = (await gateway.client.get("/v1/turns", params=parameters)).json()
        costs = [turn["cost_usd"] for turn in page["data"]]
        assert (costs, page["next"]) == (sorted(costs, reverse=True), None)
        return [turns[turn["turn"]] for turn in page["data"]]

    assert await list_costliest() == ["longest", "long", "short"]
    assert await list_costliest(limit="2", status="completed") == ["longest", "long"]
    assert await list_costliest(user="long") == ["long"]
    assert await list_costliest(**{"metadata[kind]": "long", "limit": "1"}) == ["longest"]
    assert await list_costliest(**{"metadata[kind]": "long", "user": "short"}) == []
    assert await list_costliest(status="failed") == []
    assert await list_costliest(**{"from": tomorrow.isoformat()}) == []
    assert await list_costliest(**{"from": (today - timedelta(days=30)).isoformat()}) == ["longest", "long", "short"]


async def test_an_order_without_a_day_with_too_many_or_with_another_page_is_refused(gateway: Gateway) -> None:
    for query, param in (
        ({"order": "first_token_s"}, "from"),
        ({"order": "slow", "from": "2026-01-31"}, "order"),
        ({"order": "first_token_s", "from": "2026-01-31", "q": "loire"}, "order"),
        ({"order": "first_token_s", "from": "2026-01-31", "after": "x"}, "order"),
        ({"order": "first_token_s", "from": "2026-01-31", "status": "running"}, None),
        ({"order": "-cost_usd"}, "from"),
        ({"order": "cost_usd", "from": "2026-01-31"}, "order"),
        ({"order": "-cost_usd", "from": "2026-01-31", "to": "2026-01-31", "after": "x"}, "order"),
        ({"order": "-cost_usd", "from": "2026-01-01", "to": "2026-02-01"}, "from"),
    ):
        refused = await gateway.client.get("/v1/turns", params=query)
        assert (refused.status_code, refused.json()["error"].get("param")) == (400, param), refused.text
