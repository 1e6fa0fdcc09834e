"""Test helpers for batches: create one, read its results, the keys of its turns, and a system that runs them."""

from dataclasses import dataclass
from typing import Any

import msgspec

from tailrace.features.batches.message_batches_api import MessageBatchesApi
from tailrace.features.batches.runner import BatchRunner
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey, child_id
from tailrace.proto.nats import BlobStore, Tombstones, fullness
from tailrace.proto.nats.step_records import StepRecords
from tailrace.proto.ownership import ScopedKey
from tests.harness.own_system import OwnSystem
from tests.harness.service_builders import build_batch_runner
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


@dataclass
class BatchSystem(OwnSystem):
    """The test's own system with a gateway. Tests start the generators."""

    gateway: Gateway
    tenant: Tenant

    def key(self, batch: dict[str, Any]) -> TurnKey:
        return key_of(self.tenant, batch)

    def turns(self, batch: dict[str, Any]) -> list[TurnKey]:
        return input_keys(self.tenant, batch)

    async def turn(self, batch: dict[str, Any]) -> Turn:
        return await self.log.read_turn(ScopedKey.whole(self.key(batch)))

    async def batch_ended(self, batch: dict[str, Any]) -> Turn:
        """Returns the batch's turn when it has ended."""
        return await self.wait_for_end(self.key(batch))

    async def batch_killed_after(self, appends: int, *, is_before: bool = False) -> None:
        """Runs the batch in a generator that is killed after its nth append, or right before it."""
        assert await self.run_and_kill_after(appends, is_batch=True, is_before=is_before)

    def runner(self, api: MessageBatchesApi | None = None, backends: str = "claude") -> BatchRunner:
        """Returns a runner of batches, one turn at a time."""
        return build_batch_runner(
            self.log,
            BlobStore(self.connection),
            Tombstones(self.connection),
            lambda: fullness(self.connection),
            step_records=StepRecords(self.connection),
            message_batches=api,
            backends=backends,
        )
