"""Requests of up to 32 MB: images, documents and long texts as blobs, and the memory of gateways and generators."""

import asyncio
import base64
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats import setup
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.generators.backends import Call
from tailrace.generators.continuation import build_call
from tailrace.generators.load_blobs import COPIES, BlobLoader
from tailrace.proto import blobs, long_strings, subjects
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import BlobStore, Connection, TurnLog, stream_configs
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.subjects import BODIES, STREAM
from tailrace.protocols.anthropic import request as messages_request
from tailrace.protocols.common import file_block
from tests.harness import turn_builder
from tests.harness.generator_in_loop import failure_code, words
from tests.harness.loop_pause import longest_pause
from tests.harness.own_system import OwnSystem
from tests.harness.raw_http import RawConnection
from tests.harness.requests import run_turn
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, on_shared_loop

pytestmark = pytest.mark.usefixtures("emptied_bodies")

MB = 1_000_000


def image(data: object) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def random_base64(size: int) -> str:
    return base64.b64encode(os.urandom(size // 4 * 3)).decode()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def reference(text: str) -> dict[str, Any]:
    return {"tailrace:blob": sha256(text), "bytes": len(text.encode())}


def with_image(data: str, line: str = "words=0 files=1 rate=0") -> dict[str, Any]:
    """Returns a request with an image; the answer begins with the hash of all images that the model received."""
    return {"messages": [{"role": "user", "content": [image(data), {"type": "text", "text": f"#sim {line}"}]}]}


ANOTHER = {"message": "#sim words=0 files=1"}


async def refusal(gateway: Gateway, body: dict[str, Any]) -> tuple[int, str, str]:
    """Returns status, code and message of a refused request."""
    answer = await gateway.client.post("/v1/turns", json=body)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


async def expire(nats_url: str, tenant: Tenant, data: str) -> None:
    """Removes a blob, as its age does after a week."""
    connection = await Connection.open(nats_url, "test")
    await connection.jetstream.purge_stream(BODIES, subject=subjects.blob(tenant, sha256(data)))
    await connection.close()


@pytest.mark.rule("R33")
async def test_an_image_of_30_mb_reaches_the_model_whole(gateway: Gateway) -> None:
    """The turn's input has a reference; the blob can be downloaded."""
    data = random_base64(30 * MB)
    turn = await run_turn(gateway, **with_image(data))
    assert (turn["outcome"], turn["text"]) == ("completed", sha256(data))
    assert turn["input"][0]["content"][0] == image(reference(data))
    path = f"/v1/blobs/{sha256(data)}"
    blob, head = await gateway.client.get(path), await gateway.client.head(path)
    assert blob.content == data.encode()
    assert blob.headers["content-type"] == "application/octet-stream"
    assert blob.headers["x-content-type-options"] == "nosniff"
    assert (head.status_code, head.content) == (200, b"")


async def test_a_long_text_reaches_the_model_whole(gateway: Gateway) -> None:
    novel, rules = words(20_000, "novel"), words(10_000, "rules")
    content = f"{novel}\n#sim words=3 rate=0"
    turn = await run_turn(gateway, messages=[{"role": "user", "content": content}], system=rules)
    assert (turn["text"], turn["usage"]["input_tokens"]) == (words(3), 30_003)
    assert turn["input"] == [{"role": "user", "content": [{"type": "text", "text": reference(content)}]}]


async def test_a_session_sends_its_images_again_and_stores_each_once(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    data, other = random_base64(MB), random_base64(MB)
    first = await run_turn(gateway, **with_image(data))
    following = [ANOTHER, with_image(data), with_image(other)]
    turns = [first, *[await run_turn(gateway, **body | {"session": first["session"]}) for body in following]]
    assert [turn["text"] for turn in turns] == [
        sha256(data),
        sha256(data),
        sha256(data + data),
        sha256(data + data + other),
    ]
    info = await system_log.connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.*")
    assert info.state.subjects == {subjects.blob(tenant, sha256(each)): 1 for each in (data, other)}


@pytest.mark.rule("R33")
async def test_a_turn_whose_image_has_expired_fails_without_a_retry(
    own: OwnSystem, own_gateway: Gateway, tenant: Tenant
) -> None:
    data = random_base64(MB)
    accepted = (await own_gateway.client.post("/v1/turns", json=with_image(data))).json()
    await expire(own.server.url, tenant, data)
    async with own.running_generator():
        turn = await own.wait_for_end(TurnKey(tenant, TurnId(accepted["turn"])))
    assert (failure_code(turn), turn.attempt) == ("blob_expired", 1)


async def test_a_session_whose_image_has_expired_is_410_until_the_image_is_sent_again(
    gateway: Gateway, system: System, tenant: Tenant
) -> None:
    data = random_base64(MB)
    first = await run_turn(gateway, **with_image(data))
    await expire(system.nats_url, tenant, data)
    follow_up = {**ANOTHER, "session": first["session"]}
    status, code, message = await refusal(gateway, follow_up)
    assert (status, code, "`parent`" in message) == (410, "blob_expired", True)
    assert (await run_turn(gateway, **{**follow_up, "parent": None}))["text"] == sha256("")
    gone = await gateway.client.get(f"/v1/blobs/{sha256(data)}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "blob_not_found")
    await run_turn(gateway, **with_image(data))
    assert (await run_turn(gateway, **{**follow_up, "parent": first["turn"]}))["text"] == sha256(data)


async def test_a_takeover_sends_the_image_again(own: OwnSystem, own_gateway: Gateway, tenant: Tenant) -> None:
    await own.shorten_lease(0.2)
    data = random_base64(2 * MB)
    body = with_image(data, "words=60 files=1 rate=50")
    key = TurnKey(tenant, TurnId((await own_gateway.client.post("/v1/turns", json=body)).json()["turn"]))
    assert await own.run_and_kill_after(10)
    async with own.running_generator():
        turn = await own.wait_for_end(key)
    assert (turn.outcome, turn.attempt, turn.text) == ("completed", 2, f"{sha256(data)} {words(60)}")


BASE64 = "data:text/plain;base64,"
PERCENT = {"type": "file", "mediaType": "text/plain", "url": "data:text/plain," + "%41" * MB}
IN_CHAT = {"type": "file", "file": {"file_data": BASE64 + "QUFB" * MB}}
IN_RESPONSE = {"type": "input_file", "filename": "a.txt", "file_data": BASE64 + "QUFB" * MB}
DATA_URLS = {
    "/api/chat": {"messages": [{"role": "user", "parts": [PERCENT]}]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [IN_CHAT]}]},
    "/v1/responses": {"input": [{"role": "user", "content": [IN_RESPONSE]}]},
}


@on_shared_loop
@pytest.mark.parametrize("path", DATA_URLS)
async def test_a_large_data_url_is_decoded_outside_of_the_event_loop(
    shared_gateway: Gateway, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 MB took from 0.2 to 7 seconds, in which the gateway wrote no stream. A piece holds the lock for a moment."""
    decoders = {(base64, "b64decode"), (file_block, "unquote_to_bytes")}
    decoded: list[tuple[bool, int]] = []

    def record(decode: Callable[..., bytes]) -> Callable[..., bytes]:
        def decode_and_record(text: str, **options: bool) -> bytes:
            decoded.append((threading.current_thread() is threading.main_thread(), len(text)))
            return decode(text, **options)

        return decode_and_record

    for module, name in decoders:
        monkeypatch.setattr(module, name, record(getattr(module, name)))
    async with shared_gateway.client.stream("POST", path, json=DATA_URLS[path]):
        assert {is_in_loop for is_in_loop, _ in decoded} == {False}
    assert max(size for _, size in decoded) <= long_strings.PIECE_BYTES


@on_shared_loop
async def test_a_large_prompt_of_the_messages_api_is_converted_outside_of_the_event_loop(
    shared_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion of 16,000 messages takes 0.1 s, in which the gateway would write no stream."""
    is_in_loop: list[bool] = []

    def build_turn(*arguments: Any) -> NewTurn:
        is_in_loop.append(threading.current_thread() is threading.main_thread())
        return original(*arguments)

    original = messages_request.build_turn
    monkeypatch.setattr("tailrace.protocols.anthropic.routes.build_turn", build_turn)
    prompt = {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": True}
    for text in ("short", "long " * MB):
        body = {**prompt, "messages": [{"role": "user", "content": text}]}
        async with shared_gateway.client.stream("POST", "/v1/messages", json=body) as response:
            assert response.status_code == 200
    assert is_in_loop == [True, False]


async def test_other_requests_are_served_while_a_chat_of_24_000_messages_is_rendered(gateway: Gateway) -> None:
    """The loop stood still for four fifths of the time that the response took."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": f"message {index}"} for index in range(24_000)]
    question = {"role": "user", "content": "#sim words=1"}
    turn = await run_turn(gateway, messages=[*messages, question], session="long", create_session=True)
    assert turn["outcome"] == "completed"
    reading = asyncio.create_task(gateway.client.get("/api/chat/long/messages"))
    paused = await longest_pause(reading)
    shown = (await reading).json()
    assert [shown[0]["parts"][0]["text"], len(shown)] == ["message 0", 24_002]
    assert paused < 1 / 3


def message_of(*content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*content]}]}


RESERVED = (400, "request_invalid", "The key `tailrace:blob` is reserved")
TOO_LARGE = (413, "body_too_large", "")
REFUSED: dict[str, tuple[dict[str, Any], tuple[int, str, str]]] = {
    # A reference would read a blob of another request.
    "reference in messages": (message_of(image(reference("x" * MB))), RESERVED),
    "reference in system": (
        {"message": "hi", "system": [{"type": "text", "text": {"tailrace:blob": "x"}}]},
        RESERVED,
    ),
    "reference in tools": (
        {"message": "hi", "tools": [{"name": "look", "input_schema": {"tailrace:blob": 1}}]},
        RESERVED,
    ),
    "reference in output_config": (
        {"messages": [{"role": "user", "content": "hi", "output_config": reference("x" * MB)}]},
        RESERVED,
    ),
    # No text is long enough to be a blob, and the log accepts entries of up to 8 MB.
    "many short texts": (message_of(*[{"type": "text", "text": "x" * 60_000}] * 150), TOO_LARGE),
    # Anthropic's limit.
    "32 MB": ({"message": "x" * 32 * 2**20}, TOO_LARGE),
}


@on_shared_loop
@pytest.mark.parametrize("case", REFUSED)
async def test_a_request_that_cannot_be_stored_is_refused(shared_gateway: Gateway, case: str) -> None:
    body, (status, code, message) = REFUSED[case]
    refused = await refusal(shared_gateway, body)
    assert refused[:2] == (status, code)
    assert refused[2].startswith(message)


@pytest.mark.parametrize(
    ("body", "settings", "message"),
    [
        (with_image("x" * 600_000), {"body_bytes_max": MB}, "`parent`"),
        (message_of({"type": "text", "text": "#sim words=1 rate=0", "citations": [0] * 60_000}), {}, "JSON values"),
    ],
    ids=["bytes", "values"],
)
async def test_a_conversation_has_the_limits_of_a_body(
    system: System,
    generator: object,
    persistence: object,
    new_gateway: NewGateway,
    body: Any,
    settings: Any,
    message: str,
) -> None:
    """A repeated image is stored once, and is in the call twice."""
    gateway = await new_gateway(system.nats_url, **settings)
    session = (await run_turn(gateway, **body))["session"]
    status, code, reason = await refusal(gateway, {**body, "session": session})
    assert (status, code, message in reason) == (413, "body_too_large", True)
    assert (await run_turn(gateway, **{**body, "session": session, "parent": None}))["outcome"] == "completed"


async def test_a_full_store_is_503(tmp_path: Path, new_gateway: NewGateway) -> None:
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "test")
        await setup.apply(connection, bytes_max=int(MB / stream_configs.BODIES_SHARE))
        await connection.close()
        gateway = await new_gateway(server.url)
        refused = await gateway.client.post("/v1/turns", json=with_image(random_base64(2 * MB)))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "log_full")
        assert "retry-after" in refused.headers
        assert (await gateway.client.post("/v1/turns", json={"message": "hi"})).status_code == 202
        await gateway.stop()


LARGE = {"message": "x" * 600_000}


@asynccontextmanager
async def client_in_mid_body(gateway: Gateway, size: int) -> AsyncIterator[RawConnection]:
    """A client that has sent half of a large body."""
    async with RawConnection.open(gateway.port) as raw:
        head = f"POST /v1/turns HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        await raw.send(f"{head}content-type: application/json\r\ncontent-length: {size}\r\n\r\n")
        await raw.send('{"message": "' + "x" * (size // 2))
        yield raw


async def test_large_bodies_wait_for_memory_and_then_get_503(nats_url: str, new_gateway: NewGateway) -> None:
    """Small bodies pass; a client that disconnects frees its memory."""
    gateway = await new_gateway(nats_url, large_bytes_max=MB, large_timeout_s=0.3)
    async with client_in_mid_body(gateway, MB) as raw:

        async def find_refusal() -> httpx2.Response | None:
            answer = await gateway.client.post("/v1/turns", json=LARGE)
            return answer if answer.status_code == 503 else None

        answer = await until(find_refusal)
        assert answer is not None
        assert (answer.json()["error"]["code"], "retry-after" in answer.headers) == ("server_busy", True)
        assert (await gateway.client.post("/v1/turns", json={"message": "small"})).status_code == 202
        raw.writer.transport.abort()
        assert (await gateway.client.post("/v1/turns", json=LARGE)).status_code == 202


async def is_stored(log: TurnLog, tenant: Tenant) -> bool:
    info = await log.connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.{tenant}.>")
    return bool(info.state.subjects)


ANTHROPIC = {"model": "claude-haiku-5-5", "max_tokens": 9}


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/turns", {}), ("/v1/messages", {**ANTHROPIC, "stream": True}), ("/v1/messages", ANTHROPIC)],
    ids=["stream", "stream before its first event", "json"],
)
async def test_the_memory_of_a_body_is_free_while_its_turn_runs(
    system: System, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant, path: str, fields: dict[str, Any]
) -> None:
    gateway = await new_gateway(system.nats_url, large_bytes_max=MB, large_timeout_s=0.5)
    body = with_image(random_base64(900_000), "words=1 wait=5 rate=0")
    headers = {"accept": "text/event-stream"} if path == "/v1/turns" else {}
    waiting = asyncio.create_task(gateway.client.post(path, json=body | fields, headers=headers))
    await until(lambda: is_stored(system_log, tenant))
    assert (await gateway.client.post("/v1/turns", json=body)).status_code == 202
    assert not waiting.done()
    waiting.cancel()


def call_with(*data: str) -> Call:
    return build_call(turn_builder.request(messages=[Message("user", [image(each) for each in data])]))


async def test_a_call_takes_memory_for_each_of_its_blobs(connection: Connection, tenant: Tenant) -> None:
    """A repeated one, too. A small call takes none, and all memory is free afterwards."""
    store, memory = BlobStore(connection), FairSemaphore(COPIES * 700_000)
    call, small = call_with(*["x" * 100_000] * 7), build_call(turn_builder.request())
    entry, contents = blobs.lift(call)
    await store.put(tenant, contents)
    loader = BlobLoader(store, memory)
    async with loader.load(tenant, entry) as whole, loader.load(tenant, small) as loaded:
        assert (len(contents), whole, loaded, memory.free) == (1, call, small, 0)
    assert memory.free == COPIES * 700_000


async def test_an_expired_blob_frees_its_memory(connection: Connection, tenant: Tenant) -> None:
    memory = FairSemaphore(MB)
    entry, _ = blobs.lift(call_with(random_base64(MB)))
    with pytest.raises(BackendError) as gone:
        async with BlobLoader(BlobStore(connection), memory).load(tenant, entry):
            pass
    assert (gone.value.code, memory.free) == ("blob_expired", MB)
