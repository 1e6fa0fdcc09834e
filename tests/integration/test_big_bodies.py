"""Requests of up to 32 MB, through all of the system: pictures, documents and long texts go by claim check, whole."""

import asyncio
import base64
import hashlib
import os
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.http import slow_body
from tailrace.generators.continuation import build_call
from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto import blobs, subjects
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import BlobStore, Connection, TurnLog, streams
from tailrace.proto.runtime.byte_semaphore import ByteSemaphore
from tailrace.proto.subjects import BODIES, STREAM, TurnKey
from tests.harness import processes, turn_builder
from tests.harness.generator_in_loop import ended, words, working
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway

MB = 1_000_000


def picture(data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def random_base64(size: int) -> str:
    return base64.b64encode(os.urandom(size // 4 * 3)).decode()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def reference(text: str) -> dict[str, Any]:
    return {"tailrace:blob": sha256(text), "bytes": len(text.encode())}


def showing(data: str, line: str = "words=0 files=1") -> list[dict[str, Any]]:
    """A user's message with a picture; the answer begins with what the model was sent of it."""
    return [{"role": "user", "content": [picture(data), {"type": "text", "text": f"#sim {line} rate=0"}]}]


async def answered(gateway: Gateway, body: dict[str, Any]) -> dict[str, Any]:
    """The turn that was asked for, once it has ended."""
    asked = await gateway.client.post("/v1/turns", json=body)
    assert asked.status_code == 202, asked.text
    links = asked.json()["links"]
    await gateway.client.get(links["events"])
    told: dict[str, Any] = (await gateway.client.get(links["self"])).json()
    return told


async def forget(nats_url: str, tenant: Tenant, data: str) -> None:
    """Makes a blob expire, as its age does after a week."""
    connection = await Connection.open(nats_url, "test")
    await connection.jetstream.purge_stream(BODIES, subject=subjects.blob(tenant, sha256(data)))
    await connection.close()


@pytest.mark.rule("R33")
async def test_a_picture_of_30_mb_reaches_the_model_whole(gateway: Gateway) -> None:
    """The model tells the hash of what it was sent; whoever looks at the turn sees a reference, and may have it all."""
    data = random_base64(30 * MB)
    told = await answered(gateway, {"messages": showing(data)})
    assert (told["outcome"], told["text"]) == ("completed", sha256(data))
    shown, line = told["input"][0]["content"]
    assert shown == picture("") | {"source": picture("")["source"] | {"data": reference(data)}}
    assert line == {"type": "text", "text": "#sim words=0 files=1 rate=0"}
    blob = await gateway.client.get(f"/v1/blobs/{sha256(data)}")
    assert blob.content == data.encode()
    assert (blob.headers["content-type"], blob.headers["x-content-type-options"]) == (
        "application/octet-stream",
        "nosniff",
    )
    head = await gateway.client.head(f"/v1/blobs/{sha256(data)}")
    assert (head.status_code, head.content) == (200, b"")


async def test_a_long_text_reaches_the_model_whole(gateway: Gateway) -> None:
    """Alone or in a block, as the system prompt too: every word is counted by the model."""
    novel, rules = words(20_000, "novel"), words(10_000, "rules")
    message = {"role": "user", "content": f"{novel}\n#sim words=3 rate=0"}
    told = await answered(gateway, {"messages": [message], "system": rules})
    assert (told["text"], told["usage"]["input_tokens"]) == (words(3), 30_003)
    assert told["input"] == [{"role": "user", "content": [{"type": "text", "text": reference(message["content"])}]}]


async def test_a_session_brings_its_pictures_along(gateway: Gateway, system: System, tenant: Tenant) -> None:
    """The next question is asked with the picture in context; the same picture sent again is stored once."""
    data, other = random_base64(MB), random_base64(MB)
    first = await answered(gateway, {"messages": showing(data)})
    second = await answered(gateway, {"message": "#sim words=0 files=1", "session": first["session"]})
    third = await answered(gateway, {"messages": showing(data), "session": first["session"]})
    fourth = await answered(gateway, {"messages": showing(other), "session": first["session"]})
    seen = [told["text"] for told in (first, second, third, fourth)]
    assert seen == [sha256(data), sha256(data), sha256(data + data), sha256(data + data + other)]
    connection = await Connection.open(system.nats_url, "test")
    info = await connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.*")
    await connection.close()
    assert info.state.subjects == {subjects.blob(tenant, sha256(each)): 1 for each in (data, other)}


@pytest.mark.rule("R33")
async def test_a_turn_whose_picture_has_expired_fails_and_says_so(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, claude: str, tenant: Tenant
) -> None:
    """No model is asked about what it cannot see; nothing is tried again."""
    gateway, data = await new_gateway(own_server.url), random_base64(MB)
    asked = (await gateway.client.post("/v1/turns", json={"messages": showing(data)})).json()
    await forget(own_server.url, tenant, data)
    async with working(own_server.url, claude):
        turn = await ended(own_log, TurnKey(tenant, TurnId(asked["turn"])))
    assert (turn.outcome, turn.attempt) == ("failed", 1)
    assert turn.error is not None
    assert turn.error.code == "blob_expired"
    assert turn.error.message == "a picture, document or long text of the request has expired: send it again"


async def test_a_session_whose_picture_has_expired_is_not_gone_on_with(
    gateway: Gateway, system: System, tenant: Tenant
) -> None:
    """Its client hears so at once, and how to go on."""
    data = random_base64(MB)
    first = await answered(gateway, {"messages": showing(data)})
    await forget(system.nats_url, tenant, data)
    follow_up: dict[str, Any] = {"message": "#sim words=0 files=1", "session": first["session"]}
    refused = await gateway.client.post("/v1/turns", json=follow_up)
    assert (refused.status_code, refused.json()["error"]["code"]) == (410, "blob_expired")
    assert "`parent`" in refused.json()["error"]["message"]
    assert (await answered(gateway, follow_up | {"parent": None}))["text"] == sha256("")
    gone = await gateway.client.get(f"/v1/blobs/{sha256(data)}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "blob_not_found")
    # Sent again it is there again, for the old conversation too.
    await answered(gateway, {"messages": showing(data)})
    assert (await answered(gateway, follow_up | {"parent": first["turn"]}))["text"] == sha256(data)


async def test_a_generator_that_is_killed_hands_the_picture_over(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, claude: str, tenant: Tenant, tmp_path: Path
) -> None:
    """The next one asks with the same picture, and goes on in the middle of the answer."""
    gateway, data = await new_gateway(own_server.url), random_base64(2 * MB)
    body = {"messages": showing(data)}
    body["messages"][0]["content"][1]["text"] = "#sim words=60 files=1 rate=50"
    asked = (await gateway.client.post("/v1/turns", json=body)).json()
    key = TurnKey(tenant, TurnId(asked["turn"]))

    async def has_begun() -> bool:
        return len((await own_log.turn(key)).text) > 100

    async with processes.generator(tmp_path, own_server.url, claude) as first:
        await until(has_begun)
        await first.stop(SIGKILL)
    async with processes.generator(tmp_path, own_server.url, claude):
        turn: Turn = await ended(own_log, key)
    assert (turn.outcome, turn.attempt, turn.text) == ("completed", 2, f"{sha256(data)} {words(60)}")


@pytest.mark.rule("R33")
@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [picture(reference("x" * MB))]}]},  # type: ignore[arg-type]
        {"message": "hi", "system": [{"type": "text", "text": {"tailrace:blob": "x"}}]},
        {"message": "hi", "tools": [{"name": "look", "input_schema": {"tailrace:blob": 1}}]},
    ],
    ids=["messages", "system", "tools"],
)
async def test_a_clients_own_reference_is_refused(lone_gateway: Gateway, body: dict[str, Any]) -> None:
    """It would read what somebody else's request has stored; it is named, and what to send instead."""
    refused = await lone_gateway.client.post("/v1/turns", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")
    assert refused.json()["error"]["message"].startswith("The key `tailrace:blob` is reserved")


async def test_what_is_too_long_although_nothing_in_it_is_long_is_refused(lone_gateway: Gateway) -> None:
    """Nothing of it can be lifted out, and the log takes no entry above 8 MB."""
    texts = [{"type": "text", "text": "x" * 60_000}] * 150
    refused = await lone_gateway.client.post("/v1/turns", json={"messages": [{"role": "user", "content": texts}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_body_above_32_mb_is_refused(lone_gateway: Gateway) -> None:
    """Anthropic's own limit: what they would refuse is not carried there."""
    refused = await lone_gateway.client.post("/v1/turns", json={"message": "x" * 32 * 2**20})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_conversation_brings_no_more_than_a_body_may(system: System, new_gateway: NewGateway) -> None:
    """The same picture again is stored once, and stands in the call twice, which the model would refuse."""
    gateway = await new_gateway(system.nats_url, body_bytes_max=MB)
    asked: dict[str, Any] = {"messages": showing("x" * 600_000)}
    first = await answered(gateway, asked)
    refused = await gateway.client.post("/v1/turns", json=asked | {"session": first["session"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert "`parent`" in refused.json()["error"]["message"]
    assert (await answered(gateway, asked | {"session": first["session"], "parent": None}))["outcome"] == "completed"


async def test_a_conversation_has_no_more_values_than_a_body_may(gateway: Gateway) -> None:
    """Else many bodies that may come would add up to what may not."""
    block = {"type": "text", "text": "#sim words=1 rate=0", "citations": [0] * 60_000}
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": [block]}]}
    first = await answered(gateway, asked)
    refused = await gateway.client.post("/v1/turns", json=asked | {"session": first["session"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert "JSON values" in refused.json()["error"]["message"]


async def test_a_full_store_is_a_503(tmp_path: Path, new_gateway: NewGateway) -> None:
    """Like the full log: nothing is thrown out for what is new, and the client comes again."""
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "test")
        await streams.apply(connection, bytes_max=int(MB / streams.BODIES_SHARE))
        await connection.close()
        gateway = await new_gateway(server.url)
        refused = await gateway.client.post("/v1/turns", json={"messages": showing(random_base64(2 * MB))})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "log_full")
        assert "retry-after" in refused.headers
        small = await gateway.client.post("/v1/turns", json={"message": "hi"})
        assert small.status_code == 202
        await gateway.stop()


async def begin_to_send(gateway: Gateway, size: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has sent a part of its body, and then says nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        f"POST /v1/turns HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n".encode()
    )
    writer.write(b'{"message": "' + b"x" * (size // 2))
    await writer.drain()
    return reader, writer


async def test_no_more_large_bodies_are_read_than_there_is_room_for(nats_url: str, new_gateway: NewGateway) -> None:
    """The others wait, and after a while get a 503; small ones pass, and a client that leaves makes room."""
    gateway = await new_gateway(nats_url, large_bytes_max=MB, large_timeout_s=0.3)
    _, writer = await begin_to_send(gateway, MB)
    large = {"message": "x" * 600_000}

    async def refused() -> httpx2.Response | None:
        answer = await gateway.client.post("/v1/turns", json=large)
        return answer if answer.status_code == 503 else None

    answer = await until(refused)
    assert answer is not None
    assert (answer.json()["error"]["code"], "retry-after" in answer.headers) == ("server_busy", True)
    assert (await gateway.client.post("/v1/turns", json={"message": "small"})).status_code == 202
    writer.transport.abort()
    assert (await gateway.client.post("/v1/turns", json=large)).status_code == 202


async def test_a_sender_that_falls_silent_gives_its_room_back(
    monkeypatch: pytest.MonkeyPatch, nats_url: str, new_gateway: NewGateway
) -> None:
    """It is told 408 long before its body's time is over, and the next large body is read."""
    monkeypatch.setattr(slow_body, "WINDOW_S", 0.5)
    gateway = await new_gateway(nats_url, large_bytes_max=MB, large_timeout_s=10)
    reader, writer = await begin_to_send(gateway, MB)
    large = await gateway.client.post("/v1/turns", json={"message": "x" * 600_000})
    assert large.status_code == 202
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"body_timeout"' in answer
    writer.close()


async def test_a_body_of_unknown_size_takes_the_room_of_the_largest(nats_url: str, new_gateway: NewGateway) -> None:
    """Sent in chunks, it may become as large as a body may; it is read when there is that much room."""
    gateway = await new_gateway(nats_url, large_bytes_max=MB, body_bytes_max=MB, large_timeout_s=0.3)
    _, writer = await begin_to_send(gateway, 600_000)

    async def pieces(size: int) -> Any:
        yield b'{"message": "'
        yield b"x" * size
        yield b'"}'

    async def status(size: int) -> int:
        headers = {"content-type": "application/json"}
        return (await gateway.client.post("/v1/turns", content=pieces(size), headers=headers)).status_code

    async def is_held() -> bool:
        return await status(300_000) == 503

    await until(is_held)
    assert await status(1000) == 202
    writer.transport.abort()
    assert await status(300_000) == 202


async def test_who_listens_to_an_answer_takes_no_room_any_more(system: System, new_gateway: NewGateway) -> None:
    """The body of a stream's request is let go of when its answer begins, not when it ends."""
    gateway = await new_gateway(system.nats_url, large_bytes_max=MB, large_timeout_s=0.5)
    body = {"messages": showing(random_base64(900_000), "words=1 wait=5")}
    async with gateway.client.stream("POST", "/v1/turns", json=body, headers={"accept": "text/event-stream"}) as one:
        assert one.status_code == 200
        assert (await gateway.client.post("/v1/turns", json=body)).status_code == 202


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_who_waits_for_the_model_takes_no_room_any_more(
    system: System, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant, is_streamed: bool
) -> None:
    """Before the first word of a stream, and until all of an answer that comes at once: its body is in the log."""
    gateway = await new_gateway(system.nats_url, large_bytes_max=MB, large_timeout_s=0.5)
    body = {"messages": showing(random_base64(900_000), "words=1 wait=5")}
    asked = body | {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": is_streamed}
    waiting = asyncio.create_task(gateway.client.post("/v1/messages", json=asked))

    async def is_accepted() -> bool:
        info = await system_log._connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.{tenant}.>")
        return bool(info.state.subjects)

    await until(is_accepted)
    assert (await gateway.client.post("/v1/turns", json=body)).status_code == 202
    assert not waiting.done()
    waiting.cancel()


async def test_no_more_is_held_for_calls_than_there_is_room_for(connection: Connection, tenant: Tenant) -> None:
    """The next large call waits for the one before it; a call without blobs waits for nobody."""
    bodies, room = BlobStore(connection), ByteSemaphore(MB)
    data = random_base64(700_000)
    call = build_call(turn_builder.request(messages=[Message("user", [picture(data)])]))
    entry, lifted = blobs.lift(call)
    await bodies.put(tenant, lifted)
    checkroom = BlobLoader(bodies, room)

    async def ask() -> Any:
        async with checkroom.load(tenant, entry) as whole:
            return whole

    async with checkroom.load(tenant, entry) as first:
        waiting = asyncio.create_task(ask())
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        async with checkroom.load(tenant, build_call(turn_builder.request())) as small:
            assert small == build_call(turn_builder.request())
    assert [first, await waiting] == [call, call]
    assert room.free == MB


async def test_a_text_takes_room_as_often_as_it_is_told(connection: Connection, tenant: Tenant) -> None:
    """It is one blob, and stands in the call seven times."""
    bodies, room = BlobStore(connection), ByteSemaphore(MB)
    call = build_call(turn_builder.request(messages=[Message("user", [picture("x" * 100_000)] * 7)]))
    entry, lifted = blobs.lift(call)
    await bodies.put(tenant, lifted)
    async with BlobLoader(bodies, room).load(tenant, entry) as whole:
        assert (len(lifted), whole, room.free) == (1, call, MB - 700_000)


async def test_room_is_given_back_when_a_blob_is_gone(connection: Connection, tenant: Tenant) -> None:
    """Or a few expired pictures would stop all large calls."""
    room = ByteSemaphore(MB)
    entry, _ = blobs.lift(build_call(turn_builder.request(messages=[Message("user", [picture(random_base64(MB))])])))
    with pytest.raises(BackendError) as gone:
        async with BlobLoader(BlobStore(connection), room).load(tenant, entry):
            pass
    assert (gone.value.code, room.free) == ("blob_expired", MB)
