"""`on_disconnect`: what happens to a turn when its last reader disconnects."""

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

from tailrace.features.departures import gateway as departures
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.ownership import ScopedKey
from tests.harness.processes import as_user
from tests.harness.readers import is_read, read
from tests.harness.turn_writer import Writer
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway

CANCEL = {"message": "#sim words=2000 rate=50", "on_disconnect": "cancel"}
MESSAGES = {"messages": [{"role": "user", "content": CANCEL["message"]}], "stream": True, "on_disconnect": "cancel"}
PROTOCOLS: dict[str, dict[str, object]] = {
    "/v1/turns": {**CANCEL},
    "/v1/messages": {"model": "claude-sonnet-5-5", "max_tokens": 4000, **MESSAGES},
    "/v1/chat/completions": MESSAGES,
}


async def post(gateway: Gateway, **body: object) -> str:
    return str((await gateway.client.post("/v1/turns", json=CANCEL | body)).json()["turn"])


async def record(gateway: Gateway, turn: str) -> dict[str, Any]:
    return dict((await gateway.client.get(f"/v1/turns/{turn}")).json())


async def wait_for_outcome(gateway: Gateway, turn: str, outcome: str) -> int:
    """Waits for the outcome; returns the number of words of the answer."""

    async def has_ended() -> bool:
        return bool((await record(gateway, turn))["outcome"] != "running")

    await until(has_ended)
    ended = await record(gateway, turn)
    assert ended["outcome"] == outcome
    return len(ended["text"].split())


async def test_a_turn_continues_without_readers_by_default(gateway: Gateway) -> None:
    answer = await gateway.client.post("/v1/turns", json={"message": "#sim words=30 rate=100"})
    await read(gateway.client, answer.json()["turn"], most=3)
    assert await wait_for_outcome(gateway, answer.json()["turn"], "completed") == 30


async def test_cancel_applies_when_the_last_reader_of_all_gateways_disconnects(
    gateway: Gateway, second_gateway: Gateway
) -> None:
    turn = await post(gateway)
    elsewhere = asyncio.create_task(read(second_gateway.client, turn, most=60))
    await asyncio.gather(*(read(gateway.client, turn, most=most) for most in (3, 12)))
    assert (await record(gateway, turn))["outcome"] == "running"
    await elsewhere
    assert 50 <= await wait_for_outcome(gateway, turn, "cancelled") < 200


async def test_an_outage_of_nats_only_delays_the_cancellation(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer would go on, and be paid, without a reader."""
    failures = []

    async def fail_once(*_: object) -> None:
        failures.append("no answer")
        monkeypatch.setattr(departures, "cancel", cancel)
        raise LogUnavailable("no answer")

    monkeypatch.setattr(departures, "cancel", fail_once)
    turn = await post(gateway)
    await read(gateway.client, turn, most=3)
    await wait_for_outcome(gateway, turn, "cancelled")
    assert failures == ["no answer"]


@pytest.mark.parametrize("path", PROTOCOLS)
async def test_the_stream_of_a_post_is_a_reader(gateway: Gateway, path: str) -> None:
    headers = {"accept": "text/event-stream"}
    async with gateway.client.stream("POST", path, json=PROTOCOLS[path], headers=headers) as response:
        turn = response.headers["tailrace-turn"]
        await anext(response.aiter_raw())
    await wait_for_outcome(gateway, turn, "cancelled")


async def test_a_head_request_is_not_a_reader(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    await Writer(log, key).store_request(on_disconnect="cancel")
    reader, writer = await asyncio.open_connection("127.0.0.1", lone_gateway.port)
    head = f"HEAD /v1/turns/{key.turn}/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode())
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200")
    writer.close()
    assert not await is_read(log, key)
    assert (await record(lone_gateway, key.turn))["outcome"] == "running"


async def test_a_reader_that_reconnects_within_the_grace_period_keeps_the_turn(gateway: Gateway) -> None:
    turn = await post(gateway, message="#sim words=60 rate=50", on_disconnect="grace:1")
    cursor = 0
    while (received := await read(gateway.client, turn, cursor, most=20)).over != "ended":
        cursor = received.frames[-1].seq
    assert await wait_for_outcome(gateway, turn, "completed") == 60


async def test_each_disconnect_begins_a_new_grace_period(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    await Writer(log, key).store_request(on_disconnect="grace:1")
    disconnected_at, now = 0.0, asyncio.get_running_loop().time
    for _ in range(4):
        await read(lone_gateway.client, key.turn, most=1)
        disconnected_at = now()
        # Less than the grace period; together more.
        await asyncio.sleep(0.4)
    await wait_for_outcome(lone_gateway, key.turn, "cancelled")
    assert now() - disconnected_at >= 1


async def test_a_gateway_that_replies_late_is_asked_again_for_its_readers(
    lone_gateway: Gateway, nats_url: str, log: TurnLog, key: TurnKey
) -> None:
    requests: list[str] = []

    async def reply_to_the_second(message: Msg) -> None:
        requests.append(message.subject)
        if len(requests) > 1:
            await message.respond(b"")

    another = await Connection.open(as_user(nats_url, GATEWAY), "test-another")
    await another.subscribe(subjects.presence(key), reply_to_the_second)
    await another.client.flush()
    await Writer(log, key).store_request(on_disconnect="cancel")
    await read(lone_gateway.client, key.turn, most=1)
    await until(lambda: len(requests) == 2)
    assert (await record(lone_gateway, key.turn))["outcome"] == "running"
    await another.close()


async def test_an_unknown_policy_in_the_log_is_ignored(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """A newer version may have stored it."""
    writer = Writer(log, key)
    await writer.store_request(on_disconnect="grace:soon")
    await read(lone_gateway.client, key.turn, most=1)
    await until_equal(lambda: is_read(log, key), False)
    assert (await record(lone_gateway, key.turn))["outcome"] == "running"
    await writer.end("cancelled")
    assert (await read(lone_gateway.client, key.turn)).over == "ended"


async def test_a_draining_gateway_does_not_wait_for_a_grace_period(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey
) -> None:
    gateway = await new_gateway(nats_url)
    await Writer(log, key).store_request(on_disconnect="grace:600")
    await read(gateway.client, key.turn, most=1)
    await until_equal(lambda: is_read(log, key), False)
    await asyncio.wait_for(gateway.stop(), 10)
    assert (await log.read_turn(ScopedKey.whole(key))).end is None
