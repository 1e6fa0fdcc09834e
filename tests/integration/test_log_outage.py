"""A gateway while nats-server is killed, frozen or full."""

import asyncio
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats import setup
from tailrace.gateway.streaming.response import EventStream
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.respond import JsonAnswer
from tailrace.gateway.turns.submit import UNCLEAR
from tailrace.proto.chain import Chain
from tailrace.proto.ids import TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog, fullness
from tests.harness.freeze import freeze
from tests.harness.raw_http import error_of
from tests.harness.readers import read, story_of
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

HI = {"message": "hi"}
MODEL = "claude-haiku-5-5"
MESSAGES = [{"role": "user", "content": "hi"}]
PARAMS = {"model": MODEL, "max_tokens": 9, "messages": MESSAGES}


async def until_accepted(gateway: Gateway) -> None:
    async def is_accepted() -> bool:
        return (await gateway.client.post("/v1/turns", json=HI)).status_code == 202

    await until(is_accepted)


async def test_without_nats_every_route_that_needs_it_is_503(own_server: NatsServer, new_gateway: NewGateway) -> None:
    """With Retry-After, within six seconds; the gateway recovers without a restart."""
    gateway = await new_gateway(own_server.url)
    client = gateway.client
    turn = (await client.post("/v1/turns", json=HI)).json()["turn"]
    await own_server.stop(SIGKILL)
    async with asyncio.timeout(6):
        answers = await asyncio.gather(
            client.post("/v1/turns", json=HI),
            client.post("/v1/turns", json=HI, headers={"idempotency-key": "k"}),
            client.post("/v1/turns", json=HI | {"session": "s"}),
            client.get(f"/v1/turns/{turn}"),
            client.get(f"/v1/turns/{turn}/events"),
            client.get(f"/v1/turns/{turn}/events?after=1&dialect=text"),
            client.get(f"/v1/turns/{turn}/events?after=1&dialect=anthropic"),
            client.post(f"/v1/turns/{turn}/cancel"),
            client.get("/v1/sessions"),
        )
    assert {error_of(answer)[:2] for answer in answers} == {(503, "log_unavailable"), (503, "persistence_unavailable")}
    assert {answer.headers["retry-after"] for answer in answers} == {"2"}
    await own_server.start()
    await until_accepted(gateway)
    assert (await client.get(f"/v1/turns/{turn}")).json()["turn"] == turn


# nats-py leaves its socket to a frozen server to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("is_frozen", [False, True], ids=["killed", "frozen"])
async def test_a_post_without_an_acknowledgement_is_503_after_its_timeout(
    own_server: NatsServer, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch, is_frozen: bool
) -> None:
    """The turn may be stored: the message says how to repeat the request safely."""
    monkeypatch.setattr("tailrace.proto.nats.jetstream_log.PUBLISH_TIMEOUT_S", 60)
    gateway = await new_gateway(own_server.url, accept_timeout_s=0.3)
    if is_frozen:
        freeze(own_server)
    else:
        await own_server.stop(SIGKILL)
    try:
        answer = await gateway.client.post("/v1/turns", json=HI)
    finally:
        if is_frozen:
            own_server.signal(SIGCONT)
    assert error_of(answer) == (503, "log_unavailable", UNCLEAR)
    assert "Idempotency-Key" in UNCLEAR
    # Without a key, the retry of an SDK would start a second turn.
    assert answer.headers["x-should-retry"] == "false"
    if not is_frozen:
        await own_server.start()
    await until_accepted(gateway)


POSTS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("/v1/turns", HI, {"accept": "text/event-stream"}),
    ("/v1/messages", PARAMS | {"stream": True}, {}),
    ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "stream": True}, {}),
    ("/v1/responses", {"model": MODEL, "input": "hi", "stream": True}, {}),
    ("/v1/responses", {"model": MODEL, "input": "hi", "background": True}, {}),
    ("/v1/messages", PARAMS, {}),
]
# Its response is no turn.
BATCH: tuple[str, dict[str, Any], dict[str, str]] = (
    "/v1/messages/batches",
    {"requests": [{"custom_id": "1", "params": PARAMS}]},
    {},
)


async def test_an_outage_after_the_acknowledgement_is_repeated_only_with_a_key(
    own_server: NatsServer, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, the SDK's own retry would start another turn, and the client would pay twice.

    The connection is lost once before, so that the live feed does not have the request.
    """
    gateway = await new_gateway(own_server.url, accept_timeout_s=20)
    posts = [*POSTS, BATCH]
    appended, is_down = 0, asyncio.Event()

    async def append(self: TurnLog, *arguments: Any) -> Chain:
        nonlocal appended
        chain = await original(self, *arguments)
        appended += 1
        if appended == 2 * len(posts):
            reconnected = asyncio.Event()
            forget = self.connection.on_reconnected(reconnected.set)
            await own_server.stop(SIGKILL)
            await own_server.start()
            await reconnected.wait()
            forget()
            await own_server.stop(SIGKILL)
            is_down.set()
        await is_down.wait()
        return chain

    original = TurnLog.append
    monkeypatch.setattr(TurnLog, "append", append)
    answers = await asyncio.gather(
        *(
            gateway.client.post(path, json=body, headers=headers | key)
            for path, body, headers in posts
            for key in ({}, {"idempotency-key": new_id()})
        )
    )
    assert {error_of(one)[:2] for one in answers} == {(503, "log_unavailable")}
    assert [one.headers.get("x-should-retry") for one in answers] == ["false", None] * len(posts)


async def test_a_lack_of_memory_after_the_acknowledgement_is_repeated_only_with_a_key(
    own_server: NatsServer, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the turn. The thread that cannot start may be that of a long text."""
    gateway = await new_gateway(own_server.url)

    async def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    for response in (EventStream, JsonAnswer):
        monkeypatch.setattr(response, "respond", fail)
    monkeypatch.setattr(TurnReader, "read", fail)
    answers = [
        await gateway.client.post(path, json=body, headers=headers | key)
        for path, body, headers in POSTS
        for key in ({}, {"idempotency-key": new_id()})
    ]
    assert {error_of(one)[:2] for one in answers} == {(503, "server_busy")}
    assert [one.headers.get("x-should-retry") for one in answers] == ["false", None] * len(POSTS)
    monkeypatch.undo()
    for one in answers:
        turn = (await gateway.client.get(f"/v1/turns/{one.headers['tailrace-turn']}")).json()
        assert turn["outcome"] == "running"


async def test_a_full_log_refuses_new_turns_and_lets_running_ones_end(
    tmp_path: Path, new_gateway: NewGateway, key: TurnKey
) -> None:
    """From 90 % on: the rest is for the turns that were accepted."""
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "test")
        await setup.apply(connection, bytes_max=500_000)
        log = TurnLog(connection)
        gateway = await new_gateway(server.url)
        writer, filler = Writer(log, key), Writer(log, TurnKey(key.tenant, TurnId(new_id())))
        await writer.open("a")
        await filler.open()
        while await fullness(connection) < 0.9:
            await filler.store_texts("a" * 10_000)

        async def find_refusal() -> httpx2.Response | None:
            answer = await gateway.client.post("/v1/turns", json=HI)
            return answer if answer.status_code != 202 else None

        answer = await until(find_refusal)
        assert answer is not None
        await writer.store_texts("b")
        await writer.end()
        ended = await read(gateway.client, key.turn)
        ready = (await gateway.client.get("/readyz")).json()
        await connection.close()
    assert error_of(answer)[:2] == (503, "log_full")
    assert answer.headers["retry-after"] == "2"
    assert (ready["log"]["ok"], ready["log"]["detail"][2:]) == (False, "% of the log's bytes are used")
    assert story_of(frame.sent for frame in ended.frames).text == "ab"
