"""Turns of one tenant do not make the turns of others wait."""

import asyncio
import json
from pathlib import Path

import httpx2

from tailrace.proto.chain import START
from tailrace.proto.entries import Message
from tailrace.proto.ids import Tenant, TurnId, TurnKey, child_id, new_id
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.records import GetTurn, TurnRecord, record_from_fold
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.harness.generator_in_loop import words
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_builder import NOON, request
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

LOUD, QUIET = Tenant("loud"), Tenant("quiet")


async def test_a_quiet_tenants_turn_starts_while_another_tenant_has_many_waiting(own: OwnSystem) -> None:
    """With four slots and the default share, three run turns of the loud tenant. Its last turns start after it."""
    async with own.running_generator(concurrency=4):
        slow = [await own.append_request("words=20 rate=20", LOUD) for _ in range(8)]
        await own.wait_for_open_streams(3)
        short = await own.answer("words=1 rate=0", QUIET)
        assert short.text == words(1)
        turns = await asyncio.gather(*map(own.wait_for_end, slow))
        assert [turn.text for turn in turns] == [words(20)] * len(slow)
        assert {turn.attempt for turn in turns} == {1}
        assert short.first_token_at is not None
        assert max(turn.first_token_at or short.first_token_at for turn in turns) > short.first_token_at
        await own.wait_until_acknowledged()


async def test_neither_turns_nor_history_of_a_tenant_wait_for_the_flood_of_another(
    own: OwnSystem, tmp_path: Path
) -> None:
    """Its turn ends before most of the flood, and its history is read while most of the flood is not recorded."""
    flood = 400
    async with (
        own.running_generator(concurrency=4),
        Persistence(own.server.url, tmp_path / "turns.db", batch_max=2) as persistence,
    ):
        loud = await asyncio.gather(*(own.append_request("words=1 rate=0", LOUD) for _ in range(flood)))
        key = await own.append_request("words=1 rate=0", QUIET)
        short = await own.wait_for_end(key)
        record = await persistence.ask(QUIET, "turn", GetTurn(key.turn), TurnRecord)
        behind = await consumer_backlog(own.connection, PERSISTENCE)
        turns = [await own.wait_for_end(one) for one in loud]
        await own.wait_until_acknowledged()
    assert record == record_from_fold(key, short)
    assert behind.waiting + behind.leased > flood / 2
    assert sum(turn.ended_at > short.ended_at for turn in turns if turn.ended_at and short.ended_at) > flood / 2
    assert {(turn.outcome, turn.attempt) for turn in turns} == {("completed", 1)}


async def test_a_post_that_waits_says_its_position_and_a_full_queue_refuses_it(
    own: OwnSystem, new_gateway: NewGateway
) -> None:
    gateway, full = [await new_gateway(own.server.url, queue_max=most) for most in (1000, 1)]
    answers: list[httpx2.Response] = []

    async def post(gateway: Gateway) -> httpx2.Response:
        answers.append(await gateway.client.post("/v1/turns", json={"message": "#sim words=9000 rate=5"}))
        return answers[-1]

    async def post_waiting() -> httpx2.Response | None:
        response = await post(gateway)
        return response if "tailrace-queue-position" in response.headers else None

    async def post_refused() -> httpx2.Response | None:
        response = await post(full)
        return response if response.status_code == 503 else None

    async with own.running_generator(concurrency=1):
        waiting = await until(post_waiting)
        assert waiting is not None
        async with gateway.client.stream("GET", waiting.json()["links"]["events"]) as events:
            start = await anext(line async for line in events.aiter_lines() if line.startswith("data: "))
        position = json.loads(start.removeprefix("data: "))["queue_position"]
        assert position == int(waiting.headers["tailrace-queue-position"]) > 0
        error = await until(post_refused)
        assert error is not None
        assert (error.json()["error"]["code"], int(error.headers["retry-after"])) == ("queue_full", 10)
        backlog = await consumer_backlog(own.connection, GENERATORS)
        assert backlog.waiting + backlog.leased == sum(answer.status_code == 202 for answer in answers)


async def test_a_single_turn_starts_before_the_waiting_turns_of_a_batch(own: OwnSystem) -> None:
    """Of the same tenant, which may use one of the two slots. The batch's turns were stored first."""
    batch = TurnId(new_id())
    children = [TurnKey(LOUD, child_id(batch, number)) for number in range(3)]
    for key in children:
        turn_request = request(messages=[Message("user", "#sim words=20 rate=20")], parent=batch)
        await own.log.append(key, START, turn_request)
    single = await own.append_request("words=1 rate=0", LOUD)
    async with own.running_generator(concurrency=2, tenant_share=0.5):
        turns = {key: await own.wait_for_end(key) for key in (*children, single)}
    assert {turn.outcome for turn in turns.values()} == {"completed"}
    order = sorted(turns, key=lambda key: turns[key].ended_at or NOON)
    assert order.index(single) == 1


async def test_a_stopping_generator_gives_waiting_turns_to_another_one(own: OwnSystem) -> None:
    async with own.running_generator(concurrency=1, grace_s=0.1):
        keys = [await own.append_request("words=30 rate=20", LOUD) for _ in range(3)]
        await own.wait_for_open_streams(1)
    async with own.running_generator(concurrency=4):
        for key in keys:
            assert (await own.wait_for_end(key)).text == words(30)
