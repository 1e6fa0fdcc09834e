"""The model routes with Anthropic's and OpenAI's SDKs, with and without a generator."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tailrace.proto.models import models
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway, on_shared_loop

LISTED = [name for name in models() if "mythos" not in name]
"""What the simulated Claude lists, in our order."""
MESSAGES = [{"role": "user", "content": "hi"}]
UI_MESSAGES = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]
RUN = {"threadId": "t", "messages": [{"id": "1", "role": "user", "content": "hi"}], "tools": [], "context": []}
# A name like Claude's: the model's API decides.
NEWER = "claude-tomorrow-1"
NOT_KNOWN = f"the model's API does not know the model `{NEWER}`; GET /v1/models lists the models"


@pytest.fixture
async def claude_sdk(gateway: Gateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=gateway.url) as sdk:
        yield sdk


@pytest.fixture
async def openai_sdk(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{gateway.url}/v1") as sdk:
        yield sdk


async def test_anthropic_sdk_lists_all_pages_and_filters_by_lifecycle(claude_sdk: anthropic.AsyncAnthropic) -> None:
    """It follows `last_id`; models that Anthropic does not list are left out; dates and limits are Anthropic's."""
    old = [model async for model in claude_sdk.models.list(lifecycle=["deprecated", "retired"])]
    assert [(model.id, str(model.retires_at)) for model in old] == [
        ("claude-opus-4-5", "2027-01-22 00:00:00+00:00"),
        ("claude-sonnet-4-5", "2026-11-30 00:00:00+00:00"),
    ]
    found = [model async for model in claude_sdk.models.list(limit=4)]
    assert [model.id for model in found] == LISTED
    (sonnet,) = [model for model in found if model.id == "claude-sonnet-5-5"]
    assert (sonnet.display_name, str(sonnet.created_at.date())) == ("Claude Sonnet 5.5", "2026-09-28")
    assert (sonnet.max_input_tokens, sonnet.max_tokens, sonnet.line) == (1_000_000, 128_000, "sonnet")
    assert sonnet.capabilities is not None
    assert (sonnet.capabilities.image_input.supported, sonnet.capabilities.thinking.types.disabled.supported) == (
        True,
        False,
    )


async def test_openai_sdk_lists_every_model(gateway: Gateway, openai_sdk: openai.AsyncOpenAI) -> None:
    """In the same body: without page parameters it has all models. It says that Claude is simulated."""
    found = [model async for model in openai_sdk.models.list()]
    assert [model.id for model in found] == LISTED
    assert {(model.object, model.owned_by) for model in found} == {("model", "anthropic")}
    assert found[0].created == 1_790_553_600  # 2026-09-28
    assert (await gateway.client.get("/v1/models")).json()["is_simulated"]


async def test_sdks_find_a_model_by_any_of_its_names_and_raise_not_found(
    claude_sdk: anthropic.AsyncAnthropic, openai_sdk: openai.AsyncOpenAI
) -> None:
    """404 with a body that both parse; also for a model that the operator's key does not have."""
    for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-haiku-4-5-latest"):
        assert (await claude_sdk.models.retrieve(name)).id == "claude-haiku-4-5"
        assert (await openai_sdk.models.retrieve(name)).id == "claude-haiku-4-5"
    for name in ("gpt-4o", "claude-mythos-5"):
        with pytest.raises(anthropic.NotFoundError) as theirs:
            await claude_sdk.models.retrieve(name)
        assert theirs.value.type == "not_found_error"
        with pytest.raises(openai.NotFoundError) as others:
            await openai_sdk.models.retrieve(name)
        assert others.value.code == "model_not_found"


@on_shared_loop
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/turns", {"message": "hi"}),
        ("/v1/sessions", {}),
        ("/v1/messages", {"max_tokens": 9, "messages": MESSAGES}),
        ("/v1/messages/count_tokens", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/responses", {"input": "hi"}),
        ("/api/chat", {"messages": UI_MESSAGES}),
        ("/api/copilotkit/agent/claude-mythos-5/run", {**RUN, "runId": "r"}),
        ("/ai/chat", {"messages": MESSAGES}),
        ("/api/start-job", {"prompt": "hi"}),
    ],
)
async def test_unlisted_model_is_refused_everywhere(
    shared_gateway: Gateway, path: str, body: dict[str, object]
) -> None:
    """Also by the first request of a shared_gateway; the error has the list."""
    refused = await shared_gateway.client.post(path, json={**body, "model": "claude-mythos-5"})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (404, "model_not_found")
    assert error["message"] == (
        f"unknown model `claude-mythos-5`; choose one of {', '.join(LISTED)}; "
        "the operator can define aliases with TAILRACE_MODEL_ALIASES, and models with TAILRACE_MODELS_FILE"
    )


@on_shared_loop
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"max_tokens": 9, "messages": MESSAGES}),
        ("/v1/messages/count_tokens", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/responses", {"input": "hi"}),
        ("/api/chat", {"messages": UI_MESSAGES}),
        ("/ai/chat", {"messages": MESSAGES}),
    ],
)
async def test_404_of_the_models_api_stays_one(
    shared_gateway: Gateway, path: str, body: dict[str, object], *, is_streamed: bool
) -> None:
    """Before the first byte of a stream."""
    stream = {"stream": True} if is_streamed and path.startswith("/v1") and "count" not in path else {}
    answer = await shared_gateway.client.post(path, json={**body, **stream, "model": NEWER})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (404, "not_found_error", "model_not_found")
    assert error["message"] == NOT_KNOWN


@on_shared_loop
async def test_404_of_the_models_api_is_the_code_of_a_turn_and_of_a_run(shared_gateway: Gateway) -> None:
    """Their POST is answered before the model's API is called."""
    client = shared_gateway.client
    turn = (await client.post("/v1/turns", json={"message": "hi", "model": NEWER})).json()["turn"]
    events = (await client.get(f"/v1/turns/{turn}/events")).text
    run = {**RUN, "runId": turn, "forwardedProps": {"model": NEWER}}
    for shown in (events, (await client.post("/api/agui", json=run)).text):
        assert ('"model_not_found"' in shown, NOT_KNOWN in shown) == (True, True), shown


async def test_aliases_short_and_retired_names_are_answered_with_the_models_id(
    system: System, generator: object, new_gateway: NewGateway
) -> None:
    """In each protocol; without a name the default answers."""
    gateway = await new_gateway(system.nats_url, model_aliases="gpt-4o=claude-haiku-5-5")
    for name, id_ in {
        "gpt-4o": "claude-haiku-5-5",
        "opus": "claude-opus-5-5",
        "claude-opus-4-20250514": "claude-opus-4-8",
        None: "claude-sonnet-5-5",
    }.items():
        body = {"model": name, "max_tokens": 9, "messages": MESSAGES}
        for path in ("/v1/messages", "/v1/chat/completions"):
            answer = await gateway.client.post(path, json=body)
            assert (answer.status_code, answer.json().get("model")) == (200, id_), (path, answer.text)


async def test_model_newer_than_the_table_is_passed_on_unless_its_cost_must_be_known(
    gateway: Gateway, system: System, new_gateway: NewGateway
) -> None:
    """Its name looks like Claude's: the API decides. Its price is unknown, so that no cost can be limited."""
    body = {"model": NEWER, "max_tokens": 9, "messages": MESSAGES, "max_cost": 1}
    answer = await gateway.client.post("/v1/messages", json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "`max_cost`: the price of claude-tomorrow-1 is unknown",
    )
    limited = await new_gateway(system.nats_url, limits_key="usd_month=5")
    answer = await limited.client.post("/v1/turns", json={"message": "hi", "model": "claude-tomorrow-1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "price_unknown"), answer.text


async def test_capabilities_have_limits_prices_and_features(gateway: Gateway) -> None:
    """Prices are from the data file, features from Anthropic where it lists them."""
    found = (await gateway.client.get("/v1/models/capabilities")).json()
    assert (found["object"], [row["id"] for row in found["data"]]) == ("list", LISTED)
    (haiku,) = [row for row in found["data"] if row["id"] == "claude-haiku-5-5"]
    assert haiku == {
        "id": "claude-haiku-5-5",
        "display_name": "Claude Haiku 5.5",
        "aliases": ["claude-haiku-5-5-latest"],
        "lifecycle": "active",
        "limits": {"context_tokens": 1_000_000, "output_tokens": 128_000},
        "usd_per_million_tokens": {
            "input": 0.1,
            "output": 0.5,
            "cache_write_5m": 0.125,
            "cache_write_1h": 0.2,
            "cache_read": 0.01,
        },
        "usd_per_million_tokens_of_a_long_prompt": {
            "over_tokens": 100_000,
            "input": 0.5,
            "output": 2.5,
            "cache_write_5m": 0.625,
            "cache_write_1h": 1.0,
            "cache_read": 0.05,
        },
        "supports": {
            "vision": True,
            "pdf": True,
            "citations": True,
            "tools": True,
            "forced_tools": True,
            "structured_outputs": True,
            "sampling": False,
            "prefill": False,
            "thinking": ["adaptive", "disabled"],
            "effort": ["low", "medium", "high", "xhigh", "max"],
            "server_tools": ["web_search", "code_execution"],
        },
    }


async def test_a_dated_name_is_sent_to_the_api_and_shown_as_asked(gateway: Gateway, claude: str) -> None:
    """In each protocol, and as the model of a session. Its price is known."""
    name, question = "claude-sonnet-4-5-20250929", "#sim words=1 rate=0"
    messages = [{"role": "user", "content": question}]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/messages", {"model": name, "messages": messages, "max_tokens": 9}),
        ("/v1/chat/completions", {"model": name, "messages": messages}),
        ("/v1/chat/completions", {"messages": messages, "session_id": "dated"}),
        ("/v1/responses", {"model": name, "input": question}),
        ("/v1/messages/count_tokens", {"model": name, "messages": messages}),
    ]
    made = await gateway.client.post("/v1/sessions", json={"id": "dated", "model": name})
    assert made.status_code == 200, made.text
    for path, body in asked:
        answer = await gateway.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json().get("model", name) == name
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{claude}/_sim/last")).json()["body"]["model"] == name
    turns = (await gateway.client.get("/v1/turns", params={"model": name})).json()["data"]
    assert [(turn["model"], turn["cost_usd"] > 0) for turn in turns] == [(name, True)] * 4
