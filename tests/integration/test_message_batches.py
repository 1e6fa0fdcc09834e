"""Batches that Anthropic's Message Batches answer: a gateway, generators that are killed, a log, a simulated API."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.turns.cancel import cancel
from tailrace.generators.backends.message_batches_api import Canceled, Line, MessageBatch, MessageBatchesApi
from tailrace.generators.batches import message_batches
from tailrace.generators.batches import runner as batches
from tailrace.generators.batches.runner import BATCHES_MAX, BatchRunner
from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto import batch as stored_inputs
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import Attempt, Request
from tailrace.proto.errors import BackendError, FenceLost, Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.model_records import CANCEL_MESSAGE_BATCH, CancelMessageBatch
from tailrace.proto.nats import BlobStore, Connection, Counters, Rpc, Tombstones, TurnLog, fullness
from tailrace.proto.runtime.byte_semaphore import ByteSemaphore
from tailrace.proto.subjects import GENERATORS, STREAM, TurnKey
from tests.harness import batch_client, processes
from tests.harness.batch_client import children, key_of, results
from tests.harness.generator_in_loop import ask, ended, is_acknowledged, shorten_lease, stats, words, working
from tests.harness.killable_generator import killed_after
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, api_keys

LEASE_S = 0.2
MODEL = "claude-haiku-5-5"


@pytest.fixture
async def api(own_claude: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The real SDK, at the same workspace."""
    async with anthropic.AsyncAnthropic(base_url=own_claude, api_key="sk-test", max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not sure that nothing was made looks for a moment, and not for a minute."""
    monkeypatch.setattr(message_batches, "SETTLED", timedelta(seconds=0.2))
    monkeypatch.setattr(message_batches, "LOOK_S", 0.02)
    monkeypatch.setattr(message_batches, "LOOK_MAX_S", 0.1)


def inputs(count: int, line: str = "words=2 rate=0", tag: str = "b", **params: Any) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"c{number}",
            "params": {"model": MODEL, "message": f"#sim {line} tag={tag}{number}x", **params},
        }
        for number in range(count)
    ]


async def asked(gateway: Gateway, requests: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    return await batch_client.asked(gateway, requests, via="message_batches", **given)


async def submitted(log: TurnLog, key: TurnKey) -> str:
    """The id under which Anthropic has the batch, once it is written down."""

    async def is_told() -> str | None:
        told = (await log.turn(key)).progress
        return told.message_batch if told is not None else None

    return await until(is_told) or ""


@pytest.mark.rule("R67")
async def test_a_batch_is_answered_for_half_the_price(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """The same shape as any batch: turns of its own, with ordinary logs, progress, results and cost."""
    dear = (await own_gateway.client.post("/v1/batches", json={"requests": inputs(20)})).json()
    cheap = await asked(own_gateway, inputs(20), metadata={"for": "test"})
    async with working(own_server.url, own_claude):
        for batch in (dear, cheap):
            assert (await ended(own_log, key_of(tenant, batch))).outcome == "completed"
        await until(lambda: is_acknowledged(own_connection))
    assert (await stats(own_claude))["batches"] == 1
    told, paid = await results(own_gateway, cheap), await results(own_gateway, dear)
    assert [line["text"] for line in told] == [words(2, f"b{number}x") for number in range(20)]
    assert [line["custom_id"] for line in told] == [f"c{number}" for number in range(20)]
    assert [line["usage"] for line in told] == [line["usage"] for line in paid]
    assert [2 * line["cost_usd"] for line in told] == pytest.approx([line["cost_usd"] for line in paid])
    record = (await own_gateway.client.get(cheap["links"]["self"])).json()
    assert (record["outcome"], record["done"], record["of"], record["via"]) == ("completed", 20, 20, "message_batches")
    assert record["message_batch"].startswith("msgbatch_")
    assert record["cost_usd"] == pytest.approx(sum(line["cost_usd"] for line in told))
    for child in children(tenant, cheap):
        turn = await own_log.turn(child)
        assert (turn.outcome, turn.skipped, turn.attempt, turn.backend) == ("completed", 0, 1, "message_batches")
        stream = (await own_gateway.client.get(f"/v1/turns/{child.turn}/events?dialect=text")).text
        assert stream == turn.text


async def judged(gateway: Gateway, log: TurnLog, tenant: Tenant, batch: dict[str, Any]) -> None:
    """Every input is exactly one turn, and all of it is told."""
    turn = await log.turn(key_of(tenant, batch))
    assert (turn.outcome, turn.skipped) == ("completed", 0)
    assert turn.progress is not None
    assert (turn.progress.done, turn.progress.failed) == (batch["of"], 0)
    lines = await results(gateway, batch)
    assert [line["text"] for line in lines] == [words(2, f"b{number}x") for number in range(batch["of"])]
    for child in children(tenant, batch):
        stored = await log.replay(child)
        assert [isinstance(one.entry, Request) for one in stored].count(True) == 1
        assert [isinstance(one.entry, Attempt) for one in stored].count(True) == 1
        assert (await log.turn(child)).usage.output_tokens == 2


@pytest.mark.rule("R67")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_before", [False, True])
async def test_killed_at_any_entry_a_batch_is_asked_and_paid_for_once(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
    is_before: bool,
) -> None:
    """Before and after each entry that its generator stores: one message batch, and each turn's entries once."""
    await shorten_lease(own_connection, LEASE_S)
    for appends in range(1, 99):
        before = await stats(own_claude)
        batch = await asked(own_gateway, inputs(2))
        is_harmed = await killed_after(appends, own_server.url, own_claude, is_batch=True, is_before=is_before)
        async with working(own_server.url, own_claude):
            await ended(own_log, key_of(tenant, batch))
            await until(lambda: is_acknowledged(own_connection))
        await judged(own_gateway, own_log, tenant, batch)
        after = await stats(own_claude)
        assert (after["batches"] - before["batches"], after["calls"] - before["calls"]) == (1, 2), appends
        if not is_harmed:
            break
    assert appends > 15


@pytest.mark.rule("R67")
async def test_of_what_is_cancelled_the_answers_are_kept(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
) -> None:
    """They are paid for. What Anthropic had not come to was never asked, and is nobody's turn."""
    requests = [*inputs(2), *inputs(3, "words=2 wait=3600", tag="late")]
    for number, one in enumerate(requests):
        one["custom_id"] = f"c{number}"
    batch = await asked(own_gateway, requests)
    async with working(own_server.url, own_claude):
        name = await submitted(own_log, key_of(tenant, batch))
        record = (await own_gateway.client.post(batch["links"]["cancel"])).json()
        assert (record["outcome"], record["message_batch"]) == ("cancelled", name)
        await until(lambda: is_acknowledged(own_connection))
    assert (await api.messages.batches.retrieve(name)).request_counts.canceled == 3
    lines = await results(own_gateway, batch)
    assert [line["outcome"] for line in lines] == ["completed", "completed", "cancelled", "cancelled", "cancelled"]
    assert [line["turn"] is None for line in lines] == [False, False, True, True, True]
    assert (await stats(own_claude))["calls"] == 2


@pytest.mark.rule("R67")
@pytest.mark.parametrize("is_named", [True, False])
async def test_cancelled_while_its_generator_is_dead_nothing_runs_on(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
    is_named: bool,
) -> None:
    """Whoever is given it next cancels it by its id. One whose id nobody has is known when it has ended, and kept."""
    await shorten_lease(own_connection, LEASE_S)
    line = "words=2 wait=3600" if is_named else "words=2 rate=0"
    batch = await asked(own_gateway, inputs(2, line))
    assert await killed_after(2, own_server.url, own_claude, is_batch=True, is_before=not is_named)
    assert len([one async for one in api.messages.batches.list()]) == 1
    await own_gateway.client.post(batch["links"]["cancel"])
    async with working(own_server.url, own_claude):
        await until(lambda: is_acknowledged(own_connection))
    (made,) = [one async for one in api.messages.batches.list()]
    assert made.processing_status == "ended"
    assert [line["turn"] is None for line in await results(own_gateway, batch)] == [is_named, is_named]


@pytest.mark.rule("R67")
async def test_each_result_is_its_turns_end(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_claude: str,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
) -> None:
    """Answered, refused, failed, too late, or cancelled in Anthropic's console: each with its code, and told."""
    requests = [*inputs(1), *inputs(1, "words=2 fault=500"), *inputs(1, "bad"), *inputs(1, "words=2 wait=3600")]
    for number, one in enumerate(requests):
        one["custom_id"] = f"c{number}"
    late, stopped = await asked(own_gateway, requests), await asked(own_gateway, requests)
    async with working(own_server.url, own_claude):
        await api.messages.batches.cancel(await submitted(own_log, key_of(tenant, stopped)))
        assert (await ended(own_log, key_of(tenant, stopped))).outcome == "completed"
        await submitted(own_log, key_of(tenant, late))
        async with httpx2.AsyncClient(base_url=own_claude, trust_env=False) as client:
            await client.post("/_sim/expire")
        assert (await ended(own_log, key_of(tenant, late))).outcome == "completed"
    for batch, last in ((late, ("failed", "deadline_exceeded")), (stopped, ("cancelled", None))):
        lines = await results(own_gateway, batch)
        told = [(line["outcome"], line["error"] and line["error"]["code"]) for line in lines]
        assert told == [("completed", None), ("failed", "backend_failed"), ("failed", "backend_refused_request"), last]
        record = (await own_gateway.client.get(batch["links"]["self"])).json()
        assert (record["done"], record["failed"]) == (1, 3)


@pytest.mark.rule("R67")
@pytest.mark.parametrize("fault", ["429", "529", "cut"])
async def test_a_creation_that_fails_is_made_once_in_the_end(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, own_claude: str, tenant: Tenant, fault: str
) -> None:
    """What was refused is made again; what may have been made is looked for first."""
    batch = await asked(own_gateway, inputs(3, f"words=2 rate=0 fault={fault}x1", tag="b"))
    async with working(own_server.url, own_claude):
        assert (await ended(own_log, key_of(tenant, batch))).outcome == "completed"
    await judged(own_gateway, own_log, tenant, batch)
    after = await stats(own_claude)
    assert (after["batches"], after["calls"]) == (1, 3)


@pytest.mark.rule("R67")
async def test_a_batch_of_somebody_elses_is_not_taken_for_ours(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
) -> None:
    """Of the same size, from the same minute: once it has ended it is seen not to be ours, and ours is made."""
    await shorten_lease(own_connection, LEASE_S)
    batch = await asked(own_gateway, inputs(2))
    # Killed after the attempt, and before anything was made.
    assert await killed_after(1, own_server.url, own_claude, is_batch=True)
    params: Any = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "#sim words=1 wait=3600"}]}
    theirs = await api.messages.batches.create(
        requests=[{"custom_id": name, "params": params} for name in ("their-1", "their-2")]
    )
    key = key_of(tenant, batch)
    async with working(own_server.url, own_claude):

        async def is_taken_over() -> bool:
            return (await own_log.turn(key)).attempt == 2

        await until(is_taken_over)
        assert (await stats(own_claude))["batches"] == 1
        await api.messages.batches.cancel(theirs.id)
        assert (await ended(own_log, key)).outcome == "completed"
    await judged(own_gateway, own_log, tenant, batch)
    assert (await stats(own_claude))["batches"] == 2


async def test_a_key_that_is_refused_fails_the_batch(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """And it is not waited for what never was."""
    batch = await asked(own_gateway, inputs(2))
    async with working(own_server.url, own_claude, anthropic_api_key="bad-key"):
        turn = await ended(own_log, key_of(tenant, batch))
        await until(lambda: is_acknowledged(own_connection))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code) == ("failed", "backend_refused_key")
    assert [line["turn"] for line in await results(own_gateway, batch)] == [None, None]


async def test_limits_are_held_and_settled_at_half_the_price(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tenant: Tenant,
    own_claude: str,
) -> None:
    """Also for what was never answered; and of the running turns it takes one place, for none runs here."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5, running=2")
    counters = Counters(own_connection)
    requests = [*inputs(1), *inputs(1, "words=2 wait=3600")]
    requests[1]["custom_id"] = "c1"
    dear = (await gateway.client.post("/v1/batches", json={"requests": requests, "parallel": 1})).json()
    full = (await own_log.turn(key_of(tenant, dear))).request
    await gateway.client.post(dear["links"]["cancel"])
    batch = await asked(gateway, requests, parallel=8)
    key = key_of(tenant, batch)
    request = (await own_log.turn(key)).request
    assert request is not None
    assert full is not None
    assert [hold.unit for hold in request.holds or ()] == ["slot"]
    async with working(own_server.url, own_claude):
        await submitted(own_log, key)
        subject = None
        await gateway.client.post(batch["links"]["cancel"])
        await until(lambda: is_acknowledged(own_connection))
    answered = await own_log.turn(children(tenant, batch)[0])
    assert answered.request is not None
    assert answered.end is not None
    held = next(hold for hold in answered.request.holds or () if hold.unit == "nusd")
    subject = held.subject
    assert answered.end.cost_nano_usd < held.amount
    assert await counters.add(subject, 0) == answered.end.cost_nano_usd > 0


WRONG = {
    "a cost": [*inputs(1), *inputs(1, tag="d", max_cost=1.0)],
    "other betas": [*inputs(1), *inputs(1, tag="d", betas=["files-api-2025-04-14"])],
    "another version": [*inputs(1), *inputs(1, tag="d", api_version="2023-06-01")],
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_a_message_batch_cannot_do_is_refused(lone_gateway: Gateway, wrong: str) -> None:
    """By the number of the input; and a way that there is not."""
    requests = [one | {"custom_id": f"c{number}"} for number, one in enumerate(WRONG[wrong])]
    body = {"requests": requests, "via": "message_batches"}
    answer = await lone_gateway.client.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert "requests[1]" in answer.json()["error"]["message"]
    assert (await lone_gateway.client.post("/v1/batches", json=body | {"via": "pigeon"})).status_code == 400


async def test_an_answer_with_a_schema_is_judged_and_not_asked_again(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, own_claude: str, tenant: Tenant
) -> None:
    """What is wanted cheaply is asked once."""
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    requests = [
        {"custom_id": f"c{n}", "params": {"model": MODEL, "message": f'#sim json={{"n":{n}}}', "schema": schema}}
        for n in (1, 5)
    ]
    batch = await asked(own_gateway, requests)
    async with working(own_server.url, own_claude):
        await ended(own_log, key_of(tenant, batch))
    assert [(line["outcome"], line["schema_valid"]) for line in await results(own_gateway, batch)] == [
        ("completed", False),
        ("completed", True),
    ]
    assert (await stats(own_claude))["calls"] == 2


async def test_what_is_asked_is_what_a_turn_would_ask(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, own_claude: str, tenant: Tenant
) -> None:
    """Each input under its turn's id, long texts and marks of the cache in their places, and no stream."""
    long = "long " * 20_000
    params = {"model": MODEL, "system": long, "message": "#sim words=1 rate=0", "cache": "5m", "betas": ["a-beta"]}
    batch = await asked(own_gateway, [{"custom_id": "a", "params": params}])
    async with working(own_server.url, own_claude):
        await ended(own_log, key_of(tenant, batch))
        async with httpx2.AsyncClient(base_url=own_claude, trust_env=False) as client:
            last = (await client.get("/_sim/last")).json()
    (request,) = last["body"]["requests"]
    assert request["custom_id"] == children(tenant, batch)[0].turn
    mark = {"type": "ephemeral"}
    assert request["params"]["system"] == [{"type": "text", "text": long, "cache_control": mark}]
    assert "stream" not in request["params"]
    assert last["betas"] == "a-beta"
    (line,) = await results(own_gateway, batch)
    assert line["text"] == words(1)


async def test_a_message_batch_that_was_deleted_there_fails_the_batch(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_claude: str,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody has its answers any more."""
    monkeypatch.setattr(message_batches, "LOOK_S", 0.5)
    monkeypatch.setattr(message_batches, "LOOK_MAX_S", 0.5)
    batch = await asked(own_gateway, inputs(2, "words=2 wait=0.1"))
    key = key_of(tenant, batch)
    async with (
        working(own_server.url, own_claude),
        anthropic.AsyncAnthropic(base_url=own_claude, api_key="sk-test") as api,
    ):
        name = await submitted(own_log, key)

        async def is_over() -> bool:
            return (await api.messages.batches.retrieve(name)).processing_status == "ended"

        await until(is_over)
        await api.messages.batches.delete(name)
        turn = await ended(own_log, key)
    assert turn.error is not None
    assert (turn.outcome, turn.error.code) == ("failed", "backend_refused_request")


async def test_a_batch_that_is_too_old_keeps_what_was_answered(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has failed; Anthropic's is cancelled, and what that had answered is told."""
    monkeypatch.setattr(batches, "LIFE", timedelta(seconds=1))
    requests = [*inputs(1), *inputs(1, "words=2 wait=3600")]
    requests[1]["custom_id"] = "c1"
    batch = await asked(own_gateway, requests)
    async with working(own_server.url, own_claude):
        turn = await ended(own_log, key_of(tenant, batch))
        await until(lambda: is_acknowledged(own_connection))
    assert turn.error is not None
    assert turn.error.code == "deadline_exceeded"
    lines = await results(own_gateway, batch)
    assert [(line["outcome"], line["turn"] is None) for line in lines] == [("completed", False), ("cancelled", True)]


class Frozen(MessageBatchesApi):
    """Stands still right before it has a message batch made."""

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        super().__init__(client)
        self.is_there = asyncio.Event()
        self.is_woken = asyncio.Event()

    async def create(self, requests: Mapping[str, bytes], headers: Mapping[str, str]) -> MessageBatch:
        self.is_there.set()
        await self.is_woken.wait()
        return await super().create(requests, headers)


@pytest.mark.rule("R67")
@pytest.mark.parametrize("is_late", [False, True])
async def test_who_wakes_up_too_late_cancels_what_nobody_reads(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
    is_late: bool,
) -> None:
    """While the other's message batch runs, and when the batch has ended already."""
    batch = await asked(own_gateway, inputs(2, "words=2 wait=0.8"))
    key = key_of(tenant, batch)
    frozen = Frozen(api)
    bodies = BlobStore(own_connection)
    carrier = BatchRunner(
        own_log,
        bodies,
        Tombstones(own_connection),
        Counters(own_connection),
        lambda: fullness(own_connection),
        name="frozen",
        concurrency=1,
        message_batches=frozen,
        blobs=BlobLoader(bodies, ByteSemaphore(1)),
    )
    carrying = asyncio.create_task(carrier.run(key))
    await frozen.is_there.wait()
    async with working(own_server.url, own_claude):
        name = await submitted(own_log, key)
        if is_late:
            await ended(own_log, key)
        frozen.is_woken.set()
        if is_late:
            assert (await carrying).outcome == "completed"
        else:
            with pytest.raises(FenceLost):
                await carrying
        (mine,) = [one.id async for one in api.messages.batches.list() if one.id != name]
        await ended(own_log, key)

        async def is_cancelled() -> bool:
            return (await api.messages.batches.retrieve(mine)).request_counts.canceled == 2

        await until(is_cancelled)
    await judged(own_gateway, own_log, tenant, batch)
    assert (await stats(own_claude))["calls"] == 2


class Forgetful(MessageBatchesApi):
    """Its results break off after the first, and have no last one ever."""

    times = 0

    async def results(self, name: str) -> AsyncGenerator[Line, None]:
        self.times += 1
        lines = [line async for line in super().results(name)]
        yield lines[0]
        if self.times == 1:
            raise BackendError("backend_broken", "cut")
        for line in [Line("nobodys", Canceled()), *lines[1:-1]]:
            yield line


async def test_results_that_break_off_are_read_again(
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
) -> None:
    """What is nobody's is passed over, and an input that they do not name has failed."""
    batch = await asked(own_gateway, inputs(40))
    bodies = BlobStore(own_connection)
    door = Forgetful(api)
    carrier = BatchRunner(
        own_log,
        bodies,
        Tombstones(own_connection),
        Counters(own_connection),
        lambda: fullness(own_connection),
        name="g",
        concurrency=1,
        message_batches=door,
        blobs=BlobLoader(bodies, ByteSemaphore(1)),
    )
    turn = await carrier.run(key_of(tenant, batch))
    assert (turn.outcome, door.times) == ("completed", 2)
    lines = await results(own_gateway, batch)
    # The simulated API tells the last first.
    assert [line["outcome"] for line in lines] == ["failed", *["completed"] * 39]
    assert lines[0]["error"]["code"] == "backend_broken"


async def test_without_anthropics_key_such_a_batch_fails(
    own_gateway: Gateway, own_log: TurnLog, own_connection: Connection, tenant: Tenant
) -> None:
    """In a sentence that says what is missing."""
    batch = await asked(own_gateway, inputs(2))
    bodies, counters = BlobStore(own_connection), Counters(own_connection)
    carrier = BatchRunner(
        own_log, bodies, Tombstones(own_connection), counters, lambda: fullness(own_connection), name="g", concurrency=1
    )
    turn = await carrier.run(key_of(tenant, batch))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code) == ("failed", "backend_refused_request")
    assert "claude" in turn.error.message


@pytest.fixture
async def own_persistence(own_server: NatsServer, tmp_path: Path) -> AsyncIterator[None]:
    async with processes.persistence(tmp_path, own_server.url):
        yield


@pytest.mark.rule("R67")
async def test_a_batch_is_not_deleted_while_nobody_can_cancel_it(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    own_persistence: None,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
) -> None:
    """Once the log has forgotten it, nobody would know what runs at Anthropic."""
    batch = await asked(own_gateway, inputs(2, "words=2 wait=3600"))
    assert await killed_after(2, own_server.url, own_claude, is_batch=True)
    name = (await own_gateway.client.get(batch["links"]["self"])).json()["message_batch"]
    refused = await own_gateway.client.delete(f"/v1/turns/{batch['batch']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "generators_unavailable")
    assert await own_log.is_known(key_of(tenant, batch))
    async with working(own_server.url, own_claude):
        gone = await own_gateway.client.delete(f"/v1/turns/{batch['batch']}")
    assert gone.status_code == 200, gone.text
    assert not await own_log.is_known(key_of(tenant, batch))
    assert (await api.messages.batches.retrieve(name)).cancel_initiated_at is not None


@pytest.mark.rule("R36")
async def test_a_generator_is_asked_to_cancel(
    own_server: NatsServer, own_connection: Connection, own_claude: str, api: anthropic.AsyncAnthropic, tenant: Tenant
) -> None:
    """What has ended, or is not there, is left as it is."""
    params: Any = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "#sim words=1 wait=3600"}]}
    made = await api.messages.batches.create(requests=[{"custom_id": "a", "params": params}])
    services = Rpc(own_connection)
    async with working(own_server.url, own_claude):

        async def is_answered(name: str) -> bool:
            asked = msgspec.json.encode(CancelMessageBatch(name))
            with suppress(Refused):
                return await services.request(tenant, CANCEL_MESSAGE_BATCH, asked, timeout_s=5, role=GENERATORS) == b""
            return False

        await until(lambda: is_answered(made.id))
        assert (await api.messages.batches.retrieve(made.id)).cancel_initiated_at is not None
        assert await is_answered("msgbatch_none")
        assert await is_answered(made.id)


@pytest.mark.rule("R67")
async def test_a_turn_of_such_a_batch_is_asked_by_nobody(
    own_server: NatsServer, own_log: TurnLog, own_connection: Connection, own_claude: str
) -> None:
    """A generator that is handed one, whose answer is not written yet, hands it back until it has its end."""
    key = await ask(own_log, "words=1", via="message_batches")
    deliveries = own_connection.jetstream

    async def was_handed_back() -> bool:
        return bool((await deliveries.consumer_info(STREAM, GENERATORS)).num_redelivered)

    async with working(own_server.url, own_claude):
        await until(was_handed_back)
        await cancel(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert (await own_log.turn(key)).attempt == 0
    assert (await stats(own_claude))["calls"] == 0


@pytest.mark.rule("R67")
async def test_what_was_deleted_is_not_written_again(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """Whoever takes the batch over reads all results once more."""
    await shorten_lease(own_connection, LEASE_S)
    batch = await asked(own_gateway, inputs(1))
    (child,) = children(tenant, batch)
    # The attempt, the id, and the eight entries of the only turn.
    assert await killed_after(10, own_server.url, own_claude, is_batch=True)
    assert (await own_log.turn(child)).outcome == "completed"
    await own_log.purge(child)
    await Tombstones(own_connection).put([child])
    async with working(own_server.url, own_claude):
        turn = await ended(own_log, key_of(tenant, batch))
    assert not await own_log.is_known(child)
    assert turn.progress is not None
    assert (turn.outcome, turn.progress.done, turn.progress.failed) == ("completed", 0, 1)


@pytest.mark.rule("R67")
async def test_who_deletes_a_message_batch_is_not_given_back_what_anthropic_may_have_answered(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    own_claude: str,
    own_persistence: None,
    api: anthropic.AsyncAnthropic,
    tenant: Tenant,
) -> None:
    """How much that was nobody reads any more, and asking and deleting over and over would spend without an end."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5")
    requests = [*inputs(2), *inputs(1, "words=2 wait=3600")]
    requests[2]["custom_id"] = "c2"
    asked_for = await asked(gateway, requests)
    key = key_of(tenant, asked_for)
    inner = (await own_log.turn(key)).request
    assert inner is not None
    assert inner.batch is not None
    lines = stored_inputs.split_inputs(
        await BlobStore(own_connection).read(tenant, Blob(inner.batch.sha256, inner.batch.bytes))
    )
    (hold,) = list(stored_inputs.decode_input(lines[0]).holds or ())
    held = await Counters(own_connection).add(hold.subject, 0)
    assert held > 0
    async with working(own_server.url, own_claude):
        name = await submitted(own_log, key)
        gone = await gateway.client.delete(f"/v1/turns/{key.turn}")
        assert gone.status_code == 200, gone.text

        async def has_ended() -> bool:
            return (await api.messages.batches.retrieve(name)).processing_status == "ended"

        await until(has_ended)
        await until(lambda: is_acknowledged(own_connection))
    assert (await api.messages.batches.retrieve(name)).request_counts.succeeded == 2
    assert await Counters(own_connection).add(hold.subject, 0) == held


async def test_a_tenants_batches_that_wait_for_anthropic_keep_no_other_tenants_waiting(
    own_server: NatsServer, own_gateway: Gateway, new_gateway: NewGateway, own_log: TurnLog, own_claude: str
) -> None:
    """A generator carries so many batches, and of one tenant no more than half of them."""
    for number in range(BATCHES_MAX):
        await asked(own_gateway, inputs(1, "words=2 wait=3600", tag=f"s{number}"))
    other = Tenant("another")
    gateway = await new_gateway(own_server.url, api_keys=api_keys(other))
    async with working(own_server.url, own_claude):
        short = await asked(gateway, inputs(1))
        assert (await ended(own_log, key_of(other, short))).outcome == "completed"
