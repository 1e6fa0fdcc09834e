"""Requests of tests: a turn posted and awaited, and a list read to its last page."""

from typing import Any

from tests.integration.conftest import Gateway


async def post_until_ended(gateway: Gateway, **body: object) -> dict[str, Any]:
    """Posts a turn, waits for its end and returns the response body."""
    answer = await gateway.client.post("/v1/turns", json={"message": "#sim words=2 rate=0", **body})
    assert answer.status_code == 202, answer.text
    await gateway.client.get(answer.json()["links"]["events"])
    accepted: dict[str, Any] = answer.json()
    return accepted


async def pages(gateway: Gateway, path: str, name: str, limit: int, **query: str) -> list[list[dict[str, Any]]]:
    """Returns all pages of a list, following `next`."""
    found: list[list[dict[str, Any]]] = []
    after: dict[str, str] = {}
    while True:
        page = (await gateway.client.get(path, params={**query, "limit": limit, **after})).json()
        found.append(page[name])
        if page["next"] is None:
            return found
        after = {"after": page["next"]}
