"""An answer over three pauses of the model, each of which kills its generator: clients get one whole answer.

Only Anthropic's own SDK gets the pauses, and sends each paused answer back (`tool_runner`).
"""

import asyncio
import json
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from tests.clients.conftest import Takeover, read_stored_text
from tests.clients.matrix import CLIENTS, MODEL, Answer, Client, Cuts
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, on_shared_loop

WORDS = 24
LINE = f"#sim words={WORDS} rate=200 server=web_search*3 pauses=3"
NAMES = {"openai (Python)", "useChat 7 (TailraceChatTransport)", "tailrace.AsyncClient", "httpx-sse"}
TOOLS: list[Any] = [{"type": "web_search_20250305", "name": "web_search"}]

pytestmark = on_shared_loop


async def read_with_curl(url: str, line: str) -> Answer:
    """Returns the answer as curl receives it: a POST, and then its turn as plain text."""
    post = ("--header", "content-type: application/json", "--data", json.dumps({"message": line}), f"{url}/v1/turns")
    turn: str = json.loads(await run_curl(*post))["turn"]
    return Answer(turn, await run_curl("--no-buffer", f"{url}/v1/turns/{turn}/events?dialect=text"))


async def run_curl(*arguments: str) -> str:
    command = ("curl", "--silent", "--fail", "--max-time", "60", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    received, _ = await process.communicate()
    assert process.returncode == 0
    return received.decode()


CURL = Client("curl", "Python", "text", read_with_curl, Cuts(0, 0, 0))
READERS = [*(one for one in CLIENTS if one.name in NAMES), CURL]


@pytest.mark.rule("R117")
@pytest.mark.parametrize("client", READERS, ids=lambda client: client.id)
async def test_three_pauses_with_a_killed_generator_in_each_are_one_answer(takeover: Takeover, client: Client) -> None:
    """The client has one stream and one text; each tool has run once."""
    before = await takeover.executions()
    # The simulated Claude tells turns apart by their questions.
    tag = f"r{READERS.index(client)}-"
    reading = asyncio.create_task(client.read(takeover.gateway.url, f"{LINE} tag={tag}"))
    await takeover.kill_in_each_pause(3)
    answer = await reading
    assert answer.text == words(WORDS, tag) == await read_stored_text(takeover.gateway, answer.turn)
    shown = (await takeover.gateway.client.get(f"/v1/turns/{answer.turn}")).json()
    assert (shown["attempts"], shown["stop_reason"]) == (4, "end_turn")
    after = await takeover.executions()
    assert [len(after[call]) for call in after.keys() - before.keys()] == [1, 1, 1]


@pytest.mark.rule("R117")
async def test_an_sdk_that_resumes_pauses_itself_gets_each_of_them(takeover: Takeover) -> None:
    """The SDK's `tool_runner` sends the paused answer back as the last message. Each turn loses its generator, too."""

    async def run() -> Any:
        async with AsyncAnthropic(base_url=takeover.gateway.url, api_key=KEY) as sdk:
            runner = sdk.beta.messages.tool_runner(
                model=MODEL, max_tokens=500, tools=TOOLS, messages=[{"role": "user", "content": LINE}]
            )
            return [message async for message in runner]

    running = asyncio.create_task(run())
    await takeover.kill_in_each_pause(3, is_returned=True)
    messages = await running
    assert [message.stop_reason for message in messages] == ["pause_turn"] * 3 + ["end_turn"]
    texts = [block.text for message in messages for block in message.content if block.type == "text"]
    assert "".join(texts) == words(WORDS)
