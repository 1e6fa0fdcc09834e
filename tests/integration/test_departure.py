"""What a turn's last reader leaving means: nothing, unless the turn asked for it, and never while anybody reads."""

import asyncio
from typing import Any

from nats.aio.msg import Msg

from tailrace.proto import subjects
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.permissions import GATEWAY
from tailrace.proto.subjects import TurnKey
from tests.harness.processes import as_user
from tests.harness.readers import is_read, read, whole
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway


async def outcome(gateway: Gateway, turn: str) -> str:
    seen: dict[str, Any] = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    return str(seen["outcome"])


async def becomes(gateway: Gateway, turn: str, wanted: str) -> None:
    async def is_so() -> bool:
        return await outcome(gateway, turn) == wanted

    await until(is_so)


async def test_a_turn_that_asked_for_it_is_cancelled_when_its_last_reader_leaves(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, claude: str
) -> None:
    """`cancel`: nobody reads on, so nobody pays on. Another reader of the same gateway would have kept it alive."""
    body = {"message": "#sim words=2000 rate=50", "on_disconnect": "cancel"}
    turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
    first, second = (asyncio.create_task(read(gateway.client, turn, most=most)) for most in (3, 12))
    await first
    assert await outcome(gateway, turn) == "running"
    await second
    await becomes(gateway, turn, "cancelled")
    stored = await whole(system_log, TurnKey(tenant, TurnId(turn)))
    assert len(stored) < 100


async def test_the_reader_of_a_posts_own_stream_is_a_reader(gateway: Gateway) -> None:
    """Asking and reading in one request is leaving in one as well."""
    body = {"message": "#sim words=2000 rate=50", "on_disconnect": "cancel"}
    headers = {"accept": "text/event-stream"}
    async with gateway.client.stream("POST", "/v1/turns", json=body, headers=headers) as response:
        turn = response.headers["tailrace-turn"]
        await anext(response.aiter_raw())
    await becomes(gateway, turn, "cancelled")


async def test_a_reader_elsewhere_keeps_a_turn_alive(gateway: Gateway, second_gateway: Gateway) -> None:
    """Gateways ask each other before they cancel. When the last reader of all leaves, the turn goes."""
    body = {"message": "#sim words=2000 rate=50", "on_disconnect": "cancel"}
    turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
    elsewhere = asyncio.create_task(read(second_gateway.client, turn, most=60))
    await read(gateway.client, turn, most=3)
    await elsewhere
    await becomes(gateway, turn, "cancelled")
    said = (await gateway.client.get(f"/v1/turns/{turn}")).json()["text"].split()
    assert len(said) >= 50


async def test_a_reader_who_comes_back_within_the_grace_keeps_the_turn(gateway: Gateway) -> None:
    """`grace:N` is for a tab that is loaded anew; only who stays away for N seconds has left."""
    body = {"message": "#sim words=60 rate=50", "on_disconnect": "grace:1"}
    turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
    cursor = 0
    while (seen := await read(gateway.client, turn, cursor, most=20)).over != "ended":
        cursor = seen.frames[-1].seq
    assert await outcome(gateway, turn) == "completed"


async def test_each_departure_begins_the_grace_anew(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """Only who stays away for all of it has left: the wait of an earlier departure is over once somebody was back."""
    await Writer(log, key).ask(on_disconnect="grace:1")
    left_at = 0.0
    for _ in range(4):
        await read(lone_gateway.client, key.turn, most=1)
        left_at = asyncio.get_running_loop().time()
        await asyncio.sleep(0.4)  # what is tested is a time: less than the grace, and together more
    await becomes(lone_gateway, key.turn, "cancelled")
    assert asyncio.get_running_loop().time() - left_at >= 1


async def test_a_moment_of_silence_of_another_gateway_is_not_yet_a_no(
    lone_gateway: Gateway, nats_url: str, log: TurnLog, key: TurnKey
) -> None:
    """It may be busy with somebody's large body, and have a reader all the same."""
    asked: list[str] = []

    async def answer_late(message: Msg) -> None:
        asked.append(message.subject)
        if len(asked) > 1:
            await message.respond(b"")

    another = await Connection.open(as_user(nats_url, GATEWAY), "test-another")
    await another.subscribe(subjects.presence(key), answer_late)
    await another.client.flush()
    await Writer(log, key).ask(on_disconnect="cancel")
    await read(lone_gateway.client, key.turn, most=1)
    await until(lambda: len(asked) == 2)
    assert await outcome(lone_gateway, key.turn) == "running"
    await another.close()


async def test_a_turn_is_cancelled_after_its_grace(gateway: Gateway) -> None:
    """Nobody came back."""
    body = {"message": "#sim words=5000 rate=50", "on_disconnect": "grace:1"}
    turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
    await read(gateway.client, turn, most=3)
    await becomes(gateway, turn, "cancelled")
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    assert len(record["text"].split()) >= 30


async def test_a_turn_goes_on_without_readers_by_default(gateway: Gateway) -> None:
    """A tunnel, a closed laptop: the answer is there when its reader is."""
    turn = (await gateway.client.post("/v1/turns", json={"message": "#sim words=30 rate=100"})).json()["turn"]
    await read(gateway.client, turn, most=3)
    await becomes(gateway, turn, "completed")


async def test_who_only_looks_at_the_headers_is_no_reader(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """A HEAD request, of a link checker, say, is answered at once and cancels nothing by going away."""
    writer = Writer(log, key)
    await writer.ask(on_disconnect="cancel")
    answer = await asyncio.wait_for(raw_head(lone_gateway, f"/v1/turns/{key.turn}/events"), 5)
    assert answer.startswith(b"HTTP/1.1 200")
    assert not await is_read(log, key)
    assert await outcome(lone_gateway, key.turn) == "running"


async def raw_head(gateway: Gateway, path: str) -> bytes:
    """All that is sent until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    key = gateway.client.headers["authorization"]
    writer.write(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\nconnection: close\r\n\r\n".encode())
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_wish_of_a_newer_version_is_not_understood_and_harms_nobody(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """What is in the log was not checked by this gateway: it goes on, and so does the turn."""
    writer = Writer(log, key)
    await writer.ask(on_disconnect="grace:soon")
    await read(lone_gateway.client, key.turn, most=1)

    async def has_left() -> bool:
        return not await is_read(log, key)

    await until(has_left)
    assert await outcome(lone_gateway, key.turn) == "running"
    await writer.end("cancelled")
    assert (await read(lone_gateway.client, key.turn)).over == "ended"


async def test_a_gateway_does_not_wait_for_the_grace_of_its_turns_to_go_away(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey
) -> None:
    """A rolling restart must not take as long as a tab may stay closed. The turn goes on: nothing is lost by that."""
    gateway = await new_gateway(nats_url)
    await Writer(log, key).ask(on_disconnect="grace:600")
    await read(gateway.client, key.turn, most=1)

    async def has_left() -> bool:
        return not await is_read(log, key)

    await until(has_left)
    await asyncio.wait_for(gateway.stop(), 2)
    assert (await log.turn(key)).end is None
