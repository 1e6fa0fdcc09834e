"""Test helpers for clients of batches: create one, read its results, and the keys of its turns."""

from typing import Any

import msgspec

from tailrace.proto.ids import Tenant, TurnId, child_id
from tailrace.proto.subjects import TurnKey
from tests.integration.conftest import Gateway


async def post_batch(gateway: Gateway, requests: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    """Creates a batch of `requests`; returns the response's JSON."""
    answer = await gateway.client.post("/v1/turn-batches", json={"requests": requests, **given})
    assert answer.status_code == 202, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


async def read_results(gateway: Gateway, batch: dict[str, Any], after: str = "") -> list[dict[str, Any]]:
    """Returns the lines of the results; `after` is a query such as `?after=17`."""
    answer = await gateway.client.get(batch["links"]["results"] + after)
    assert answer.status_code == 200, answer.text
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def key_of(tenant: Tenant, batch: dict[str, Any]) -> TurnKey:
    return TurnKey(tenant, TurnId(batch["batch"]))


def input_keys(tenant: Tenant, batch: dict[str, Any]) -> list[TurnKey]:
    """Returns the turns of the inputs, in order."""
    return [TurnKey(tenant, child_id(TurnId(batch["batch"]), number)) for number in range(batch["of"])]
