"""Counting a prompt's tokens: the generator with the key asks, and what Anthropic says comes back."""

from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import pytest

from deploy.nats_server import NatsServer
from tests import processes
from tests.integration.conftest import KEY, Gateway, House, NewGateway

ASKED = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=gateway.url, max_retries=0) as sdk:
        yield sdk


async def test_the_anthropic_sdk_counts_a_prompt(sdk: anthropic.AsyncAnthropic) -> None:
    """System and messages, as the API counts them (the simulated one counts words)."""
    counted = await sdk.messages.count_tokens(
        model="claude-opus-5-5",
        system="Be very brief.",
        messages=[{"role": "user", "content": [{"type": "text", "text": "one two three"}]}],
        tools=[{"name": "look", "input_schema": {"type": "object"}}],
        thinking={"type": "adaptive"},
    )
    assert counted.input_tokens == 6


async def test_the_anthropic_sdk_counts_with_betas(sdk: anthropic.AsyncAnthropic) -> None:
    """As Claude Code does: the same route, a query, and a header that goes on to the API."""
    counted = await sdk.beta.messages.count_tokens(**ASKED, betas=["context-management-2025-06-27"])  # type: ignore[arg-type]
    assert counted.input_tokens == 3


@pytest.mark.parametrize("model", ["claude-haiku-4-5-latest", "gpt-4o"])
async def test_a_prompt_is_counted_for_the_model_that_is_meant(
    house: House, gateway: Gateway, new_gateway: NewGateway, model: str
) -> None:
    """The API knows neither of these names: what is asked of it is the model's own."""
    named = await new_gateway(house.nats_url, model_aliases="gpt-4o=claude-sonnet-4-5-20250929")
    answer = await named.client.post("/v1/messages/count_tokens", json={**ASKED, "model": model})
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 3})


async def test_what_the_api_refuses_is_refused_with_its_sentence(sdk: anthropic.AsyncAnthropic) -> None:
    """400 with Anthropic's own words, so that whoever asked can mend it."""
    with pytest.raises(anthropic.BadRequestError) as refused:
        await sdk.messages.count_tokens(model="claude-sonnet-5-5", messages=[])
    assert "at least one message is required" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model": "gpt-4o", "messages": []}', "model_unknown"),
        (b'{"messages": []}', "request_invalid"),
        (b'{"model": 5, "messages": []}', "request_invalid"),
        (b"[]", "request_invalid"),
        (b'{"model": "claude-sonnet-5-5", "messages": [}', "json_invalid"),
        (b'{"model": "claude-sonnet-5-5", "messages": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "json_invalid"),
        (
            b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "\xff"}]}',
            "backend_refused_request",
        ),
    ],
)
async def test_a_body_that_is_none_is_refused(gateway: Gateway, body: bytes, code: str) -> None:
    """Here, as far as the gateway reads it; the rest is the API's to judge."""
    answer = await gateway.client.post(
        "/v1/messages/count_tokens", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_without_a_generator_nothing_is_counted(lone_gateway: Gateway) -> None:
    """503, at once, with the time after which to ask again: nobody guesses a number."""
    answer = await lone_gateway.client.post("/v1/messages/count_tokens", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "generators_unavailable")
    assert answer.headers["retry-after"] == "2"


async def test_a_prompt_longer_than_a_message_is_refused(
    house: House, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """413, and the connection to the log lives on: the server hangs up on whoever sends too much."""
    roomy = await new_gateway(house.nats_url, body_bytes_max=20_000_000)
    long = {**ASKED, "messages": [{"role": "user", "content": "x" * 9_000_000}]}
    answer = await roomy.client.post("/v1/messages/count_tokens", json=long)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert answer.json()["error"]["message"].endswith("count it without pictures and files")
    assert (await roomy.client.post("/v1/messages/count_tokens", json=ASKED)).status_code == 200


async def test_a_key_that_is_refused_is_not_the_clients_fault(
    own_server: NatsServer, claude: str, tmp_path: Path, new_gateway: NewGateway
) -> None:
    """502: the operator's key is wrong, not the one that this request came with."""
    gateway = await new_gateway(own_server.url)
    async with processes.generator(tmp_path, own_server.url, claude, ANTHROPIC_API_KEY="bad-key"):
        answer = await gateway.client.post("/v1/messages/count_tokens", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "backend_refused_key")
