"""Repeated POSTs of SDKs with their default settings, in Python and AI SDK: one turn, and the right text."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from tests.clients import node
from tests.clients.openai_chat import MODEL, event_text, sdk_of, text_of, user_message
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway

pytestmark = pytest.mark.rule("R115")

# The gateway is still waiting for the answer when the connection is cut. It drains for two seconds.
LINE, SLOWER, TEXT = "#sim words=40 rate=20", "#sim words=40 rate=10", words(40)


async def ask_chat(url: str, line: str = LINE, *, stream: bool) -> str | None:
    async with sdk_of(url) as sdk:
        made: Any = await sdk.chat.completions.create(model=MODEL, messages=user_message(line), stream=stream)
        return text_of([chunk async for chunk in made]) if stream else made.choices[0].message.content


async def ask_responses(url: str, line: str = LINE, *, stream: bool) -> str | None:
    async with sdk_of(url) as sdk:
        made: Any = await sdk.responses.create(model=MODEL, input=line, stream=stream)
        return event_text([event async for event in made]) if stream else made.output_text


async def ask_messages(url: str, line: str = LINE, *, stream: bool) -> str | None:
    given: Any = {"model": MODEL, "max_tokens": 500, "messages": user_message(line)}
    async with AsyncAnthropic(base_url=url, api_key=KEY) as sdk:
        if stream:
            async with sdk.messages.stream(**given) as events:
                return await events.get_final_text()
        made: Any = await sdk.messages.create(**given)
        text: str = made.content[0].text
        return text


Ask = Callable[..., Coroutine[Any, Any, str | None]]
asks = pytest.mark.parametrize("ask", [ask_chat, ask_responses, ask_messages])


async def turns_of(gateway: Gateway) -> list[dict[str, Any]]:
    """Returns the sessions of the tenant: one for each turn, because no request names one."""
    found: list[dict[str, Any]] = (await gateway.client.get("/v1/sessions")).json()["data"]
    return found


@asks
async def test_a_stream_that_was_cut_before_its_status_is_one_turn(gateway: Gateway, ask: Ask) -> None:
    """The SDK repeats the POST, because it got no response, and receives the answer from its start."""
    async with Cutting(gateway.port, [Cut(0)]) as proxy:
        assert await ask(proxy.url, stream=True) == TEXT
        assert (proxy.left, proxy.connections) == ([], 2)
    assert len(await turns_of(gateway)) == 1


@asks
async def test_an_answer_without_a_stream_that_was_cut_is_one_turn(gateway: Gateway, ask: Ask) -> None:
    async with Cutting(gateway.port) as proxy:
        asking = asyncio.create_task(ask(proxy.url, stream=False))
        await until(lambda: turns_of(gateway))
        proxy.cut_all()
        assert await asking == TEXT
        assert proxy.connections == 2
    assert len(await turns_of(gateway)) == 1


async def test_an_answer_of_generate_text_that_was_cut_is_one_turn(gateway: Gateway) -> None:
    """AI SDK counts nothing: its repetition is equal to a new request."""
    async with Cutting(gateway.port) as proxy:
        asking = asyncio.create_task(node.run("generate-text.mjs", proxy.url, KEY, LINE))
        await until(lambda: turns_of(gateway), node.DEADLINE_S)
        proxy.cut_all()
        assert await asking == [{"text": TEXT}]
        assert proxy.connections == 2
    assert len(await turns_of(gateway)) == 1


@asks
async def test_an_answer_whose_gateway_drains_is_one_turn(
    system: System, gateway: Gateway, new_gateway: NewGateway, ask: Ask
) -> None:
    """The gateway answers 503, and the SDK's repetition reaches another one."""
    leaving = await new_gateway(system.nats_url)
    async with Cutting(leaving.port) as proxy:
        asking = asyncio.create_task(ask(proxy.url, SLOWER, stream=False))
        await until(lambda: turns_of(gateway))
        proxy.to = gateway.port
        leaving.stopping.set()
        assert await asking == TEXT
        assert proxy.connections == 2
    assert len(await turns_of(gateway)) == 1
