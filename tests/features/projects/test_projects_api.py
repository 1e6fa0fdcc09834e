"""The routes of projects."""

import pytest

from tailrace.proto.ids import Tenant, new_id
from tests.harness.requests import get, pages, post_until_ended
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway, api_keys


async def test_a_created_project_is_returned_and_listed(gateway: Gateway, tenant: Tenant) -> None:
    """In pages, newest first. The id of an existing project, also of one that a turn has created, is refused."""
    answer = await gateway.client.post("/v1/projects", json={"name": "Geography", "description": "Rivers"})
    project = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (200, f"/v1/projects/{project['id']}")
    assert project == {
        "id": project["id"],
        "name": "Geography",
        "description": "Rivers",
        "path": f"{tenant}/{project['id']}",
        "created_at": project["created_at"],
        "updated_at": project["created_at"],
        "is_active": True,
        "sessions": 0,
        "turns": 0,
        "message_count": 0,
        "usage": {},
        "total_tokens": 0,
        "cost_usd": 0.0,
        "total_cost": 0.0,
    }
    assert await get(gateway, answer.headers["location"]) == project
    one = {"page": 1, "per_page": 50, "total_items": 1, "total_pages": 1, "has_next": False, "has_prev": False}
    assert await get(gateway, "/v1/projects") == {
        "object": "list",
        "data": [project],
        "has_more": False,
        "next": None,
        "pagination": one,
    }
    await post_until_ended(gateway, project="rivers")
    duplicate = await gateway.client.post("/v1/projects", json={"name": "Rivers", "id": "rivers"})
    assert (duplicate.status_code, duplicate.json()["error"]["code"]) == (409, "project_exists")
    assert (await get(gateway, "/v1/projects/rivers"))["name"] == "rivers"
    last = (await gateway.client.post("/v1/projects", json={"name": "Lakes"})).json()
    for limit in (1, 2, 200):
        found = await pages(gateway, "/v1/projects", "data", limit)
        assert [one["id"] for page in found for one in page] == [last["id"], "rivers", project["id"]]
    second = await get(gateway, "/v1/projects?page=2&per_page=2")
    assert [one["id"] for one in second["data"]] == [project["id"]]
    pagination = {"page": 2, "per_page": 2, "total_items": 3, "total_pages": 2, "has_next": False, "has_prev": True}
    assert (second["pagination"], second["next"]) == (pagination, None)
    sessions = await get(gateway, "/v1/sessions?project_id=rivers&page=1")
    assert (sessions["pagination"]["total_items"], len(sessions["data"])) == (1, 1)
    assert (await get(gateway, "/v1/sessions?page=2"))["data"] == []
    # No project has this name: an empty list with the number of all sessions would be wrong.
    empty = await gateway.client.get("/v1/sessions?project_id=")
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "request_invalid")


async def test_a_project_has_the_totals_of_its_sessions(gateway: Gateway) -> None:
    first = await post_until_ended(gateway, project="rivers")
    await post_until_ended(gateway, session=first["session"])
    second = await post_until_ended(gateway, project="rivers")
    await post_until_ended(gateway, project="lakes")
    sessions = [await get(gateway, f"/v1/sessions/{one['session']}") for one in (first, second)]
    assert (await get(gateway, "/v1/sessions?project_id=rivers"))["data"] == sessions[::-1]
    project = await get(gateway, "/v1/projects/rivers")
    assert (project["name"], project["sessions"], project["turns"]) == ("rivers", 2, 3)
    assert project["updated_at"] == sessions[1]["updated_at"]
    assert project["total_tokens"] == sum(one["total_tokens"] for one in sessions)
    assert project["total_cost"] == pytest.approx(sum(one["total_cost"] for one in sessions))


async def test_two_tenants_may_use_the_same_project_id(
    gateway: Gateway, system: System, new_gateway: NewGateway
) -> None:
    other = await new_gateway(system.nats_url, api_keys=api_keys(Tenant(f"tenant-{new_id()}")))
    for one, name in ((gateway, "Mine"), (other, "Theirs")):
        assert (await one.client.post("/v1/projects", json={"id": "rivers", "name": name})).status_code == 200
    await post_until_ended(gateway, project="rivers")
    assert (await get(other, "/v1/projects/rivers"))["turns"] == 0
    assert (await other.client.delete("/v1/projects/rivers")).json()["turns"] == 0
    assert (await get(gateway, "/v1/projects/rivers"))["name"] == "Mine"
