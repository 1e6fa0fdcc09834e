"""Batches end to end: a gateway, generators that are killed, a real log, and the simulated Claude."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import msgspec
import pytest
from structlog.testing import capture_logs

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.turns.cancel import cancel
from tailrace.generators.__main__ import open_backends
from tailrace.generators.attempt import TurnRunner
from tailrace.generators.batches import runner as batches
from tailrace.generators.batches.runner import BATCHES_MAX, BatchLane, BatchRunner
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.generators.settings import Settings
from tailrace.generators.worker import Worker
from tailrace.proto import subjects
from tailrace.proto.batch import encode_inputs
from tailrace.proto.chain import START
from tailrace.proto.entries import Batch, Progress, Request, Stored
from tailrace.proto.errors import FenceLost
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, child_id, new_id
from tailrace.proto.nats import BlobStore, Connection, Counters, Deliveries, Slots, Tombstones, TurnLog, fullness
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.nats.streams import apply
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.subjects import BODIES, GENERATORS, STREAM, TurnKey
from tests.harness import processes
from tests.harness.batch_client import asked, children, key_of, results
from tests.harness.generator_in_loop import ended, is_acknowledged, shorten_lease, stats, words, working
from tests.harness.killable_generator import killed_after
from tests.harness.system import System
from tests.harness.turn_builder import request
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys, forget

LEASE_S = 0.2


def inputs(count: int, line: str = "words=2 rate=0", tag: str = "b") -> list[dict[str, Any]]:
    return [
        {"custom_id": f"c{number}", "params": {"message": f"#sim {line} tag={tag}{number}x"}} for number in range(count)
    ]


async def entries(log: TurnLog, key: TurnKey) -> list[Stored]:
    found: list[Stored] = []
    while page := await log.replay(key, found[-1].seq if found else 0):  # type: ignore[arg-type]
        found += page
    return found


async def progress(log: TurnLog, key: TurnKey) -> list[Progress]:
    return [stored.entry for stored in await entries(log, key) if isinstance(stored.entry, Progress)]


async def judged(gateway: Gateway, log: TurnLog, tenant: Tenant, batch: dict[str, Any]) -> None:
    """Every input is exactly one turn, and all of it is told."""
    key = key_of(tenant, batch)
    turn = await log.turn(key)
    assert turn.outcome == "completed"
    assert turn.skipped == 0
    told = await progress(log, key)
    counts = [one.done + one.failed for one in told]
    # Each tells more than the one before it, over all who have carried the batch.
    assert counts == sorted(set(counts))
    assert (told[-1].done, told[-1].failed, told[-1].of) == (batch["of"], 0, batch["of"])
    lines = await results(gateway, batch)
    assert [line["index"] for line in lines] == list(range(batch["of"]))
    assert [line["custom_id"] for line in lines] == [f"c{number}" for number in range(batch["of"])]
    assert [line["text"] for line in lines] == [words(2, f"b{number}x") for number in range(batch["of"])]
    for child in children(tenant, batch):
        stored = await entries(log, child)
        assert [isinstance(one.entry, Request) for one in stored].count(True) == 1
        request = stored[0].entry
        assert isinstance(request, Request)
        assert (request.parent, request.session) == (batch["batch"], batch["session"])


@pytest.mark.rule("R63")
async def test_a_batch_is_a_turn_whose_inputs_are_turns(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """Asked once each, told in order, and its progress is a stream that is taken up at any `id:`."""
    batch = await asked(own_gateway, inputs(20), metadata={"for": "test"})
    async with working(own_server.url, own_claude):
        key = key_of(tenant, batch)
        await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    await judged(own_gateway, own_log, tenant, batch)
    assert (await stats(own_claude))["calls"] == 20
    record = (await own_gateway.client.get(batch["links"]["self"])).json()
    assert (record["outcome"], record["done"], record["failed"], record["of"]) == ("completed", 20, 0, 20)
    assert record["cost_usd"] == pytest.approx(sum(line["cost_usd"] for line in await results(own_gateway, batch)))
    assert record["metadata"] == {"for": "test"}
    # A batch itself has used nothing: whoever adds up turns counts each answer once.
    itself = (await own_gateway.client.get(f"/v1/turns/{batch['batch']}")).json()
    assert (itself["cost_usd"], itself["usage"].get("output_tokens", 0)) == (0, 0)
    whole = (await own_gateway.client.get(batch["links"]["events"])).text
    frames = [frame for frame in whole.split("\n\n") if "data: " in frame]
    told = [frame.partition("data: ")[2].partition("\n")[0] for frame in frames]
    kinds = [msgspec.json.decode(one)["type"] for one in told]
    assert kinds == ["start", *["progress"] * (len(frames) - 2), "done"]
    for number, frame in enumerate(frames):
        last = {"last-event-id": frame.rpartition("id: ")[2].strip()}
        rest = await own_gateway.client.get(batch["links"]["events"], headers=last)
        assert (rest.text if rest.status_code == 200 else "").count("data:") == len(frames) - number - 1
    assert [line["index"] for line in await results(own_gateway, batch, "?after=17")] == [18, 19]


@pytest.mark.rule("R63")
@pytest.mark.timeout(180)
async def test_another_generator_finishes_a_batch_killed_at_any_entry(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """After the 1st, the 2nd, the 3rd … entry that its generator stores, of the batch or of one of its turns."""
    await shorten_lease(own_connection, LEASE_S)
    for appends in range(1, 99):
        calls = (await stats(own_claude))["calls"]
        batch = await asked(own_gateway, inputs(3), parallel=2)
        is_harmed = await killed_after(appends, own_server.url, own_claude, is_batch=True)
        async with working(own_server.url, own_claude):
            await ended(own_log, key_of(tenant, batch))
            await until(lambda: is_acknowledged(own_connection))
        await judged(own_gateway, own_log, tenant, batch)
        # The turn that the dead generator was telling is called for twice, and no other.
        assert (await stats(own_claude))["calls"] - calls in ((3, 4) if is_harmed else (3,))
        if not is_harmed:
            break
    assert appends > 20


@pytest.mark.rule("R63")
@pytest.mark.timeout(180)
async def test_after_killing_every_process_no_input_runs_twice(
    own_server: NatsServer,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
    tmp_path: Path,
) -> None:
    """The generator that carries the batch, then NATS, then the gateway: progress goes on under the same ids."""
    await shorten_lease(own_connection, LEASE_S)
    keys = {"TAILRACE_API_KEYS": api_keys(tenant)}
    async with AsyncExitStack() as stack:
        door = await stack.enter_async_context(processes.gateway(tmp_path, own_server.url, **keys))
        client = await stack.enter_async_context(
            httpx2.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=20, trust_env=False)
        )
        batch = (await client.post(f"{door.url}/v1/batches", json={"requests": inputs(120, "words=2 rate=40")})).json()
        key = key_of(tenant, batch)
        generators = [
            await stack.enter_async_context(processes.generator(tmp_path, own_server.url, own_claude)) for _ in range(2)
        ]

        async def has_told(count: int) -> bool:
            told = (await own_log.turn(key)).progress
            return told is not None and told.done + told.failed >= count

        await until(lambda: has_told(20), 30)
        # Whichever carries the batch is among them, one after the other.
        await generators[0].stop(SIGKILL)
        await until(lambda: has_told(40), 30)
        await generators[0].start()
        await generators[1].stop(SIGKILL)
        await until(lambda: has_told(60), 30)
        await door.stop(SIGKILL)
        await own_server.stop(SIGKILL)
        await own_server.start()
        await door.start()
        await until(lambda: has_told(80), 60)
        await until(lambda: has_told(120), 60)
        await ended(own_log, key)
        lines = (await client.get(door.url + batch["links"]["results"])).content.splitlines()
        seen = (await client.get(door.url + batch["links"]["events"])).text
    assert len(lines) == 120
    assert [msgspec.json.decode(line)["text"] for line in lines] == [words(2, f"b{number}x") for number in range(120)]
    told = [one.done + one.failed for one in await progress(own_log, key)]
    assert told == sorted(set(told))
    assert seen.count('"type":"progress"') == len(told)
    for child in children(tenant, batch):
        assert [isinstance(one.entry, Request) for one in await entries(own_log, child)].count(True) == 1


@pytest.mark.rule("R63")
async def test_a_live_turn_does_not_wait_behind_a_batch(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, own_claude: str, tenant: Tenant
) -> None:
    """1,000 inputs, none of which is ever answered: half of the slots are theirs, and what people ask is answered."""
    batch = await asked(own_gateway, inputs(1000, "words=2 wait=3600"), parallel=64)
    async with working(own_server.url, own_claude, concurrency=4, stall_timeout_s=3600):

        async def are_running() -> bool:
            return (await stats(own_claude))["streams_open"] >= 2

        await until(are_running)
        for number in range(20):
            answer = await own_gateway.client.post(
                "/v1/turns", json={"message": f"#sim words=2 rate=0 tag=live{number}"}
            )
            live = await ended(own_log, TurnKey(tenant, TurnId(answer.json()["turn"])))
            assert live.text == words(2, f"live{number}")
        begun = [await own_log.is_known(child) for child in children(tenant, batch)[:70]]
        assert begun.count(True) == 2
        assert (await own_log.turn(key_of(tenant, batch))).progress is None


@pytest.mark.rule("R64")
async def test_cancelling_stops_running_turns_and_starts_no_more(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """And the bill with it; each input has its line."""
    batch = await asked(own_gateway, inputs(50, "words=2 wait=3600"), parallel=3)
    async with working(own_server.url, own_claude, stall_timeout_s=3600):

        async def are_running() -> bool:
            return (await stats(own_claude))["streams_open"] == 3

        await until(are_running)
        record = (await own_gateway.client.post(batch["links"]["cancel"])).json()
        assert record["outcome"] == "cancelled"
        await until(lambda: is_acknowledged(own_connection))
        assert (await stats(own_claude))["calls"] == 3
    lines = await results(own_gateway, batch)
    assert [line["custom_id"] for line in lines] == [f"c{number}" for number in range(50)]
    assert {line["outcome"] for line in lines} == {"cancelled"}
    assert [line["turn"] is None for line in lines].count(False) == 3


@pytest.mark.rule("R64")
@pytest.mark.timeout(60)
async def test_a_batch_that_is_cancelled_while_its_generator_is_dead_leaves_nothing_running(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """Whoever is given it next finds the turns that run by their ids, and cancels them."""
    await shorten_lease(own_connection, LEASE_S)
    batch = await asked(own_gateway, inputs(6, "words=2 wait=3600"), parallel=3)
    # The batch's attempt, and the first turn's request.
    assert await killed_after(2, own_server.url, own_claude, is_batch=True)
    await own_gateway.client.post(batch["links"]["cancel"])
    async with working(own_server.url, own_claude):
        await until(lambda: is_acknowledged(own_connection))
    known = [child for child in children(tenant, batch) if await own_log.is_known(child)]
    assert known
    assert {(await own_log.turn(child)).outcome for child in known} == {"cancelled"}
    assert (await stats(own_claude))["streams_open"] == 0


@pytest.mark.rule("R65")
async def test_a_batch_reserves_for_all_inputs_and_each_turn_settles_its_own(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tenant: Tenant,
    own_claude: str,
) -> None:
    """Money is held for all of them at the door; what was never asked is given back; running turns bound `parallel`."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5, running=2")

    batch = await asked(gateway, inputs(3, "words=2 wait=3600"))
    request = (await own_log.turn(key_of(tenant, batch))).request
    assert request is not None
    assert request.batch is not None
    assert request.batch.parallel == 2
    assert [hold.unit for hold in request.holds or ()] == ["slot", "slot"]
    refused = await gateway.client.post("/v1/turns", json={"message": "one more"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_turns")
    async with working(own_server.url, own_claude, stall_timeout_s=3600):

        async def are_running() -> bool:
            return (await stats(own_claude))["streams_open"] == 2

        await until(are_running)
        child = (await own_log.turn(children(tenant, batch)[0])).request
        assert child is not None
        held = next(hold for hold in child.holds or () if hold.unit == "nusd")
        counters = Counters(own_connection)
        # Of all three, although two are running.
        assert await counters.add(held.subject, 0) == 3 * held.amount > 0
        await gateway.client.post(batch["links"]["cancel"])
        await until(lambda: is_acknowledged(own_connection))
        ends = [(await own_log.turn(key)).end for key in children(tenant, batch)[:2]]
        used = sum(end.cost_nano_usd for end in ends if end is not None)
        assert await counters.add(held.subject, 0) == used < held.amount
    again = await gateway.client.post("/v1/turns", json={"message": "one more"})
    assert again.status_code == 202


WRONG = {
    "none": ([], "request_invalid"),
    "two of one name": ([*inputs(1), *inputs(1)], "request_invalid"),
    "a name with a slash": ([{"custom_id": "a/b", "params": {"message": "hi"}}], "request_invalid"),
    "no question": ([{"custom_id": "a", "params": {}}], "request_invalid"),
    "another model": ([{"custom_id": "a", "params": {"message": "hi", "model": "none"}}], "model_unknown"),
    "a session": ([{"custom_id": "a", "params": {"message": "hi", "session": "mine"}}], "request_invalid"),
    "a schema that is none": (
        [{"custom_id": "a", "params": {"message": "hi", "schema": {"type": 7}}}],
        "schema_invalid",
    ),
    "too many": (inputs(10_001), "request_invalid"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_batch_is_refused_as_a_whole(lone_gateway: Gateway, wrong: str) -> None:
    """By the number of what is wrong in it; nothing of it is asked."""
    requests, code = WRONG[wrong]
    answer = await lone_gateway.client.post("/v1/batches", json={"requests": [*requests]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    if wrong not in ("none", "too many", "a session"):
        assert f"requests[{len(requests) - 1}]" in answer.json()["error"]["message"]


async def test_the_same_idempotency_key_is_the_same_batch(lone_gateway: Gateway) -> None:
    """Whoever lost the answer asks again; another body under that key is refused, and `auto` is none of a batch's."""
    key = {"idempotency-key": "the-batch"}
    first = await lone_gateway.client.post("/v1/batches", json={"requests": inputs(2)}, headers=key)
    again = await lone_gateway.client.post("/v1/batches", json={"requests": inputs(2)}, headers=key)
    assert first.json() == again.json()
    other = await lone_gateway.client.post("/v1/batches", json={"requests": inputs(3)}, headers=key)
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    auto = await lone_gateway.client.post(
        "/v1/batches", json={"requests": inputs(2)}, headers={"idempotency-key": "auto"}
    )
    assert auto.json()["error"]["code"] == "idempotency_key_invalid"


async def test_a_turn_is_not_found_as_a_batch(gateway: Gateway) -> None:
    """What is not a batch is not found, whoever's it is, in the same words."""
    turn = (await gateway.client.post("/v1/turns", json={"message": "hi"})).json()["turn"]
    for path in ("", "/results"):
        there = await gateway.client.get(f"/v1/batches/{turn}{path}")
        never = await gateway.client.get(f"/v1/batches/{child_id(turn, 1)}{path}")
        assert (there.status_code, there.content) == (404, never.content)
    assert there.json()["error"]["code"] == "batch_not_found"


async def listed(gateway: Gateway, limit: int = 50) -> list[dict[str, Any]]:
    """All that there are, page by page."""
    batches: list[dict[str, Any]] = []
    after = ""
    while True:
        page = (await gateway.client.get(f"/v1/batches?limit={limit}{after}")).json()
        batches += page["data"]
        assert page["has_more"] == (page["next"] is not None)
        if not page["has_more"]:
            return batches
        after = f"&after={page['next']}"


@pytest.mark.rule("R28")
async def test_batches_are_listed_newest_first(
    system: System, gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Those that run as far as they are, and no turn that is none; page by page."""
    await gateway.client.post("/v1/turns", json={"message": "#sim words=1 rate=0"})
    done = [await asked(gateway, inputs(2, tag=f"l{number}b"), metadata={"n": f"{number}"}) for number in range(3)]
    for batch in done:
        await ended(system_log, key_of(tenant, batch))
    requests = [*inputs(1, tag="l3b"), *inputs(1, "words=2 wait=3600", tag="l3b")]
    requests[1]["custom_id"] = "late"
    slow = await asked(gateway, requests)

    async def is_half_done() -> bool:
        return bool((await gateway.client.get(slow["links"]["self"])).json()["done"] == 1)

    await until(is_half_done)
    first, *rest = await listed(gateway, limit=2)
    assert (first["batch"], first["outcome"], first["done"]) == (slow["batch"], "running", 1)
    assert [one["metadata"] for one in rest] == [{"n": "2"}, {"n": "1"}, {"n": "0"}]
    for one in [first, *rest]:
        assert one == (await gateway.client.get(one["links"]["self"])).json()
    await gateway.client.post(slow["links"]["cancel"])
    assert (await listed(gateway))[0]["outcome"] == "cancelled"
    assert (await gateway.client.get("/v1/batches?after=x")).json()["error"]["code"] == "cursor_invalid"


async def test_batches_of_another_tenant_are_404(
    system: System, gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Neither in the list, nor by their ids, in the log or out of it."""
    batch = await asked(gateway, inputs(2))
    key = key_of(tenant, batch)
    await ended(system_log, key)
    theirs = Gateway(system.nats_url, Tenant(new_id()), {})
    await theirs.answers()
    try:
        for is_past in (False, True):
            if is_past:
                await forget(gateway, system_log, key)
            assert await listed(theirs) == []
            for path in (batch["links"]["self"], batch["links"]["results"]):
                answer = await theirs.client.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
            answer = await theirs.client.post(batch["links"]["cancel"])
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
    finally:
        await theirs.stop()


@pytest.mark.rule("R28")
async def test_a_batch_that_has_left_the_log_comes_from_the_database(
    system: System, gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """How it is, its results, its stream, its place in the list; and cancelling it changes nothing."""
    batch = await asked(gateway, inputs(70))
    key = key_of(tenant, batch)
    await ended(system_log, key)
    record, lines = (await gateway.client.get(batch["links"]["self"])).json(), await results(gateway, batch)
    for one in [key, *children(tenant, batch)]:
        await forget(gateway, system_log, one)
    assert (await gateway.client.get(batch["links"]["self"])).json() == record
    assert await results(gateway, batch) == lines
    assert [line["index"] for line in await results(gateway, batch, "?after=66")] == [67, 68, 69]
    assert (await gateway.client.post(batch["links"]["cancel"])).json() == record
    assert (await listed(gateway))[0] == record
    told = (await gateway.client.get(batch["links"]["events"])).text
    assert '"type":"done"' in told


async def test_a_batch_that_leaves_the_log_unfinished_has_failed(
    system: System, lone_house: tuple[Gateway, TurnLog], tenant: Tenant
) -> None:
    """Nobody can end it any more; an input without a turn has its line."""
    gateway, log = lone_house
    batch = await asked(gateway, inputs(2))
    await listed(gateway)
    key = key_of(tenant, batch)
    await log._connection.jetstream.purge_stream(STREAM, subject=subjects.entries(key))
    record = (await gateway.client.get(batch["links"]["self"])).json()
    assert (record["outcome"], record["error"]["code"]) == ("failed", "internal")
    assert [one["outcome"] for one in await listed(gateway)] == ["failed"]
    assert [(line["index"], line["turn"], line["outcome"]) for line in await results(gateway, batch)] == [
        (0, None, "cancelled"),
        (1, None, "cancelled"),
    ]


@pytest.fixture
async def lone_house(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, tmp_path: Path
) -> AsyncIterator[tuple[Gateway, TurnLog]]:
    """A gateway, a log and a database, and nobody who answers."""
    async with processes.persistence(tmp_path, own_server.url):
        yield own_gateway, own_log


@pytest.mark.rule("R63")
async def test_deleted_turns_of_a_batch_stay_deleted(
    system: System, gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """One of its turns, and then the batch with all of them: also while it runs."""
    batch = await asked(gateway, inputs(30, "words=2 rate=0 wait=0.5"), parallel=2)
    first, *others = children(tenant, batch)
    await until(lambda: system_log.is_known(first))
    await ended(system_log, first)
    assert (await gateway.client.delete(f"/v1/turns/{first.turn}")).status_code == 200
    assert not await system_log.is_known(first)
    gone = await gateway.client.delete(f"/v1/turns/{batch['batch']}")
    assert gone.status_code == 200, gone.text
    for key in (key_of(tenant, batch), first, *others):
        assert not await system_log.is_known(key)
        assert (await gateway.client.get(f"/v1/turns/{key.turn}")).status_code == 404
    assert (await gateway.client.get(batch["links"]["self"])).status_code == 404


async def test_a_takeover_does_not_run_deleted_inputs(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """Appended expecting nothing, a request that was purged would be stored again."""
    await shorten_lease(own_connection, LEASE_S)
    batch = await asked(own_gateway, inputs(4), parallel=1)
    first = children(tenant, batch)[0]
    assert await killed_after(12, own_server.url, own_claude, is_batch=True)
    assert (await own_log.turn(first)).end is not None
    await own_log.purge(first)
    await Tombstones(own_connection).put([first])
    async with working(own_server.url, own_claude):
        await ended(own_log, key_of(tenant, batch))
    assert not await own_log.is_known(first)
    told = (await own_log.turn(key_of(tenant, batch))).progress
    assert told is not None
    assert (told.done, told.failed) == (3, 1)


@pytest.mark.rule("R64")
async def test_a_batch_above_its_time_limit_fails(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not outlive its place in the log: what runs of it is cancelled."""
    monkeypatch.setattr(batches, "LIFE", timedelta(seconds=1))
    batch = await asked(own_gateway, inputs(5, "words=2 wait=3600"), parallel=2)
    async with working(own_server.url, own_claude, stall_timeout_s=3600):
        turn = await ended(own_log, key_of(tenant, batch))
        assert turn.error is not None
        assert (turn.outcome, turn.error.code) == ("failed", "deadline_exceeded")
        await until(lambda: is_acknowledged(own_connection))
    assert {line["outcome"] for line in await results(own_gateway, batch)} == {"cancelled"}


async def test_a_batch_with_expired_inputs_fails(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """Nobody knows any more what it asked."""
    batch = await asked(own_gateway, inputs(5))
    await own_connection.jetstream.purge_stream(BODIES)
    async with working(own_server.url, own_claude):
        turn = await ended(own_log, key_of(tenant, batch))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code) == ("failed", "blob_expired")


async def test_batches_above_the_parallel_limit_wait(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_connection: Connection,
    own_claude: str,
    tenant: Tenant,
) -> None:
    """More batches than a generator carries at once all come to their end, on one slot."""
    asked_for = [await asked(own_gateway, inputs(3, tag=f"q{number}b")) for number in range(BATCHES_MAX + 2)]
    async with working(own_server.url, own_claude, concurrency=1):
        for batch in asked_for:
            assert (await ended(own_log, key_of(tenant, batch))).outcome == "completed"
        await until(lambda: is_acknowledged(own_connection))
    assert (await stats(own_claude))["calls"] == 3 * len(asked_for)


class Early(BatchRunner):
    """A carrier that is told that its batch has ended before it can read so."""

    times = 0

    async def run(self, key: TurnKey) -> Turn:
        self.times += 1
        if self.times == 1:
            await cancel(self._log, key)
            raise FenceLost("heard of, and not read yet")
        return await super().run(key)


@pytest.mark.rule("R64")
async def test_a_batch_is_acknowledged_after_its_turns_have_ended(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, own_connection: Connection, own_claude: str
) -> None:
    """Whoever lost it has not looked: it is delivered once more, although its end can be read."""
    await shorten_lease(own_connection, LEASE_S)
    await asked(own_gateway, inputs(3))
    bodies, counters = BlobStore(own_connection), Counters(own_connection)
    early = Early(
        own_log, bodies, Tombstones(own_connection), counters, lambda: fullness(own_connection), name="g", concurrency=1
    )
    settings = Settings(anthropic_api_key="sk-test", anthropic_base_url=own_claude)
    async with open_backends(settings) as (orders, backends):
        retry = Retry(tries_max=1, wait_s=0, wait_max_s=0)
        caller = ModelCaller(backends, orders, retry, BlobLoader(bodies, FairSemaphore(1)))
        runner = TurnRunner(own_log, caller, Planner(2), name="g")
        deliveries = await Deliveries.open(own_connection, GENERATORS)
        settlement = Settlement(counters, Slots(own_connection))
        lanes = [BatchLane(early)]
        worker = Worker(own_log, deliveries, runner, settlement.settle, lanes, concurrency=1, deadline_s=9, grace_s=0)
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        await until(lambda: is_acknowledged(own_connection))
        stop.set()
        await running
    assert early.times == 2


async def test_a_stopping_generator_does_not_wait_for_a_full_log(tmp_path: Path) -> None:
    """What the log has refused is not stored: the batch is given up at once, and another asks the input later."""
    key, line = TurnKey(Tenant("tenant"), TurnId(new_id())), encode_inputs([request(system="x" * 60_000)])
    sha256 = hashlib.sha256(line).hexdigest()

    async def is_empty() -> float:
        return 0.0

    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "small")
        await apply(connection, bytes_max=600_000)
        log, bodies = TurnLog(connection), BlobStore(connection)
        await bodies.put(key.tenant, {sha256: line})
        await log.append(TurnKey(key.tenant, TurnId(new_id())), START, request(system="y" * 560_000))
        await log.append(key, START, request(batch=Batch(sha256, len(line), 1, 1)))
        tombstones, counters = Tombstones(connection), Counters(connection)
        with capture_logs() as logged:
            carrying = asyncio.create_task(
                BatchRunner(log, bodies, tombstones, counters, is_empty, name="g", concurrency=1).run(key)
            )
            await until(lambda: any("full" in told["event"] for told in logged))
        carrying.cancel()
        done, _ = await asyncio.wait({carrying}, timeout=5)
        assert done
        await connection.close()


async def held(log: TurnLog, key: TurnKey) -> str:
    """The counter of money that an input's turn is held in."""
    request = (await log.turn(key)).request
    assert request is not None
    return next(hold.subject for hold in request.holds or () if hold.unit == "nusd")


@pytest.mark.rule("R65")
async def test_a_deleted_batch_returns_its_reservations_without_a_generator(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tenant: Tenant,
    own_claude: str,
    tmp_path: Path,
) -> None:
    """What was answered stays counted, once; and whoever deletes it again changes nothing."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5, running=2")
    batch = await asked(gateway, inputs(4), parallel=1)
    first = children(tenant, batch)[0]
    # The first turn has ended by then, and nobody has settled it or given anything back.
    assert await killed_after(11, own_server.url, own_claude, is_batch=True)
    end = (await own_log.turn(first)).end
    assert end is not None
    subject, counters = await held(own_log, first), Counters(own_connection)
    assert await counters.add(subject, 0) > end.cost_nano_usd > 0
    async with processes.persistence(tmp_path, own_server.url):
        gone = await gateway.client.delete(f"/v1/turns/{batch['batch']}")
    assert gone.status_code == 200, gone.text
    assert not await own_log.is_known(first)
    assert await counters.add(subject, 0) == end.cost_nano_usd
    # Both of its places are free.
    slots = await asked(gateway, inputs(2), parallel=2)
    request = (await own_log.turn(TurnKey(tenant, TurnId(slots["batch"])))).request
    assert request is not None
    assert len(request.holds or ()) == 2


@pytest.mark.rule("R65")
async def test_a_reservation_is_returned_or_settled_once(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tenant: Tenant,
    own_claude: str,
    tmp_path: Path,
) -> None:
    """Deleted while it is carried: the gateway and the generator both do so."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5")
    batch = await asked(gateway, inputs(30, "words=2 rate=0 wait=0.2"), parallel=4)
    key, first = key_of(tenant, batch), children(tenant, batch)[0]
    async with processes.persistence(tmp_path, own_server.url), working(own_server.url, own_claude):
        await until(lambda: own_log.is_known(first))
        end = (await ended(own_log, first)).end
        assert end is not None
        subject = await held(own_log, first)
        gone = await gateway.client.delete(f"/v1/turns/{key.turn}")
        assert gone.status_code == 200, gone.text
        await until(lambda: is_acknowledged(own_connection))
    calls = (await stats(own_claude))["calls"]
    # What each call that was made has cost, whole or cut off; and of nothing that was never asked.
    assert 0 < await Counters(own_connection).add(subject, 0) <= calls * end.cost_nano_usd
