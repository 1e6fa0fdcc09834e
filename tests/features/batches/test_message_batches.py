"""Batches that Anthropic's Message Batches answer: generators that are killed or frozen, and a simulated API."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest

from tailrace.features.batches import input_lines, message_batches
from tailrace.features.batches import runner as batches
from tailrace.features.batches.message_batches import WRITTEN_AT_ONCE
from tailrace.features.batches.message_batches_api import CanceledResult, Line, MessageBatch, MessageBatchesApi
from tailrace.features.batches.records import CANCEL_MESSAGE_BATCH, CancelMessageBatch
from tailrace.features.batches.runner import BATCHES_MAX
from tailrace.features.structured_output.json_schema import SchemaChecker
from tailrace.proto.blobs import Blob
from tailrace.proto.chain import START
from tailrace.proto.entries import Attempt, Entry, Event, Request
from tailrace.proto.errors import BackendError, FenceLost, Refused, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.nats import BlobStore, Counters, Rpc, Tombstones, TurnLog
from tailrace.proto.nats.step_records import StepRecords
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import GENERATORS
from tests.harness import batch_client, turn_builder
from tests.harness.batch_client import BatchSystem, read_results
from tests.harness.generator_in_loop import failure_code, read_stats, words
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, api_keys

LEASE_S = 0.2
MODEL = "claude-haiku-5-5"

Batch = dict[str, Any]
"""The response to the POST that created a batch."""


@dataclass
class MessageBatchSystem(BatchSystem):
    """A system with Anthropic's SDK for the simulated Claude."""

    api: anthropic.AsyncAnthropic

    async def create(self, requests: list[dict[str, Any]], **given: Any) -> Batch:
        return await batch_client.post_batch(self.gateway, requests, via="message_batches", **given)

    async def run(self, batch: Batch, outcome: str) -> None:
        """Runs the batch in this process, and checks how it ended."""
        assert (await self.runner(MessageBatchesApi(self.api)).run(self.key(batch))).outcome == outcome

    async def wait_for_submission(self, batch: Batch) -> str:
        """Returns Anthropic's id of the batch once the log has it."""

        async def message_batch() -> str | None:
            progress = (await self.turn(batch)).progress
            return progress.message_batch if progress is not None else None

        return await until(message_batch) or ""

    async def until_over(self, name: str) -> Any:
        """Waits until the message batch has ended."""

        async def is_over() -> Any:
            found = await self.api.messages.batches.retrieve(name)
            return found if found.processing_status == "ended" else None

        return await until(is_over)

    async def outcomes(self, batch: Batch) -> list[tuple[str, bool]]:
        """Returns the outcome of each input, and whether it has a turn."""
        return [(line["outcome"], line["turn"] is not None) for line in await read_results(self.gateway, batch)]

    async def count_answered(self) -> tuple[int, int]:
        """Returns the numbers of message batches and of calls that the simulated Claude has answered."""
        counted = await read_stats(self.claude)
        return counted["batches"], counted["calls"]

    async def delete(self, batch: Batch) -> httpx2.Response:
        return await self.gateway.client.delete(f"/v1/turns/{batch['batch']}")


@pytest.fixture
async def own(own: OwnSystem, own_gateway: Gateway, tenant: Tenant) -> AsyncIterator[MessageBatchSystem]:
    async with anthropic.AsyncAnthropic(base_url=own.claude, api_key="sk-test") as api:
        yield MessageBatchSystem(**vars(own), gateway=own_gateway, api=api, tenant=tenant)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that may have created a message batch looks for it for 0.2 seconds instead of a minute."""
    monkeypatch.setattr(message_batches, "CREATION_DELAY_MAX", timedelta(seconds=0.2))
    monkeypatch.setattr(message_batches, "POLL_WAIT_S", 0.02)
    monkeypatch.setattr(message_batches, "POLL_WAIT_MAX_S", 0.1)


def inputs(count: int, line: str = "words=2 rate=0", tag: str = "b", **params: Any) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"c{number}",
            "params": {"model": MODEL, "message": f"#sim {line} tag={tag}{number}x", **params},
        }
        for number in range(count)
    ]


def numbered_requests(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    return [one | {"custom_id": f"c{number}"} for number, one in enumerate(requests)]


UNKNOWN = "words=2 rate=0 fault=unknownx1"
"""A first input whose message batch is not found at the first request of each sort."""
NEVER = "words=2 wait=3600"
"""An input that is not answered within the test."""
QUICK_AND_NEVER = numbered_requests(*inputs(1), *inputs(1, NEVER))
FOREIGN: Any = {
    "model": MODEL,
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "#sim words=1 wait=3600"}],
}
"""The parameters of a message batch that another program creates."""


async def assert_answered_once(own: MessageBatchSystem, batch: Batch) -> None:
    """Every input has exactly one turn with one attempt, and its result."""
    turn = await own.turn(batch)
    assert (turn.outcome, turn.skipped) == ("completed", 0)
    assert turn.progress is not None
    assert (turn.progress.done, turn.progress.failed) == (batch["of"], 0)
    lines = await read_results(own.gateway, batch)
    assert [line["text"] for line in lines] == [words(2, f"b{number}x") for number in range(batch["of"])]
    for child in own.turns(batch):
        stored = [type(one.entry) for one in await own.log.read_entries(ScopedKey.whole(child))]
        assert (stored.count(Request), stored.count(Attempt)) == (1, 1)
        assert (await own.log.read_turn(ScopedKey.whole(child))).usage.output_tokens == 2


@pytest.mark.rule("R67")
async def test_a_batch_costs_half_the_price(own: MessageBatchSystem) -> None:
    """Otherwise it is like any batch: turns with ordinary logs and streams, progress, results and cost."""
    response = await own.gateway.client.post("/v1/turn-batches", json={"requests": inputs(3)})
    dear, cheap = response.json(), await own.create(inputs(3), metadata={"for": "test"})
    async with own.running_generator():
        for batch in (dear, cheap):
            assert (await own.batch_ended(batch)).outcome == "completed"
        await own.wait_until_acknowledged()
    assert await own.count_answered() == (1, 6)
    lines, dear_lines = await read_results(own.gateway, cheap), await read_results(own.gateway, dear)
    assert [(line["custom_id"], line["text"]) for line in lines] == [
        (f"c{number}", words(2, f"b{number}x")) for number in range(3)
    ]
    assert [line["usage"] for line in lines] == [line["usage"] for line in dear_lines]
    assert [2 * line["cost_usd"] for line in lines] == pytest.approx([line["cost_usd"] for line in dear_lines])
    record = (await own.gateway.client.get(cheap["links"]["self"])).json()
    assert (record["outcome"], record["done"], record["of"], record["via"]) == ("completed", 3, 3, "message_batches")
    assert record["message_batch"].startswith("msgbatch_")
    assert record["cost_usd"] == pytest.approx(sum(line["cost_usd"] for line in lines))
    for child in own.turns(cheap):
        turn = await own.log.read_turn(ScopedKey.whole(child))
        assert (turn.outcome, turn.skipped, turn.attempt, turn.backend) == ("completed", 0, 1, "message_batches")
        stream = await own.gateway.client.get(f"/v1/turns/{child.turn}/events?dialect=text")
        assert stream.text == turn.text


@pytest.mark.rule("R67")
async def test_a_cancelled_batch_keeps_the_answers_it_has(own: MessageBatchSystem) -> None:
    """They are paid for. An input that was not answered has no turn."""
    batch = await own.create(numbered_requests(*inputs(2), *inputs(3, NEVER, tag="late")))
    async with own.running_generator():
        name = await own.wait_for_submission(batch)
        record = (await own.gateway.client.post(batch["links"]["cancel"])).json()
        assert (record["outcome"], record["message_batch"]) == ("cancelled", name)
        await own.wait_until_acknowledged()
    assert (await own.api.messages.batches.retrieve(name)).request_counts.canceled == 3
    assert await own.outcomes(batch) == [("completed", True)] * 2 + [("cancelled", False)] * 3
    assert await own.count_answered() == (1, 2)


@pytest.mark.rule("R67")
@pytest.mark.parametrize("is_id_stored", [True, False])
async def test_a_batch_cancelled_while_its_generator_is_dead_does_not_run_on(
    own: MessageBatchSystem, is_id_stored: bool
) -> None:
    """The next generator cancels it by its id. Without an id in the log it is found when it has ended, and kept."""
    await own.shorten_lease(LEASE_S)
    batch = await own.create(inputs(2, NEVER if is_id_stored else "words=2 rate=0"))
    await own.batch_killed_after(2, is_before=not is_id_stored)
    (made,) = [one async for one in own.api.messages.batches.list()]
    await own.gateway.client.post(batch["links"]["cancel"])
    async with own.running_generator():
        await own.wait_until_acknowledged()
    assert [one.id async for one in own.api.messages.batches.list()] == [made.id]
    assert (await own.api.messages.batches.retrieve(made.id)).processing_status == "ended"
    assert [has_turn for _, has_turn in await own.outcomes(batch)] == [not is_id_stored] * 2


@pytest.mark.rule("R67")
async def test_each_result_is_the_end_of_its_turn(own: MessageBatchSystem) -> None:
    """Answered, failed, refused, expired, or cancelled in Anthropic's console: each with its error code."""
    requests = numbered_requests(*inputs(1), *inputs(1, "words=2 fault=500"), *inputs(1, "bad"), *inputs(1, NEVER))
    late, stopped = await own.create(requests), await own.create(requests)
    async with own.running_generator():
        await own.api.messages.batches.cancel(await own.wait_for_submission(stopped))
        assert (await own.batch_ended(stopped)).outcome == "completed"
        await own.wait_for_submission(late)
        async with httpx2.AsyncClient(base_url=own.claude, trust_env=False) as client:
            await client.post("/_sim/expire")
        assert (await own.batch_ended(late)).outcome == "completed"
    for batch, last in ((late, ("failed", "deadline_exceeded")), (stopped, ("cancelled", None))):
        lines = await read_results(own.gateway, batch)
        ends = [(line["outcome"], line["error"] and line["error"]["code"]) for line in lines]
        assert ends == [("completed", None), ("failed", "backend_failed"), ("failed", "backend_refused_request"), last]
        record = (await own.gateway.client.get(batch["links"]["self"])).json()
        assert (record["done"], record["failed"]) == (1, 3)
        progress = (await own.turn(batch)).progress
        assert progress is not None
        kinds = {"cancelled": progress.cancelled, "failed": progress.expired}
        assert kinds == {**dict.fromkeys(kinds, 0), last[0]: 1}


@pytest.mark.rule("R67")
@pytest.mark.parametrize("fault", ["429", "cut"])
async def test_a_failed_creation_is_repeated_and_creates_one_message_batch(own: MessageBatchSystem, fault: str) -> None:
    """A refused one is repeated; one that may have succeeded is looked for first."""
    batch = await own.create(inputs(3, f"words=2 rate=0 fault={fault}x1"))
    async with own.running_generator():
        assert (await own.batch_ended(batch)).outcome == "completed"
    await assert_answered_once(own, batch)
    assert await own.count_answered() == (1, 3)


@pytest.mark.rule("R67")
async def test_a_message_batch_of_another_program_is_not_adopted(own: MessageBatchSystem) -> None:
    """Of the same size and minute: when it has ended its custom ids show it, and ours is created."""
    await own.shorten_lease(LEASE_S)
    batch = await own.create(inputs(2))
    # Killed after the attempt, and before anything was created.
    await own.batch_killed_after(1)
    foreign = await own.api.messages.batches.create(
        requests=[{"custom_id": name, "params": FOREIGN} for name in ("their-1", "their-2")]
    )
    async with own.running_generator():

        async def is_taken_over() -> bool:
            return (await own.turn(batch)).attempt == 2

        await until(is_taken_over)
        assert await own.count_answered() == (1, 0)
        await own.api.messages.batches.cancel(foreign.id)
        assert (await own.batch_ended(batch)).outcome == "completed"
    await assert_answered_once(own, batch)
    assert await own.count_answered() == (2, 2)


async def test_a_batch_fails_with_a_refused_api_key_and_without_anthropics_backend(own: MessageBatchSystem) -> None:
    batch = await own.create(inputs(2))
    async with own.running_generator(anthropic_api_key="bad-key"):
        assert failure_code(await own.batch_ended(batch)) == "backend_refused_key"
        await own.wait_until_acknowledged()
    assert await own.outcomes(batch) == [("cancelled", False)] * 2
    turn = await own.runner().run(own.key(await own.create(inputs(2))))
    assert failure_code(turn) == "backend_refused_request"
    assert "claude" in str(turn.error)


async def test_a_message_batch_that_was_deleted_at_anthropic_fails_the_batch(
    own: MessageBatchSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_batches, "POLL_WAIT_S", 0.5)
    monkeypatch.setattr(message_batches, "POLL_WAIT_MAX_S", 0.5)
    monkeypatch.setattr(message_batches, "REFUSALS_MAX", 2)
    batch = await own.create(inputs(2, "words=2 wait=0.1"))
    async with own.running_generator():
        name = await own.wait_for_submission(batch)
        await own.until_over(name)
        await own.api.messages.batches.delete(name)
        turn = await own.batch_ended(batch)
    assert failure_code(turn) == "backend_refused_request"


async def test_a_batch_that_is_too_old_fails_and_keeps_its_answers(
    own: MessageBatchSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "RUN_MAX", timedelta(seconds=2))
    batch = await own.create(QUICK_AND_NEVER)
    async with own.running_generator():
        turn = await own.batch_ended(batch)
        await own.wait_until_acknowledged()
    assert failure_code(turn) == "deadline_exceeded"
    assert await own.outcomes(batch) == [("completed", True), ("cancelled", False)]


async def test_limits_are_reserved_and_settled_at_half_the_price(
    own: MessageBatchSystem, new_gateway: NewGateway
) -> None:
    """The batch holds one slot of the running turns, because no child runs here."""
    gateway = await new_gateway(own.server.url, limits_key="usd_day=5, running=2")
    limited = replace(own, gateway=gateway)
    batch = await limited.create(QUICK_AND_NEVER, parallel=8)
    request = (await own.turn(batch)).request
    assert request is not None
    assert request.batch is not None
    assert [hold.unit for hold in request.holds or ()] == ["slot"]
    async with own.running_generator():
        await limited.wait_for_submission(batch)
        await gateway.client.post(batch["links"]["cancel"])
        await own.wait_until_acknowledged()
    answered = await own.log.read_turn(ScopedKey.whole(own.turns(batch)[0]))
    assert answered.request is not None
    assert answered.end is not None
    held = next(hold for hold in answered.request.holds or () if hold.unit == "nusd")
    assert answered.end.cost_nano_usd < held.amount
    # Persistence gives back what the other input has reserved.
    counted = await Counters(own.connection).add(held.subject, 0)
    assert request.batch.holds is not None
    assert 0 < answered.end.cost_nano_usd < counted < request.batch.holds[0].amount
    # Two minutes at the latest after this note.
    assert (await StepRecords(own.connection).read(own.key(batch))).revision


@pytest.mark.parametrize(
    "wrong", [{"max_cost": 1.0}, {"betas": ["files-api-2025-04-14"]}, {"api_version": "2023-06-01"}], ids=str
)
async def test_inputs_that_a_message_batch_cannot_answer_are_refused(
    lone_gateway: Gateway, wrong: dict[str, Any]
) -> None:
    """The message names the input; an unknown `via` is refused too."""
    body = {"requests": numbered_requests(*inputs(1), *inputs(1, **wrong)), "via": "message_batches"}
    answer = await lone_gateway.client.post("/v1/turn-batches", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert "requests[1]" in answer.json()["error"]["message"]
    assert (await lone_gateway.client.post("/v1/turn-batches", json=body | {"via": "pigeon"})).status_code == 400


@pytest.mark.rule("R131")
async def test_a_message_batch_has_the_version_that_one_of_its_inputs_needs(own: MessageBatchSystem) -> None:
    """The header is the same for all inputs."""
    params = {"message": "#sim words=1 rate=0", "options": {"temperature": 0.5}}
    models = ("claude-haiku-4-5", MODEL)
    batch = await own.create(numbered_requests(*({"params": {**params, "model": model}} for model in models)))
    async with own.running_generator():
        await own.batch_ended(batch)
        async with httpx2.AsyncClient(base_url=own.claude, trust_env=False) as client:
            last = (await client.get("/_sim/last")).json()
    assert last["version"] == "2023-06-01"
    assert [request["params"].get("temperature") for request in last["body"]["requests"]] == [0.5, None]


async def test_each_input_is_sent_as_a_turn_would_be(own: MessageBatchSystem) -> None:
    """With its turn's id, long texts and cache marks, without `stream`. A schema is checked, and not corrected."""
    long, mark = "long " * 20_000, {"type": "ephemeral"}
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    params = {"model": MODEL, "system": long, "cache": "5m", "betas": ["a-beta"]}
    batch = await own.create(
        numbered_requests(
            {"params": {**params, "message": "#sim words=1 rate=0"}},
            *({"params": {**params, "message": f'#sim json={{"n":{n}}}', "schema": schema}} for n in (1, 5)),
        )
    )
    async with own.running_generator():
        await own.batch_ended(batch)
        async with httpx2.AsyncClient(base_url=own.claude, trust_env=False) as client:
            last = (await client.get("/_sim/last")).json()
    sent = last["body"]["requests"]
    assert [one["custom_id"] for one in sent] == [child.turn for child in own.turns(batch)]
    assert sent[0]["params"]["system"] == [{"type": "text", "text": long, "cache_control": mark}]
    assert "stream" not in sent[0]["params"]
    assert last["betas"] == "a-beta"
    lines = await read_results(own.gateway, batch)
    assert lines[0]["text"] == words(1)
    assert [(line["outcome"], line["schema_valid"]) for line in lines[1:]] == [
        ("completed", False),
        ("completed", True),
    ]
    assert await own.count_answered() == (1, 3)


async def test_a_message_batch_respects_the_operators_backends_of_each_model(own: MessageBatchSystem) -> None:
    """Anthropic does not receive what the operator sends to another backend only."""
    batch = await own.create(inputs(1))
    turn = await own.runner(MessageBatchesApi(own.api), f"claude; {MODEL} = bedrock").run(own.key(batch))
    assert failure_code(turn) == "backend_refused_request"
    assert MODEL in str(turn.error)
    assert await own.count_answered() == (0, 0)
    batch = await own.create(inputs(1))
    async with own.running_generator(backends=f"claude; {MODEL} = claude:claude-opus-5-5"):
        await own.batch_ended(batch)
        async with httpx2.AsyncClient(base_url=own.claude, trust_env=False) as client:
            last = (await client.get("/_sim/last")).json()
    assert last["body"]["requests"][0]["params"]["model"] == "claude-opus-5-5"


class FrozenApi(MessageBatchesApi):
    """Waits right before it creates a message batch."""

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        super().__init__(client)
        self.is_frozen = asyncio.Event()
        self.may_continue = asyncio.Event()

    async def create(self, requests: Mapping[str, bytes], headers: Mapping[str, str]) -> MessageBatch:
        self.is_frozen.set()
        await self.may_continue.wait()
        return await super().create(requests, headers)


@pytest.mark.rule("R67")
@pytest.mark.parametrize("is_ended", [False, True])
async def test_a_generator_that_creates_a_second_message_batch_cancels_it(
    own: MessageBatchSystem, is_ended: bool
) -> None:
    """It was frozen while another generator took over; the batch may have ended meanwhile."""
    batch = await own.create(inputs(2, "words=2 wait=0.8"))
    frozen = FrozenApi(own.api)
    running = asyncio.create_task(own.runner(frozen).run(own.key(batch)))
    await frozen.is_frozen.wait()
    async with own.running_generator():
        name = await own.wait_for_submission(batch)
        if is_ended:
            await own.batch_ended(batch)
        frozen.may_continue.set()
        if is_ended:
            assert (await running).outcome == "completed"
        else:
            with pytest.raises(FenceLost):
                await running
        (second,) = [one.id async for one in own.api.messages.batches.list() if one.id != name]
        await own.batch_ended(batch)
        assert (await own.until_over(second)).request_counts.canceled == 2
    await assert_answered_once(own, batch)
    assert (await own.count_answered())[1] == 2


async def test_a_deleted_batch_cancels_the_message_batch_that_was_being_created(own: MessageBatchSystem) -> None:
    """The deletion did not know its id."""
    batch = await own.create(inputs(2, NEVER))
    frozen = FrozenApi(own.api)
    running = asyncio.create_task(own.runner(frozen).run(own.key(batch)))
    await frozen.is_frozen.wait()
    await own.log.purge(own.key(batch))
    frozen.may_continue.set()
    with pytest.raises(TurnUnknown):
        await running
    (made,) = [one async for one in own.api.messages.batches.list()]
    assert made.cancel_initiated_at is not None


@pytest.mark.rule("R67")
async def test_a_generator_that_stops_while_it_creates_a_message_batch_stores_its_id(own: MessageBatchSystem) -> None:
    """The next generator would search for it until it has ended, and could not cancel it."""
    batch = await own.create(inputs(2, NEVER))
    frozen = FrozenApi(own.api)
    running = asyncio.create_task(own.runner(frozen).run(own.key(batch)))
    await frozen.is_frozen.wait()
    running.cancel()
    await asyncio.sleep(0)
    frozen.may_continue.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    (made,) = [one.id async for one in own.api.messages.batches.list()]
    progress = (await own.log.read_turn(ScopedKey.whole(own.key(batch)))).progress
    assert progress is not None
    assert progress.message_batch == made


class RefusingApi(FrozenApi):
    """Refuses to create a message batch."""

    async def create(self, *_: object) -> MessageBatch:
        self.is_frozen.set()
        await self.may_continue.wait()
        raise BackendError("backend_refused_key", "the API key was revoked")


@pytest.mark.rule("R67")
async def test_a_refused_generator_does_not_end_a_batch_that_another_generator_has(own: MessageBatchSystem) -> None:
    """It was frozen while the other one took over, and only then was its request refused."""
    batch = await own.create(inputs(2, "words=2 wait=0.8"))
    refusing = RefusingApi(own.api)
    running = asyncio.create_task(own.runner(refusing).run(own.key(batch)))
    await refusing.is_frozen.wait()
    async with own.running_generator():
        await own.wait_for_submission(batch)
        refusing.may_continue.set()
        with pytest.raises(FenceLost):
            await running
        assert (await own.batch_ended(batch)).outcome == "completed"


class ForgetfulApi(MessageBatchesApi):
    """Its results break off after the first line, then end early without an error, and never contain the last line."""

    reads = 0

    async def results(self, name: str) -> AsyncGenerator[Line, None]:
        self.reads += 1
        lines = [line async for line in super().results(name)]
        yield lines[0]
        if self.reads == 1:
            raise BackendError("backend_broken", "cut")
        for line in [Line("unknown", CanceledResult()), *lines[1 : 5 if self.reads == 2 else -1]]:
            yield line


async def test_results_that_break_off_or_end_early_are_read_again(own: MessageBatchSystem) -> None:
    """Answers that are missing are paid for. An unknown custom id is ignored; an input without a result has failed."""
    batch = await own.create(inputs(10))
    api = ForgetfulApi(own.api)
    turn = await own.runner(api).run(own.key(batch))
    assert (turn.outcome, api.reads) == ("completed", 1 + message_batches.RESULT_READS_MAX)
    lines = await read_results(own.gateway, batch)
    # The simulated API returns the last input first.
    assert [line["outcome"] for line in lines] == ["failed", *["completed"] * 9]
    assert lines[0]["error"]["code"] == "backend_broken"


async def test_a_message_batch_that_anthropic_does_not_know_for_a_moment_is_not_lost(own: MessageBatchSystem) -> None:
    """Neither its answers, which are paid for, nor its cancellation."""
    batch = await own.create(inputs(2, UNKNOWN))
    await own.run(batch, "completed")
    await assert_answered_once(own, batch)
    batch = await own.create(numbered_requests(*inputs(1, UNKNOWN), *inputs(1, NEVER)))
    running = asyncio.create_task(own.run(batch, "cancelled"))
    await own.wait_for_submission(batch)
    await own.gateway.client.post(batch["links"]["cancel"])
    await asyncio.wait_for(running, 10)
    assert await own.outcomes(batch) == [("completed", True), ("cancelled", False)]
    # Retrieved and read twice each, and cancelled once.
    stats: Any = await read_stats(own.claude)
    assert stats["by_fault"] == {"unknown": 5}


@pytest.mark.rule("R67")
@pytest.mark.rule("F33")
@pytest.mark.parametrize(
    "line",
    [UNKNOWN, "words=2 wait=2 fault=unlisted@1", "words=2 rate=0 fault=brokenx3"],
    ids=["unknown results", "not in a later list", "results without a line"],
)
async def test_a_search_does_not_lose_a_message_batch_that_anthropic_does_not_show_for_a_moment(
    own: MessageBatchSystem, line: str
) -> None:
    """A second message batch would be paid for, too. A search may last for hours, with a list every 30 seconds."""
    batch = await own.create(inputs(2, line))
    await own.batch_killed_after(2, is_before=True)
    await own.run(batch, "completed")
    assert (await own.turn(batch)).outcome == "completed"
    assert await own.outcomes(batch) == [("completed", True)] * 2
    assert await own.count_answered() == (1, 2)


@pytest.mark.rule("R67")
async def test_a_batch_is_not_deleted_while_no_generator_can_cancel_it(own: MessageBatchSystem, tmp_path: Path) -> None:
    """After the deletion its id at Anthropic would be unknown."""
    batch = await own.create(inputs(2, NEVER))
    key = own.key(batch)
    async with Persistence(own.server.url, tmp_path / "tailrace.db"):
        await own.batch_killed_after(2)
        name = await own.wait_for_submission(batch)
        refused = await own.delete(batch)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "generators_unavailable")
        assert await own.log.has_turn(ScopedKey.whole(key))
        async with own.running_generator():
            deleted = await own.delete(batch)
    assert deleted.status_code == 200, deleted.text
    assert not await own.log.has_turn(ScopedKey.whole(key))
    assert (await own.api.messages.batches.retrieve(name)).cancel_initiated_at is not None


@pytest.mark.rule("R67")
async def test_deleting_a_batch_does_not_release_its_reserved_cost(
    own: MessageBatchSystem, new_gateway: NewGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anthropic may have answered it. Creating and deleting batches in a loop would otherwise spend without limit."""
    is_deleted, stop = asyncio.Event(), message_batches.MessageBatchSubmitter.stop

    async def stop_when_deleted(*given: Any) -> bool:
        # A stop before the deletion would write the answers, and their cost would replace the reservation.
        await is_deleted.wait()
        return await stop(*given)

    monkeypatch.setattr(message_batches.MessageBatchSubmitter, "stop", stop_when_deleted)
    gateway = await new_gateway(own.server.url, limits_key="usd_day=5")
    limited = replace(own, gateway=gateway)
    batch = await limited.create(numbered_requests(*inputs(2), *inputs(1, NEVER)))
    request = (await own.turn(batch)).request
    assert request is not None
    assert request.batch is not None
    blob = Blob(request.batch.sha256, request.batch.bytes)
    lines = input_lines.split_inputs(await BlobStore(own.connection).read(own.tenant, blob))
    holds = [one for line in lines for one in input_lines.decode_input(line).holds or ()]
    hold = holds[0]
    counters = Counters(own.connection)
    held = await counters.add(hold.subject, 0)
    assert held == sum(one.amount for one in holds)
    async with Persistence(own.server.url, tmp_path / "tailrace.db"), own.running_generator():
        name = await limited.wait_for_submission(batch)
        deleted = await limited.delete(batch)
        assert deleted.status_code == 200, deleted.text
        is_deleted.set()
        assert (await own.until_over(name)).request_counts.succeeded == 2
        await own.wait_until_acknowledged()
    assert await counters.add(hold.subject, 0) == held
    assert not (await StepRecords(own.connection).read(own.key(batch))).revision


@pytest.mark.rule("R140")
async def test_the_clients_own_conversation_is_sent_unchanged_in_a_message_batch(own: MessageBatchSystem) -> None:
    """With the betas that it needs. The API leaves out thinking of another prompt, which it would refuse in a call."""
    question = {"role": "user", "content": "#sim words=1 thinking=2 rate=0"}
    answered = await own.api.messages.create(model=MODEL, max_tokens=9, messages=[question])  # type: ignore[list-item]
    content = [block.model_dump(exclude_none=True) for block in answered.content]
    assert content[0]["type"] == "thinking"
    cleared = {"role": "system", "content": "Hurry.", "clear_at": "next_user_message"}
    messages = [question, cleared, {"role": "assistant", "content": content}, question]
    params = {"model": MODEL, "system": "Be brief.", "messages": messages}
    batch = await own.create([{"custom_id": "a", "params": params}])
    await own.run(batch, "completed")
    async with httpx2.AsyncClient(base_url=own.claude, trust_env=False) as claude:
        created = (await claude.get("/_sim/last")).json()
    assert created["body"]["requests"][0]["params"]["messages"] == messages
    assert created["betas"] == "mid-conversation-system-clear-at-2026-08-21"
    assert await own.outcomes(batch) == [("completed", True)]


@pytest.mark.rule("R36")
async def test_a_generator_cancels_a_message_batch_on_request(
    own: MessageBatchSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that Anthropic does not know for a moment. One that has ended, or does not exist, is left alone.

    With a slow API there are fewer tries: the gateway would not wait for more.
    """
    monkeypatch.setattr("tailrace.features.batches.generator.CANCEL_WAITS_S", (0.01, 3600))
    params = FOREIGN | {"messages": [{"role": "user", "content": "#sim words=1 wait=3600 fault=unknownx1"}]}
    made = await own.api.messages.batches.create(requests=[{"custom_id": "a", "params": params}])
    rpc = Rpc(own.connection)

    async def is_answered(name: str) -> bool:
        body = msgspec.json.encode(CancelMessageBatch(name))
        with suppress(Refused):
            answer = await rpc.request(own.tenant, CANCEL_MESSAGE_BATCH, body, timeout_s=5, role=GENERATORS)
            return answer == b""
        return False

    async with own.running_generator():
        await until(lambda: is_answered(made.id))
        assert (await own.api.messages.batches.retrieve(made.id)).cancel_initiated_at is not None
        assert await is_answered("msgbatch_none")
        assert await is_answered(made.id)


@pytest.mark.rule("R67")
@pytest.mark.parametrize("is_only_marked", [False, True])
async def test_a_deleted_turn_of_a_batch_is_not_written_again(own: MessageBatchSystem, is_only_marked: bool) -> None:
    """A generator that takes the batch over reads all results once more. The erasure of a user only marks an input."""
    await own.shorten_lease(LEASE_S)
    batch = await own.create(inputs(1))
    (child,) = own.turns(batch)
    # The attempt, the id, and the eight entries of the only turn.
    await own.batch_killed_after(10)
    assert (await own.log.read_turn(ScopedKey.whole(child))).outcome == "completed"
    await own.log.purge(child)
    tombstones = Tombstones(own.connection)
    await (tombstones.mark_deletion(child) if is_only_marked else tombstones.put([child]))
    async with own.running_generator():
        turn = await own.batch_ended(batch)
    assert not await own.log.has_turn(ScopedKey.whole(child))
    assert turn.progress is not None
    assert (turn.outcome, turn.progress.done, turn.progress.failed) == ("completed", 0, 1)


class ErasingApi(MessageBatchesApi):
    """While it is overloaded, the users of some inputs are erased. `sent`: the inputs of each request to create."""

    def __init__(self, own: MessageBatchSystem, erased: Sequence[TurnKey]) -> None:
        super().__init__(own.api)
        self._tombstones = Tombstones(own.connection)
        self._erased = erased
        self.sent: list[list[str]] = []

    async def create(self, requests: Mapping[str, bytes], headers: Mapping[str, str]) -> MessageBatch:
        self.sent.append(list(requests))
        if len(self.sent) > 1:
            return await super().create(requests, headers)
        for child in self._erased:
            await self._tombstones.mark_deletion(child)
        raise BackendError("backend_overloaded", "try again")


@pytest.mark.rule("R91")
@pytest.mark.parametrize("erased", [1, 2])
async def test_the_inputs_of_an_erased_user_are_not_sent(own: MessageBatchSystem, erased: int) -> None:
    """They are counted as failed. If all are erased, there is no message batch."""
    batch = await own.create(inputs(2))
    first, second = own.turns(batch)
    api = ErasingApi(own, [first, second][:erased])
    await own.runner(api).run(own.key(batch))
    turn = await own.turn(batch)
    assert turn.progress is not None
    assert (turn.outcome, turn.progress.done, turn.progress.failed) == ("completed", 2 - erased, erased)
    assert api.sent == [[first.turn, second.turn], *([[second.turn]] if erased == 1 else [])]
    assert await own.count_answered() == (2 - erased, 2 - erased)


@pytest.mark.rule("R67")
async def test_a_search_finds_a_message_batch_without_the_inputs_of_an_erased_user(own: MessageBatchSystem) -> None:
    batch = await own.create(inputs(2))
    await Tombstones(own.connection).mark_deletion(own.turns(batch)[0])
    await own.batch_killed_after(2, is_before=True)
    await own.run(batch, "completed")
    assert await own.count_answered() == (1, 1)


@pytest.mark.rule("R91")
async def test_a_result_is_not_written_whose_user_is_erased_meanwhile(
    own: MessageBatchSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the generator looks whether the turn has been written already."""
    batch = await own.create(inputs(1))
    (child,) = own.turns(batch)
    read_turn = TurnLog.read_turn

    async def read_while_erased(log: TurnLog, key: ScopedKey, *given: Any) -> Turn:
        if key.plain == child:
            await Tombstones(own.connection).mark_deletion(child)
        return await read_turn(log, key, *given)

    monkeypatch.setattr(TurnLog, "read_turn", read_while_erased)
    await own.run(batch, "completed")
    assert not await own.log.has_turn(ScopedKey.whole(child))


@pytest.mark.rule("R91")
async def test_a_cancelled_message_batch_stores_no_answers_to_an_erased_user(
    own: MessageBatchSystem, tmp_path: Path
) -> None:
    """Its results come after the end of its batch, which is another user's. The other answers are stored."""
    users = ["ada", "bob", "ada"]
    batch = await own.create(
        numbered_requests(*(inputs(1, user=user)[0] for user in users), *inputs(1, NEVER, user="bob"))
    )
    async with Persistence(own.server.url, tmp_path / "tailrace.db"):
        await own.batch_killed_after(2)
        await own.wait_for_submission(batch)
        await own.gateway.client.post(batch["links"]["cancel"])
        erased = await own.gateway.client.delete("/v1/users?user=ada")
        assert erased.status_code == 200, erased.text
        async with own.running_generator():
            await own.wait_until_acknowledged()
        assert [is_turn for _, is_turn in await own.outcomes(batch)] == [False, True, False, False]


@pytest.mark.rule("R64")
async def test_a_message_batch_that_breaks_its_generators_fails(
    own: MessageBatchSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its results cannot be written when it is stopped."""
    batch = await own.create(inputs(1))

    def break_off(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(message_batches, "to_events", break_off)
    async with own.running_generator(attempts_max=1):
        assert failure_code(await own.batch_ended(batch)) == "internal"
        await own.wait_until_acknowledged()
    assert await own.count_answered() == (1, 1)


@pytest.mark.rule("R67")
@pytest.mark.parametrize("entries", [1, 2, 3])
async def test_a_turn_that_an_older_version_has_written_half_is_answered(own: MessageBatchSystem, entries: int) -> None:
    """The older version wrote other bytes, so its entries are not those that this version writes."""
    await own.shorten_lease(LEASE_S)
    batch = await own.create(inputs(2))
    (child, _) = own.turns(batch)
    await own.batch_killed_after(2)
    chain = START
    older: list[Entry] = [
        turn_builder.request(parent=TurnId(batch["batch"]), session=SessionId(batch["session"]), via="message_batches"),
        Attempt(prev=START.last, attempt=1, generator="older", backend="message_batches", mode="fresh"),
        Event(prev=START.last, attempt=1, event=msgspec.Raw(b'{"type":"message_start","message":{"id":"older"}}')),
    ]
    for entry in older[:entries]:
        chain = await own.log.append(child, chain, msgspec.structs.replace(entry, prev=chain.last))
    async with own.running_generator():
        turn = await own.batch_ended(batch)
        await own.wait_until_acknowledged()
    written = await own.log.read_turn(ScopedKey.whole(child))
    assert (written.outcome, written.text) == ("completed", words(2, "b0x"))
    assert turn.progress is not None
    assert (turn.outcome, turn.progress.done, turn.progress.failed) == ("completed", 2, 0)


@pytest.mark.rule("R67")
async def test_a_turn_that_is_deleted_while_it_is_written_does_not_stop_its_batch(
    own: MessageBatchSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is being checked against its schema. The other results are written, and the batch ends."""
    schema = {"type": "object"}
    batch = await own.create(numbered_requests(*inputs(1, 'json={"n":1}', schema=schema), *inputs(1)))
    checked, other = own.turns(batch)
    find_mismatch = SchemaChecker.find_mismatch

    async def find_mismatch_of_deleted(*given: Any) -> str | None:
        await own.log.purge(checked)
        await Tombstones(own.connection).put([checked])
        return await find_mismatch(*given)

    monkeypatch.setattr(SchemaChecker, "find_mismatch", find_mismatch_of_deleted)
    async with own.running_generator():
        turn = await own.batch_ended(batch)
        await own.wait_until_acknowledged()
    assert turn.progress is not None
    assert (turn.outcome, turn.progress.done, turn.progress.failed) == ("completed", 1, 1)
    assert (await own.log.read_turn(ScopedKey.whole(other))).outcome == "completed"
    assert not await own.log.has_turn(ScopedKey.whole(checked))


@pytest.mark.rule("R67")
async def test_a_cancelled_batch_that_is_deleted_while_its_results_are_written_gets_no_more_turns(
    own: MessageBatchSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Persistence would purge them as orphans, without overwriting their text."""
    await own.shorten_lease(LEASE_S)
    batch = await own.create(inputs(3 * WRITTEN_AT_ONCE))
    await own.batch_killed_after(2)
    await own.until_over(await own.wait_for_submission(batch))
    await own.gateway.client.post(batch["links"]["cancel"])
    read_turn, children = TurnLog.read_turn, own.turns(batch)

    async def read_while_deleted(log: TurnLog, key: ScopedKey, *given: Any) -> Turn:
        if key.plain in children:
            await own.log.purge(own.key(batch))
        return await read_turn(log, key, *given)

    monkeypatch.setattr(TurnLog, "read_turn", read_while_deleted)
    async with own.running_generator():
        await own.wait_until_acknowledged()
    assert len(await own.log.find_stored(own.turns(batch))) <= WRITTEN_AT_ONCE


async def test_waiting_batches_of_one_tenant_do_not_delay_another_tenant(
    own: MessageBatchSystem, new_gateway: NewGateway
) -> None:
    """A generator carries BATCHES_MAX batches, and at most half of them of one tenant."""
    for number in range(BATCHES_MAX):
        await own.create(inputs(1, NEVER, tag=f"s{number}"))
    tenant = Tenant("another")
    gateway = await new_gateway(own.server.url, api_keys=api_keys(tenant))
    other = replace(own, gateway=gateway, tenant=tenant)
    async with own.running_generator():
        batch = await other.create(inputs(1))
        assert (await other.batch_ended(batch)).outcome == "completed"
