"""POST /v1/messages/count_tokens: a generator asks Anthropic's API and its answer is returned."""

import base64
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import BODIES
from tests.harness import processes
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway, on_shared_loop

NO_LISTS = (b"5", b"true", b"null", b'"x"', b"{}")
COUNT_REQUEST = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=gateway.url) as sdk:
        yield sdk


@pytest.mark.rule("R36")
async def test_anthropic_sdk_counts_a_prompt(sdk: anthropic.AsyncAnthropic) -> None:
    """System prompt and messages, as the API counts them (the simulated one counts words)."""
    counted = await sdk.messages.count_tokens(
        model="claude-opus-5-5",
        system="Be very brief.",
        messages=[{"role": "user", "content": [{"type": "text", "text": "one two three"}]}],
        tools=[{"name": "look", "input_schema": {"type": "object"}}],
        thinking={"type": "adaptive"},
    )
    assert counted.input_tokens == 6


@pytest.mark.parametrize("model", ["claude-haiku-4-5-latest", "gpt-4o"])
async def test_prompt_is_counted_for_the_resolved_model(
    system: System, gateway: Gateway, new_gateway: NewGateway, model: str
) -> None:
    """The API knows neither of these names; it gets the model's own."""
    named = await new_gateway(system.nats_url, model_aliases="gpt-4o=claude-sonnet-4-5-20250929")
    answer = await named.client.post("/v1/messages/count_tokens", json={**COUNT_REQUEST, "model": model})
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 3})


async def test_error_of_the_api_is_returned(sdk: anthropic.AsyncAnthropic) -> None:
    """400 with Anthropic's message."""
    with pytest.raises(anthropic.BadRequestError) as refused:
        await sdk.messages.count_tokens(model="claude-sonnet-5-5", messages=[])
    assert "at least one message is required" in str(refused.value)


@on_shared_loop
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model": 5, "messages": []}', "request_invalid"),
        *((b'{"model": "claude-sonnet-5-5", "messages": %b}' % one, "request_invalid") for one in NO_LISTS),
        (b'{"model": "claude-sonnet-5-5", "messages": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "json_invalid"),
    ],
)
async def test_invalid_body_is_refused(shared_gateway: Gateway, body: bytes, code: str) -> None:
    """As far as the shared_gateway reads it; the API validates the rest."""
    answer = await shared_gateway.client.post(
        "/v1/messages/count_tokens", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_without_a_generator_counting_is_unavailable(lone_gateway: Gateway) -> None:
    """503 at once, with Retry-After."""
    answer = await lone_gateway.client.post("/v1/messages/count_tokens", json=COUNT_REQUEST)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "generators_unavailable")
    assert answer.headers["retry-after"] == "2"


async def test_prompt_of_30_mb_is_counted(gateway: Gateway, tenant: Tenant, system_log: TurnLog, claude: str) -> None:
    """As large as a turn's may be: images and long texts reach the API as blobs."""
    data = base64.b64encode(os.urandom(22_000_000)).decode()
    text = "six " * 20_000
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": text}]
    body = {**COUNT_REQUEST, "messages": [{"role": "user", "content": content}], "thinking": {"type": "adaptive"}}
    answer = await gateway.client.post("/v1/messages/count_tokens", json=body)
    assert (answer.status_code, answer.json()["input_tokens"] >= 20_000) == (200, True), answer.text
    async with httpx2.AsyncClient(trust_env=False) as asking:
        assert (await asking.get(f"{claude}/_sim/last")).json()["body"] == body
    bodies = await system_log.connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.*")
    assert len(bodies.state.subjects or {}) == 2


@pytest.mark.rule("R130")
async def test_prompt_with_tool_ids_of_another_vendor_is_counted(gateway: Gateway, claude: str) -> None:
    """As a model call, it has valid ids."""
    call = {"type": "tool_use", "id": "functions.f:0", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "functions.f:0", "content": "ok"}
    contents: list[Any] = ["hi", [call], [result]]
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    answer = await gateway.client.post("/v1/messages/count_tokens", json={**COUNT_REQUEST, "messages": messages})
    assert answer.status_code == 200, answer.text
    async with httpx2.AsyncClient(trust_env=False) as asking:
        sent = (await asking.get(f"{claude}/_sim/last")).json()["body"]["messages"]
    (sent_call,), (sent_result,) = sent[1]["content"], sent[2]["content"]
    assert sent_call["id"] == sent_result["tool_use_id"]
    assert re.fullmatch("[a-zA-Z0-9_-]+", sent_call["id"])


async def test_images_are_counted_with_the_types_of_their_bytes(gateway: Gateway, claude: str) -> None:
    """As in a model call."""
    source = {"type": "base64", "media_type": "image/jpeg", "data": "iVBORw0KGgo="}
    messages = [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "a b"}]}]
    answer = await gateway.client.post("/v1/messages/count_tokens", json={**COUNT_REQUEST, "messages": messages})
    assert answer.status_code == 200, answer.text
    async with httpx2.AsyncClient(trust_env=False) as asking:
        [sent] = (await asking.get(f"{claude}/_sim/last")).json()["body"]["messages"]
    assert sent["content"][0]["source"] == {**source, "media_type": "image/png"}


async def test_prompt_with_many_short_texts_is_refused(gateway: Gateway) -> None:
    """413, and the connection to NATS stays open, although the server closes it for oversized messages."""
    pieces = [{"type": "text", "text": "x" * 60_000}] * 160
    long = {**COUNT_REQUEST, "messages": [{"role": "user", "content": pieces}]}
    answer = await gateway.client.post("/v1/messages/count_tokens", json=long)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert answer.json()["error"]["message"].endswith("count it in parts")
    assert (await gateway.client.post("/v1/messages/count_tokens", json=COUNT_REQUEST)).status_code == 200


@on_shared_loop
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"tailrace:blob": "a" * 64, "bytes": 70_000}], "tailrace:blob"),
        (5, "messages[0].content"),
        ([{"type": "text", "text": json.loads("[" * 500 + "]" * 500)}], "levels deep"),
    ],
)
async def test_long_prompt_with_invalid_content_is_refused(
    shared_gateway: Gateway, content: object, named: str
) -> None:
    """A client cannot read a blob by counting a reference to it."""
    messages = [{"role": "user", "content": content}, {"role": "user", "content": "x" * 9_000_000}]
    answer = await shared_gateway.client.post("/v1/messages/count_tokens", json={**COUNT_REQUEST, "messages": messages})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert named in answer.json()["error"]["message"]


@on_shared_loop
async def test_long_prompt_with_a_deep_output_config_is_refused(shared_gateway: Gateway) -> None:
    deep = {"role": "user", "content": "hi", "output_config": {"a": json.loads("[" * 500 + "]" * 500)}}
    messages = [deep, {"role": "user", "content": "x" * 9_000_000}]
    answer = await shared_gateway.client.post("/v1/messages/count_tokens", json={**COUNT_REQUEST, "messages": messages})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert "levels deep" in answer.json()["error"]["message"]


async def test_reference_in_a_short_prompt_is_passed_on(gateway: Gateway) -> None:
    """It is not replaced, and the API validates it."""
    content = [{"type": "text", "text": {"tailrace:blob": "a" * 64, "bytes": 70_000}}]
    body = {**COUNT_REQUEST, "messages": [{"role": "user", "content": content}]}
    answer = await gateway.client.post("/v1/messages/count_tokens", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "backend_refused_request")


async def test_rejected_api_key_is_not_a_client_error(
    own_server: NatsServer, claude: str, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """502: the operator's key is wrong, not the client's."""
    gateway = await new_gateway(own_server.url)
    async with processes.generator(tmp_path, own_server.url, claude, ANTHROPIC_API_KEY="bad-key"):
        answer = await gateway.client.post("/v1/messages/count_tokens", json=COUNT_REQUEST)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "backend_refused_key")


async def test_backends_of_the_model_decide_who_counts(
    own_server: NatsServer, own_claude: str, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """Anthropic's API gets the operator's name of the model, and no prompt of a model with other backends."""
    backends = "claude; claude-sonnet-5-5 = claude:claude-sonnet-5; claude-opus-5-5 = bedrock"
    gateway = await new_gateway(own_server.url)
    settings = {"TAILRACE_BACKENDS": backends, "AWS_REGION": "eu-central-1"}
    async with processes.generator(tmp_path, own_server.url, own_claude, **settings):
        counted = await gateway.client.post("/v1/messages/count_tokens", json=COUNT_REQUEST)
        refused = await gateway.client.post(
            "/v1/messages/count_tokens", json={**COUNT_REQUEST, "model": "claude-opus-5-5"}
        )
    async with httpx2.AsyncClient(trust_env=False) as asking:
        assert (await asking.get(f"{own_claude}/_sim/last")).json()["body"] == {
            **COUNT_REQUEST,
            "model": "claude-sonnet-5",
        }
    assert (counted.status_code, refused.status_code) == (200, 400), counted.text
    error = refused.json()["error"]
    assert (error["code"], "claude-opus-5-5 has others" in error["message"]) == ("backend_refused_request", True)


@pytest.mark.rule("R140")
async def test_thinking_that_the_api_refuses_is_not_counted(gateway: Gateway, claude: str) -> None:
    """As in a model call, which then has none either, unless the client asks for the refusal."""
    question = {"role": "user", "content": "#sim words=2 thinking=3 rate=0"}
    body = {"model": "claude-opus-5-5", "system": "Be brief.", "messages": [question]}
    content = (await gateway.client.post("/v1/messages", json={**body, "max_tokens": 99})).json()["content"]
    same = {**body, "messages": [question, {"role": "assistant", "content": content}, question]}
    other = {**same, "system": "Be long."}
    counts = []
    async with httpx2.AsyncClient(trust_env=False) as asking:
        for prompt, answer in ((same, content), (other, content[1:])):
            counts.append((await gateway.client.post("/v1/messages/count_tokens", json=prompt)).json())
            sent = (await asking.get(f"{claude}/_sim/last")).json()["body"]
            assert sent == {**prompt, "messages": [question, {"role": "assistant", "content": answer}, question]}
            answered = await gateway.client.post("/v1/messages", json={**prompt, "max_tokens": 99})
            assert (await asking.get(f"{claude}/_sim/last")).json()["body"]["messages"] == sent["messages"]
            assert counts[-1]["input_tokens"] == answered.json()["usage"]["input_tokens"]
    wanted = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "error"}}
    beta = {"anthropic-beta": "thinking-binding-controls-2026-08-01"}
    refused = await gateway.client.post("/v1/messages/count_tokens", json={**other, "thinking": wanted}, headers=beta)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
