"""Requests of tests: turns posted and awaited, and lists read to their last page."""

from typing import Any

from tests.integration.conftest import Gateway


async def get(gateway: Gateway, path: str) -> Any:
    """Returns the body of a 200."""
    answer = await gateway.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def post(gateway: Gateway, **body: object) -> dict[str, Any]:
    """Posts a turn without waiting for its end; returns the response body."""
    answer = await gateway.client.post("/v1/turns", json=body)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def post_until_ended(gateway: Gateway, **body: object) -> dict[str, Any]:
    """Posts a turn, waits for its end and returns the response body. The default is a short answer."""
    accepted = await post(gateway, **{"message": "#sim words=2 rate=0", **body})
    await gateway.client.get(accepted["links"]["events"])
    return accepted


async def run_turn(gateway: Gateway, **body: object) -> dict[str, Any]:
    """Posts a turn and waits for its end; returns the turn."""
    accepted = await post(gateway, **body)
    await gateway.client.get(accepted["links"]["events"])
    return dict(await get(gateway, accepted["links"]["self"]))


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
