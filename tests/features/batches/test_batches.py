"""Batches end to end: a gateway, generators that are killed, a real log, and the simulated Claude."""

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import msgspec
import pytest
from prometheus_client import REGISTRY

from tailrace.features.batches import input_lines
from tailrace.features.batches import runner as batches
from tailrace.features.batches.runner import BATCHES_MAX, BatchRunner
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto import subjects
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Progress, Request, Reservation
from tailrace.proto.errors import CODES, FenceLost, LogFull, Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnKey, child_id, new_id
from tailrace.proto.nats import Counters, TurnLog, replay
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.resources import DeleteResource
from tailrace.proto.subjects import BODIES, STREAM
from tests.harness import processes, readers
from tests.harness.batch_client import BatchSystem, input_keys, key_of, post_batch, read_results
from tests.harness.generator_in_loop import failure_code, read_stats, wait_for_end, words
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.system import System
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys, forget, on_shared_loop

LEASE_S = 0.2
FAST, SILENT = "words=2 rate=0", "words=2 wait=3600"


def build_inputs(count: int, line: str = FAST, tag: str = "b") -> list[dict[str, Any]]:
    return [
        {"custom_id": f"c{number}", "params": {"message": f"#sim {line} tag={tag}{number}x"}} for number in range(count)
    ]


class VerifiedSystem(BatchSystem):
    """A system that checks a batch of `build_inputs`."""

    async def money(self, key: TurnKey) -> Reservation:
        """Returns the money that is reserved for a turn."""
        stored = (await self.log.read_turn(ScopedKey.whole(key))).request
        assert stored is not None
        return next(hold for hold in stored.holds or () if hold.unit == "nusd")

    async def verify(self, batch: dict[str, Any]) -> None:
        """Checks that every input is exactly one turn with its answer, and that progress only grows."""
        count = batch["of"]
        turn = await self.turn(batch)
        assert (turn.outcome, turn.skipped) == ("completed", 0)
        stored = await readers.read_all_entries(self.log, self.key(batch))
        progress = [one.entry for one in stored if isinstance(one.entry, Progress)]
        counts = [one.done + one.failed for one in progress]
        assert counts == sorted(set(counts))
        assert (progress[-1].done, progress[-1].failed, progress[-1].of) == (count, 0, count)
        lines = await read_results(self.gateway, batch)
        assert [line["index"] for line in lines] == list(range(count))
        assert [line["custom_id"] for line in lines] == [f"c{number}" for number in range(count)]
        assert [line["text"] for line in lines] == [words(2, f"b{number}x") for number in range(count)]
        for child in self.turns(batch):
            requests = [
                one.entry for one in await readers.read_all_entries(self.log, child) if isinstance(one.entry, Request)
            ]
            assert [(one.parent, one.session) for one in requests] == [(batch["batch"], batch["session"])]


@pytest.fixture
def own(own: OwnSystem, own_gateway: Gateway, tenant: Tenant) -> VerifiedSystem:
    return VerifiedSystem(**vars(own), gateway=own_gateway, tenant=tenant)


@pytest.fixture
async def limited_system(own: VerifiedSystem, new_gateway: NewGateway) -> VerifiedSystem:
    """The system with a budget, and two running turns at a time."""
    own.gateway = await new_gateway(own.server.url, limits_key="usd_day=5, running=2")
    return own


@pytest.mark.rule("R63")
async def test_a_batch_is_a_turn_whose_inputs_are_turns(own: VerifiedSystem) -> None:
    inputs = build_inputs(20)
    inputs[1]["params"]["metadata"] = {"for": "itself"}
    batch = await post_batch(own.gateway, inputs, metadata={"for": "test", "team": "a"})
    async with own.running_generator():
        await own.batch_ended(batch)
        await own.wait_until_acknowledged()
    await own.verify(batch)
    assert await own.calls() == 20
    client = own.gateway.client
    record = (await client.get(batch["links"]["self"])).json()
    assert (record["outcome"], record["done"], record["failed"], record["of"]) == ("completed", 20, 0, 20)
    cost_usd = sum(line["cost_usd"] for line in await read_results(own.gateway, batch))
    assert record["cost_usd"] == pytest.approx(cost_usd)
    assert record["metadata"] == {"for": "test", "team": "a"}
    requests = [(await own.log.read_turn(ScopedKey.whole(child))).request for child in own.turns(batch)[:2]]
    labels = [{**(one.metadata or {}), "custom_id": ""} for one in requests if one is not None]
    assert labels == [{"for": one, "team": "a", "custom_id": ""} for one in ("test", "itself")]
    # The batch itself has no usage: a sum over all turns counts each answer once.
    itself = (await client.get(f"/v1/turns/{batch['batch']}")).json()
    assert (itself["cost_usd"], itself["usage"].get("output_tokens", 0)) == (0, 0)
    whole = await readers.read(client, batch["batch"])
    kinds = [readers.decode_data(frame.sent)["type"] for frame in whole.frames]
    assert kinds == ["start", *["progress"] * (len(kinds) - 2), "done"]
    for number, frame in enumerate(whole.frames):
        assert (await readers.read(client, batch["batch"], frame.seq)).frames == whole.frames[number + 1 :]
    assert [line["index"] for line in await read_results(own.gateway, batch, "?after=17")] == [18, 19]


@pytest.mark.rule("R63")
@pytest.mark.timeout(180)
async def test_after_killing_every_process_no_input_runs_twice(own: VerifiedSystem, tmp_path: Path) -> None:
    """Kills each generator, then nats-server and the gateway."""
    await own.shorten_lease(LEASE_S)
    count, log = 40, own.log
    headers = {"authorization": f"Bearer {KEY}"}
    async with AsyncExitStack() as stack:
        keys = {"TAILRACE_API_KEYS": api_keys(own.tenant)}
        gateway = await stack.enter_async_context(processes.gateway(tmp_path, own.server.url, **keys))
        client = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=gateway.url, headers=headers, timeout=20, trust_env=False)
        )
        batch = (
            await client.post("/v1/turn-batches", json={"requests": build_inputs(count, "words=2 rate=40")})
        ).json()
        key = own.key(batch)
        generators = [processes.generator(tmp_path, own.server.url, own.claude) for _ in range(2)]
        await asyncio.gather(*(stack.enter_async_context(generator) for generator in generators))

        async def has_done(done: int) -> bool:
            progress = (await log.read_turn(ScopedKey.whole(key))).progress
            return progress is not None and progress.done + progress.failed >= done

        await until(lambda: has_done(5), 30)
        # One of the two runs the batch.
        await generators[0].stop(SIGKILL)
        await until(lambda: has_done(12), 30)
        await generators[0].start()
        await generators[1].stop(SIGKILL)
        await until(lambda: has_done(20), 30)
        await gateway.stop(SIGKILL)
        await own.server.stop(SIGKILL)
        await own.server.start()
        await gateway.start()
        await until(lambda: has_done(count), 60)
        await wait_for_end(log, key)
        client.base_url = httpx2.URL(gateway.url)
        seen = await readers.read(client, batch["batch"])
    progress = [one.entry for one in await readers.read_all_entries(log, key) if isinstance(one.entry, Progress)]
    assert len(seen.frames) == len(progress) + 2
    await own.gateway.answers()
    await own.verify(batch)


@pytest.mark.rule("R63")
async def test_a_live_turn_does_not_wait_behind_a_batch(own: VerifiedSystem) -> None:
    """A batch gets at most half of a generator's slots, and is itself not counted as a turn in a slot."""

    def running() -> float:
        return REGISTRY.get_sample_value("tailrace_generator_turns_running") or 0.0

    before = running()
    batch = await post_batch(own.gateway, build_inputs(100, SILENT), parallel=64)
    async with own.running_generator(concurrency=4):
        await own.wait_for_open_streams(2)
        assert running() == before + 2
        for number in range(6):
            message = f"#sim {FAST} tag=live{number}"
            turn = (await own.gateway.client.post("/v1/turns", json={"message": message})).json()["turn"]
            assert (await own.wait_for_end(TurnKey(own.tenant, turn))).text == words(2, f"live{number}")
        begun = [await own.log.has_turn(ScopedKey.whole(child)) for child in own.turns(batch)[:70]]
        assert begun.count(True) == 2
        assert (await own.turn(batch)).progress is None
    assert running() == before


@pytest.mark.rule("R64")
async def test_cancelling_stops_running_turns_and_starts_no_more(own: VerifiedSystem) -> None:
    batch = await post_batch(own.gateway, build_inputs(50, SILENT), parallel=3)
    async with own.running_generator():
        await own.wait_for_open_streams(3)
        record = (await own.gateway.client.post(batch["links"]["cancel"])).json()
        assert record["outcome"] == "cancelled"
        await own.wait_until_acknowledged()
        assert await own.calls() == 3
    lines = await read_results(own.gateway, batch)
    assert [line["custom_id"] for line in lines] == [f"c{number}" for number in range(50)]
    assert {line["outcome"] for line in lines} == {"cancelled"}
    assert sum(line["turn"] is not None for line in lines) == 3


async def test_a_large_cancelled_batch_is_read_and_stopped_with_few_waits(
    own: VerifiedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is asked again for missing turns after a wait: one wait for many inputs, and not one for each."""
    batch = await post_batch(own.gateway, build_inputs(600))
    await own.gateway.client.post(batch["links"]["cancel"])
    sleep, waits = asyncio.sleep, list[float]()

    async def count_and_sleep(delay: float, *given: Any) -> None:
        waits.append(delay)
        await sleep(delay, *given)

    monkeypatch.setattr(replay, "WOKEN_WAIT_S", 0.1001)
    monkeypatch.setattr(asyncio, "sleep", count_and_sleep)
    assert len(await read_results(own.gateway, batch)) == 600
    assert waits.count(0.1001) == 3
    async with own.running_generator():
        await own.wait_until_acknowledged()
    assert waits.count(0.1001) == 4


@pytest.mark.rule("R64")
async def test_a_batch_that_is_cancelled_without_a_generator_leaves_nothing_running(own: VerifiedSystem) -> None:
    """The next generator finds the running turns by their ids and cancels them."""
    await own.shorten_lease(LEASE_S)
    batch = await post_batch(own.gateway, build_inputs(6, SILENT), parallel=3)
    # The entries are the batch's attempt and the first turn's request.
    await own.batch_killed_after(2)
    await own.gateway.client.post(batch["links"]["cancel"])
    async with own.running_generator():
        await own.wait_until_acknowledged()
    known = [child for child in own.turns(batch) if await own.log.has_turn(ScopedKey.whole(child))]
    assert {(await own.log.read_turn(ScopedKey.whole(child))).outcome for child in known} == {"cancelled"}
    assert (await read_stats(own.claude))["streams_open"] == 0


@pytest.mark.rule("R65")
async def test_a_batch_reserves_for_all_inputs_and_each_turn_settles_its_own(limited_system: VerifiedSystem) -> None:
    """The limit of running turns bounds `parallel`. Persistence gives back what inputs that never ran have reserved."""
    batch = await post_batch(limited_system.gateway, build_inputs(3, SILENT))
    stored = (await limited_system.turn(batch)).request
    assert stored is not None
    assert stored.batch is not None
    assert (stored.batch.parallel, [hold.unit for hold in stored.holds or ()]) == (2, ["slot", "slot"])
    another = {"message": "one more"}
    refused = await limited_system.gateway.client.post("/v1/turns", json=another)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_turns")
    counters = Counters(limited_system.connection)
    async with limited_system.running_generator():
        await limited_system.wait_for_open_streams(2)
        held = await limited_system.money(limited_system.turns(batch)[0])
        assert await counters.add(held.subject, 0) == 3 * held.amount > 0
        assert stored.batch.holds is not None
        (together,) = stored.batch.holds
        assert together == msgspec.structs.replace(held, amount=3 * held.amount)
        await limited_system.gateway.client.post(batch["links"]["cancel"])
        await limited_system.wait_until_acknowledged()
    ends = [(await limited_system.log.read_turn(ScopedKey.whole(key))).end for key in limited_system.turns(batch)[:2]]
    used = sum(end.cost_nano_usd for end in ends if end is not None)
    assert used < held.amount
    assert await counters.add(held.subject, 0) == used + held.amount
    assert (await limited_system.gateway.client.post("/v1/turns", json=another)).status_code == 202


@pytest.mark.rule("R65")
async def test_a_deleted_batch_frees_its_slots_without_a_generator(
    limited_system: VerifiedSystem, tmp_path: Path
) -> None:
    batch = await post_batch(limited_system.gateway, build_inputs(4), parallel=1)
    first = limited_system.turns(batch)[0]
    await limited_system.batch_killed_after(11)
    async with processes.persistence(tmp_path, limited_system.server.url):
        gone = await limited_system.gateway.client.delete(f"/v1/turns/{batch['batch']}")
    assert gone.status_code == 200, gone.text
    assert not await limited_system.log.has_turn(ScopedKey.whole(first))
    stored = (await limited_system.turn(await post_batch(limited_system.gateway, build_inputs(2), parallel=2))).request
    assert stored is not None
    assert [hold.unit for hold in stored.holds or ()] == ["slot", "slot"]


def one_input(**params: object) -> list[dict[str, Any]]:
    return [{"custom_id": "a", "params": {"message": "hi"} | params}]


# The requests, the error code, and whether the message names the invalid request.
INVALID: dict[str, tuple[list[dict[str, Any]], str, bool]] = {
    "no input": ([], "request_invalid", False),
    "repeated custom_id": ([*build_inputs(1), *build_inputs(1)], "request_invalid", True),
    "slash in custom_id": ([{"custom_id": "a/b", "params": {"message": "hi"}}], "request_invalid", True),
    "no message": ([{"custom_id": "a", "params": {}}], "request_invalid", True),
    "unknown model": (one_input(model="none"), "model_not_found", True),
    "session": (one_input(session="mine"), "request_invalid", False),
    "invalid schema": (one_input(schema={"type": 7}), "schema_invalid", True),
    "too many": (build_inputs(10_001), "request_invalid", False),
}


@on_shared_loop
@pytest.mark.parametrize("case", INVALID)
async def test_a_batch_with_an_invalid_request_is_refused(shared_gateway: Gateway, case: str) -> None:
    requests, code, is_named = INVALID[case]
    answer = await shared_gateway.client.post("/v1/turn-batches", json={"requests": requests})
    assert (answer.status_code, answer.json()["error"]["code"]) == (CODES[code].status, code), answer.text
    assert (f"requests[{len(requests) - 1}]" in answer.json()["error"]["message"]) >= is_named


async def test_the_same_idempotency_key_is_the_same_batch(lone_gateway: Gateway) -> None:
    async def post(count: int, key: str = "the-batch") -> dict[str, Any]:
        headers = {"idempotency-key": key}
        answer = await lone_gateway.client.post(
            "/v1/turn-batches", json={"requests": build_inputs(count)}, headers=headers
        )
        return dict(answer.json())

    assert await post(2) == await post(2)
    assert (await post(3))["error"]["code"] == "idempotency_key_reused"
    assert (await post(2, "auto"))["error"]["code"] == "idempotency_key_invalid"


async def test_a_turn_is_not_found_as_a_batch(gateway: Gateway) -> None:
    turn = (await gateway.client.post("/v1/turns", json={"message": "hi"})).json()["turn"]
    for path in ("", "/results"):
        found = await gateway.client.get(f"/v1/turn-batches/{turn}{path}")
        unknown = await gateway.client.get(f"/v1/turn-batches/{child_id(turn, 1)}{path}")
        assert (found.status_code, found.content) == (404, unknown.content)
    assert found.json()["error"]["code"] == "batch_not_found"


async def list_batches(gateway: Gateway, limit: int = 50) -> list[dict[str, Any]]:
    """Returns all batches, page by page."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = (await gateway.client.get(f"/v1/turn-batches?limit={limit}{after}")).json()
        found += page["data"]
        assert page["has_more"] == (page["next"] is not None)
        if not page["has_more"]:
            return found
        after = f"&after={page['next']}"


@pytest.mark.rule("R28")
async def test_batches_are_listed_newest_first(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> None:
    """A running batch has its progress; turns are not listed."""
    await gateway.client.post("/v1/turns", json={"message": "#sim words=1 rate=0"})
    for number in range(3):
        batch = await post_batch(gateway, build_inputs(2, tag=f"l{number}b"), metadata={"n": f"{number}"})
        await wait_for_end(system_log, key_of(tenant, batch))
    silent = {"custom_id": "late", "params": {"message": f"#sim {SILENT}"}}
    slow = await post_batch(gateway, [*build_inputs(1, tag="l3b"), silent])

    async def count_done() -> int:
        return int((await gateway.client.get(slow["links"]["self"])).json()["done"])

    await until_equal(count_done, 1)
    first, *rest = await list_batches(gateway, limit=2)
    assert (first["batch"], first["outcome"], first["done"]) == (slow["batch"], "running", 1)
    assert [one["metadata"] for one in rest] == [{"n": "2"}, {"n": "1"}, {"n": "0"}]
    for one in [first, *rest]:
        assert one == (await gateway.client.get(one["links"]["self"])).json()
    await gateway.client.post(slow["links"]["cancel"])
    assert (await list_batches(gateway))[0]["outcome"] == "cancelled"
    assert (await gateway.client.get("/v1/turn-batches?after=x")).json()["error"]["code"] == "cursor_invalid"


@pytest.mark.rule("R28")
async def test_a_batch_that_has_left_the_log_comes_from_the_database(
    system: System, gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Before and after that, another tenant does not find it."""
    other = Gateway(system.nats_url, Tenant(new_id()), {})
    await other.answers()

    async def another_tenant_finds_nothing() -> None:
        links = batch["links"]
        posted = await other.client.post(links["cancel"])
        for answer in (posted, await other.client.get(links["self"]), await other.client.get(links["results"])):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
        assert await list_batches(other) == []

    try:
        batch = await post_batch(gateway, build_inputs(70))
        key = key_of(tenant, batch)
        await wait_for_end(system_log, key)
        record, lines = (await gateway.client.get(batch["links"]["self"])).json(), await read_results(gateway, batch)
        await another_tenant_finds_nothing()
        for one in [key, *input_keys(tenant, batch)]:
            await forget(gateway, system_log, one)
        await another_tenant_finds_nothing()
    finally:
        await other.stop()
    assert (await gateway.client.get(batch["links"]["self"])).json() == record
    assert await read_results(gateway, batch) == lines
    assert [line["index"] for line in await read_results(gateway, batch, "?after=66")] == [67, 68, 69]
    assert (await gateway.client.post(batch["links"]["cancel"])).json() == record
    assert (await list_batches(gateway))[0] == record
    assert '"type":"done"' in (await gateway.client.get(batch["links"]["events"])).text


async def test_a_batch_that_leaves_the_log_unfinished_has_failed(own: VerifiedSystem, tmp_path: Path) -> None:
    async with processes.persistence(tmp_path, own.server.url):
        batch = await post_batch(own.gateway, build_inputs(2))
        await list_batches(own.gateway)
        key = own.key(batch)
        await own.connection.jetstream.purge_stream(STREAM, subject=subjects.entries(key))
        record = (await own.gateway.client.get(batch["links"]["self"])).json()
        assert (record["outcome"], record["error"]["code"]) == ("failed", "internal")
        assert [one["outcome"] for one in await list_batches(own.gateway)] == ["failed"]
        lines = await read_results(own.gateway, batch)
    assert [(line["index"], line["turn"], line["outcome"]) for line in lines] == [
        (0, None, "cancelled"),
        (1, None, "cancelled"),
    ]


@pytest.mark.rule("R63")
async def test_deleted_turns_of_a_running_batch_stay_deleted(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    batch = await post_batch(gateway, build_inputs(8, "words=2 rate=0 wait=0.5"), parallel=2)
    first, *others = input_keys(tenant, batch)
    await until(lambda: system_log.has_turn(ScopedKey.whole(first)))
    await wait_for_end(system_log, first)
    assert (await gateway.client.delete(f"/v1/turns/{first.turn}")).status_code == 200
    assert not await system_log.has_turn(ScopedKey.whole(first))
    gone = await gateway.client.delete(f"/v1/turns/{batch['batch']}")
    assert gone.status_code == 200, gone.text
    for key in (key_of(tenant, batch), first, *others):
        assert not await system_log.has_turn(ScopedKey.whole(key))
        assert (await gateway.client.get(f"/v1/turns/{key.turn}")).status_code == 404
    assert (await gateway.client.get(batch["links"]["self"])).status_code == 404


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_takeover_does_not_run_deleted_inputs(
    own: VerifiedSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    """The fence of a purged request is that of a new turn, also if the deletion has not set the tombstone yet."""
    query = HistoryClient.query

    async def query_until_purged(self: HistoryClient, scope: Scope, given: Any) -> Any:
        if is_cut and isinstance(given, DeleteResource) and given.purged:
            raise Refused("persistence_unavailable", "it was killed")
        return await query(self, scope, given)

    monkeypatch.setattr(HistoryClient, "query", query_until_purged)
    await own.shorten_lease(LEASE_S)
    batch = await post_batch(own.gateway, build_inputs(4), parallel=1)
    first = own.turns(batch)[0]
    await own.batch_killed_after(12)
    assert (await own.log.read_turn(ScopedKey.whole(first))).end is not None
    async with Persistence(own.server.url, tmp_path / "tailrace.db"):
        deleted = await own.gateway.client.delete(f"/v1/turns/{first.turn}")
    assert deleted.status_code == (503 if is_cut else 200), deleted.text
    assert not await own.log.has_turn(ScopedKey.whole(first))
    async with own.running_generator():
        progress = (await own.batch_ended(batch)).progress
    assert not await own.log.has_turn(ScopedKey.whole(first))
    assert progress is not None
    assert (progress.done, progress.failed) == (3, 1)


@pytest.mark.rule("R64")
async def test_a_batch_above_its_time_limit_fails(own: VerifiedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "RUN_MAX", timedelta(seconds=1))
    batch = await post_batch(own.gateway, build_inputs(5, SILENT), parallel=2)
    async with own.running_generator():
        turn = await own.batch_ended(batch)
        await own.wait_until_acknowledged()
    assert failure_code(turn) == "deadline_exceeded"
    assert {line["outcome"] for line in await read_results(own.gateway, batch)} == {"cancelled"}


@pytest.mark.rule("R64")
async def test_a_batch_that_fails_counts_the_turns_that_ended_while_the_log_was_full(
    own: VerifiedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has space again when the time of the batch is over."""
    # On a busy machine, the first input takes more than a second.
    monkeypatch.setattr(batches, "RUN_MAX", timedelta(seconds=4))
    monkeypatch.setattr("tailrace.generators.event_writer.FULL_WAIT_S", 0.1)
    batch = await post_batch(own.gateway, [build_inputs(2)[0], build_inputs(2, SILENT)[1]], parallel=2)
    append, ended_at = TurnLog.append, time.monotonic() + 5

    async def append_to_full(log: TurnLog, key: TurnKey, chain: Chain, entry: Entry, **named: Any) -> Chain:
        if isinstance(entry, Progress) and time.monotonic() < ended_at:
            raise LogFull("full")
        return await append(log, key, chain, entry, **named)

    monkeypatch.setattr(TurnLog, "append", append_to_full)
    async with own.running_generator():
        turn = await own.batch_ended(batch)
    assert failure_code(turn) == "deadline_exceeded"
    assert turn.progress is not None
    assert (turn.progress.done, turn.progress.failed) == (1, 0)


@pytest.mark.rule("R64")
async def test_a_batch_that_breaks_its_generators_fails(own: VerifiedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts with progress do not count. The other turns stay as they are, and the broken input is left out."""
    batch = await post_batch(own.gateway, build_inputs(3), parallel=1)
    decode, breaks = input_lines.decode_input, list[bytes]()

    def decode_or_break(line: bytes) -> Request:
        if b"b2x" in line:
            breaks.append(line)
            raise ZeroDivisionError
        return decode(line)

    monkeypatch.setattr(input_lines, "decode_input", decode_or_break)
    async with own.running_generator(attempts_max=2):
        turn = await own.batch_ended(batch)
        await own.wait_until_acknowledged()
    assert failure_code(turn) == "internal"
    # Once in each attempt.
    assert 3 <= len(breaks) <= turn.attempt
    assert turn.progress is not None
    assert (turn.progress.done, turn.progress.failed) == (2, 0)
    assert [await own.log.has_turn(ScopedKey.whole(child)) for child in own.turns(batch)] == [True, True, False]


async def test_a_batch_with_expired_inputs_fails(own: VerifiedSystem) -> None:
    """A turn that an earlier generator has submitted does not run on."""
    await own.shorten_lease(LEASE_S)
    batch = await post_batch(own.gateway, build_inputs(5, SILENT))
    # The entries are the batch's attempt and the first turn's request.
    await own.batch_killed_after(2)
    await own.connection.jetstream.purge_stream(BODIES)
    async with own.running_generator():
        assert failure_code(await own.batch_ended(batch)) == "blob_expired"
        await own.wait_until_acknowledged()
    assert [line["outcome"] for line in await read_results(own.gateway, batch)] == ["cancelled"] * 5


async def test_more_batches_than_a_generator_runs_at_once_all_end(own: VerifiedSystem) -> None:
    submitted = [await post_batch(own.gateway, build_inputs(3, tag=f"q{number}b")) for number in range(BATCHES_MAX + 2)]
    async with own.running_generator(concurrency=1):
        for batch in submitted:
            assert (await own.batch_ended(batch)).outcome == "completed"
        await own.wait_until_acknowledged()
    assert await own.calls() == 3 * len(submitted)


@pytest.mark.rule("R64")
async def test_a_batch_is_acknowledged_after_its_turns_have_ended(
    own: VerifiedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that lost the fence has not checked its turns: the batch is delivered again, although it has ended."""
    await own.shorten_lease(LEASE_S)
    await post_batch(own.gateway, build_inputs(3))
    run, runs = BatchRunner.run, list[TurnKey]()

    async def cancel_once(runner: BatchRunner, key: TurnKey) -> Turn:
        runs.append(key)
        if len(runs) == 1:
            await cancel(own.log, ScopedKey.whole(key), "request")
            raise FenceLost("cancelled")
        return await run(runner, key)

    monkeypatch.setattr(BatchRunner, "run", cancel_once)
    async with own.running_generator():
        await own.wait_until_acknowledged()
    assert len(runs) == 2


async def test_a_stopping_generator_does_not_wait_for_a_full_log(
    own: VerifiedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await post_batch(own.gateway, build_inputs(1))
    append, is_full = TurnLog.append, asyncio.Event()

    async def append_to_batch_only(log: TurnLog, key: TurnKey, *given: Any, **named: Any) -> Chain:
        if key != own.key(batch):
            is_full.set()
            raise LogFull("full")
        return await append(log, key, *given, **named)

    monkeypatch.setattr(TurnLog, "append", append_to_batch_only)
    running = asyncio.create_task(own.runner().run(own.key(batch)))
    await is_full.wait()
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=5)
    assert done
