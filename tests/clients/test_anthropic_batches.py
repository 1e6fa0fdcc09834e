"""/v1/messages/batches with Anthropic's Python SDK: create, poll, list, cancel, delete, read the results."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse

from tailrace.features.batches.input_lines import child_key
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import TurnLog
from tests.harness.generator_in_loop import words
from tests.harness.processes import Process
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, forget

DIALECT = "files and batches"
PYTHON = "anthropic (Python)"


@pytest.fixture
async def sdk(gateway: Gateway, persistence: Process, generator: Process) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=gateway.url, api_key=KEY) as client:
        yield client


def message(name: str, line: str, **more: Any) -> Any:
    params = {"model": "claude-haiku-5-5", "max_tokens": 900, "messages": [{"role": "user", "content": line}], **more}
    return {"custom_id": name, "params": params}


async def wait_for_end(sdk: AsyncAnthropic, made: MessageBatch) -> MessageBatch:
    async def is_over() -> bool:
        return (await sdk.messages.batches.retrieve(made.id)).processing_status == "ended"

    await until(is_over)
    return await sdk.messages.batches.retrieve(made.id)


async def results(sdk: AsyncAnthropic, made: MessageBatch) -> dict[str, Any]:
    found: list[MessageBatchIndividualResponse] = [one async for one in await sdk.messages.batches.results(made.id)]
    return {one.custom_id: one.result for one in found}


@pytest.mark.proves(DIALECT, "batches", PYTHON)
async def test_a_batch_of_messages(gateway: Gateway, sdk: AsyncAnthropic, system_log: TurnLog, tenant: Tenant) -> None:
    """Messages are `succeeded`; a refused request and a failed call are `errored`. The database has the same later."""
    made = await sdk.messages.batches.create(
        requests=[
            message("one", "#sim words=3 rate=0"),
            message("streamed", "#sim words=3 rate=0", stream=True),
            message("refused", "#sim words=3 rate=0", max_tokens=-1),
            message("fails", "#sim error=invalid_request_error"),
            message("two", "#sim words=2 rate=0", system="Be brief."),
        ]
    )
    assert (made.type, made.processing_status, made.results_url) == ("message_batch", "in_progress", None)
    batch = await wait_for_end(sdk, made)
    counts = {"canceled": 0, "errored": 3, "expired": 0, "processing": 0, "succeeded": 2}
    assert batch.request_counts.to_dict() == counts
    found = await results(sdk, made)
    succeeded, errored = ("one", "two"), ("streamed", "refused", "fails")
    types = dict.fromkeys(succeeded, "succeeded") | dict.fromkeys(errored, "errored")
    assert {name: one.type for name, one in found.items()} == types
    assert [found[name].message.content[0].text for name in ("one", "two")] == [words(3), words(2)]
    assert found["refused"].error.error.type == "invalid_request_error"
    assert "max_tokens" in found["refused"].error.error.message
    turn = TurnKey(tenant, TurnId(made.id.removeprefix("msgbatch_")))
    for key in (*(child_key(turn, index) for index in range(3)), turn):
        await forget(gateway, system_log, key)
    assert await sdk.messages.batches.retrieve(made.id) == batch
    assert await results(sdk, made) == found
    assert (await sdk.messages.batches.delete(made.id)).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await sdk.messages.batches.retrieve(made.id)


@pytest.mark.proves(DIALECT, "batches", PYTHON)
async def test_the_list_of_batches(gateway: Gateway, sdk: AsyncAnthropic) -> None:
    """It has only batches of this API, and the SDK pages through them in both directions."""
    made = [await sdk.messages.batches.create(requests=[message("one", "#sim words=1 rate=0")]) for _ in range(3)]
    other = {"requests": [{"custom_id": "one", "params": {"message": "#sim words=1 rate=0"}}]}
    turn_batch = (await gateway.client.post("/v1/turn-batches", json=other)).json()["batch"]
    ids = [one.id for one in made[::-1]]
    assert [one.id async for one in sdk.messages.batches.list(limit=2)] == ids
    newer = await sdk.messages.batches.list(before_id=ids[2], limit=1)
    assert ([one.id for one in newer.data], newer.has_more) == ([ids[1]], True)
    assert [one.id async for one in sdk.messages.batches.list(before_id=ids[2], limit=1)] == [ids[1], ids[0]]
    for wrong in (
        sdk.messages.batches.retrieve(turn_batch),
        sdk.messages.batches.list(after_id="none"),
    ):
        with pytest.raises(anthropic.NotFoundError):
            await wrong
    with pytest.raises(anthropic.BadRequestError, match="exclude each other"):
        await sdk.messages.batches.list(after_id=ids[0], before_id=ids[1])


async def test_a_cancelled_batch(sdk: AsyncAnthropic) -> None:
    """It has results only after its end, and can be deleted only then."""
    requests = [message(str(n), "#sim words=500 rate=5") for n in range(2)]
    made = await sdk.messages.batches.create(requests=requests, extra_body={"parallel": 1})
    for early in (
        sdk.messages.batches.delete(made.id),
        sdk.get(f"/v1/messages/batches/{made.id}/results", cast_to=str),
    ):
        with pytest.raises(anthropic.BadRequestError, match="still processed"):
            await early
    await sdk.messages.batches.cancel(made.id)
    batch = await wait_for_end(sdk, made)
    assert (batch.request_counts.canceled, batch.cancel_initiated_at) == (2, batch.ended_at)
    assert {one.type for one in (await results(sdk, made)).values()} == {"canceled"}
