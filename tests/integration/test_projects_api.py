"""The routes of projects and of usage."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tailrace.proto.ids import Tenant, new_id
from tests.harness.requests import pages, posted
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway, api_keys, on_shared_loop

USED = ("turns", "message_count", "usage", "cost_usd", "total_tokens", "total_cost")


def used(record: dict[str, Any]) -> dict[str, Any]:
    return {field: record[field] for field in USED}


async def get(gateway: Gateway, path: str) -> dict[str, Any]:
    answer = await gateway.client.get(path)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_created_project_is_returned_and_listed(gateway: Gateway) -> None:
    answer = await gateway.client.post("/v1/projects", json={"name": "Geography", "description": "Rivers"})
    made = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/projects/{made['id']}")
    assert made == {
        "id": made["id"],
        "name": "Geography",
        "description": "Rivers",
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
        "is_active": True,
        "sessions": 0,
        "turns": 0,
        "message_count": 0,
        "usage": {},
        "total_tokens": 0,
        "cost_usd": 0.0,
        "total_cost": 0.0,
    }
    assert await get(gateway, answer.headers["location"]) == made
    listed = {"object": "list", "data": [made], "has_more": False, "next": None}
    assert await get(gateway, "/v1/projects") == listed


async def test_a_project_has_the_totals_of_its_sessions(gateway: Gateway) -> None:
    first = await posted(gateway, project="rivers")
    await posted(gateway, session=first["session"])
    second = await posted(gateway, project="rivers")
    await posted(gateway, project="lakes")
    sessions = [await get(gateway, f"/v1/sessions/{one['session']}") for one in (first, second)]
    listed = await get(gateway, "/v1/sessions?project_id=rivers")
    assert listed["data"] == sessions[::-1]
    project = await get(gateway, "/v1/projects/rivers")
    assert (project["name"], project["sessions"], project["turns"]) == ("rivers", 2, 3)
    assert project["updated_at"] == sessions[1]["updated_at"]
    assert project["total_tokens"] == sum(one["total_tokens"] for one in sessions)
    assert project["total_cost"] == pytest.approx(sum(one["total_cost"] for one in sessions))


async def test_projects_are_listed_newest_first_in_pages(gateway: Gateway) -> None:
    made = [(await gateway.client.post("/v1/projects", json={"name": name})).json()["id"] for name in "abcde"]
    for limit in (1, 2, 5, 200):
        got = await pages(gateway, "/v1/projects", "data", limit)
        assert [one["id"] for page in got for one in page] == made[::-1]


async def test_a_duplicate_project_id_is_refused(gateway: Gateway) -> None:
    """Also if a turn has created the project; it is not changed."""
    await posted(gateway, project="rivers")
    answer = await gateway.client.post("/v1/projects", json={"name": "Rivers", "id": "rivers"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "project_exists")
    assert (await get(gateway, "/v1/projects/rivers"))["name"] == "rivers"


@on_shared_loop
@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("name", {}),
        ("name", {"name": ""}),
        ("name", {"name": "x" * 201}),
        ("description", {"name": "Rivers", "description": "x" * 10_001}),
        ("id", {"name": "Rivers", "id": "a/b"}),
        ("path", {"name": "Rivers", "path": "/tmp"}),
    ],
)
async def test_an_invalid_project_is_refused(shared_gateway: Gateway, field: str, body: dict[str, str]) -> None:
    """The message names the field."""
    answer = await shared_gateway.client.post("/v1/projects", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert f"`{field}`" in answer.json()["error"]["message"]


@on_shared_loop
@pytest.mark.parametrize("project", ["unknown", "%00", "a%20b", "*"])
async def test_an_unknown_project_is_not_found(shared_gateway: Gateway, project: str) -> None:
    answer = await shared_gateway.client.get(f"/v1/projects/{project}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "project_not_found")


async def test_usage_is_grouped_by_day_model_and_project(gateway: Gateway) -> None:
    """Turns without a project have the key null."""
    of = {
        "rivers": await posted(gateway, project="rivers", model="claude-haiku-5-5"),
        None: await posted(gateway, model="claude-sonnet-5-5"),
    }
    totals = {key: used(await get(gateway, f"/v1/sessions/{turn['session']}")) for key, turn in of.items()}
    today = datetime.now(UTC).date().isoformat()

    by_day = await get(gateway, "/v1/usage")
    assert (by_day["by"], by_day["to"], [one["key"] for one in by_day["data"]]) == ("day", today, [today])
    assert by_day["data"][0]["turns"] == 2
    assert by_day["data"][0]["total_tokens"] == sum(one["total_tokens"] for one in totals.values())

    by_model = (await get(gateway, f"/v1/usage?by=model&from={today}&to={today}"))["data"]
    assert {one["key"]: used(one) for one in by_model} == {
        "claude-haiku-5-5": totals["rivers"],
        "claude-sonnet-5-5": totals[None],
    }
    by_project = (await get(gateway, "/v1/usage?by=project"))["data"]
    assert [(one["key"], used(one)) for one in by_project] == list(reversed(totals.items()))

    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    assert (await get(gateway, f"/v1/usage?from={yesterday}&to={yesterday}"))["data"] == []


async def test_usage_is_listed_in_pages(gateway: Gateway) -> None:
    """In the order of the keys, null first."""
    for project in ("c", "a", None, "b"):
        await posted(gateway, project=project)
    for limit in (1, 3, 4):
        got = await pages(gateway, "/v1/usage", "data", limit, by="project")
        assert [one["key"] for page in got for one in page] == [None, "a", "b", "c"]


@on_shared_loop
@pytest.mark.parametrize(
    "query",
    [
        "by=hour",
        "from=2026-13-01",
        "from=1.1.2026",
        "to=0001-01-01",
        "from=2026-02-01&to=2026-01-01",
        "from=2024-01-01&to=2026-01-01",
        "from=٢٠٢٦-01-01",
        "limit=0",
    ],
)
async def test_an_invalid_usage_query_is_refused(shared_gateway: Gateway, query: str) -> None:
    answer = await shared_gateway.client.get(f"/v1/usage?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")


async def test_two_tenants_may_use_the_same_project_id(gateway: Gateway, second_tenant: Gateway) -> None:
    for there, name in ((gateway, "Mine"), (second_tenant, "Theirs")):
        made = await there.client.post("/v1/projects", json={"id": "rivers", "name": name})
        assert made.status_code == 201
    await posted(gateway, project="rivers")
    assert (await get(second_tenant, "/v1/projects/rivers"))["turns"] == 0
    assert (await second_tenant.client.delete("/v1/projects/rivers")).json()["turns"] == 0
    assert (await get(gateway, "/v1/projects/rivers"))["name"] == "Mine"


@pytest.fixture
async def second_tenant(system: System, new_gateway: NewGateway) -> Gateway:
    """A gateway of the shared system whose client has a key of another tenant."""
    return await new_gateway(system.nats_url, api_keys=api_keys(Tenant(f"tenant-{new_id()}")))
