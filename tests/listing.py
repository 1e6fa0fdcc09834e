"""Turns that are asked through a gateway and have ended, and lists read to their last page. It judges nothing."""

from typing import Any

from tests.integration.conftest import Gateway


async def posted(gateway: Gateway, **body: object) -> dict[str, Any]:
    """A turn that has ended, as its POST was answered."""
    answer = await gateway.client.post("/v1/turns", json={"message": "#sim words=2 rate=0", **body})
    assert answer.status_code == 202, answer.text
    await gateway.client.get(answer.json()["links"]["events"])
    accepted: dict[str, Any] = answer.json()
    return accepted


async def pages(gateway: Gateway, path: str, name: str, limit: int, **query: str) -> list[list[dict[str, Any]]]:
    """All pages, followed by their `next`."""
    found: list[list[dict[str, Any]]] = []
    after: dict[str, str] = {}
    while True:
        page = (await gateway.client.get(path, params={**query, "limit": limit, **after})).json()
        found.append(page[name])
        if page["next"] is None:
            return found
        after = {"after": page["next"]}
