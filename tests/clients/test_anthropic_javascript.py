"""POST /v1/messages with Anthropic's JavaScript SDK in Node."""

import asyncio
from typing import Any

import pytest
from anthropic.types import Message

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

TEXT = words(40)
LINE = "#sim words=40 rate=200"
# Slow enough that a busy machine does not join the deltas before the kill into few entries.
SLOW = "#sim words=40 rate=60"


async def run_client(url: str, how: str, line: str = LINE) -> dict[str, Any]:
    (printed,) = await node.run("anthropic.mjs", url, KEY, how, line)
    return printed


def turn_of(message: dict[str, Any]) -> str:
    return str(message["id"]).removeprefix("msg_")


@pytest.mark.proves("anthropic", "stream", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "answer as one JSON body", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "tools", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "thinking", "@anthropic-ai/sdk")
async def test_stream_adds_up_to_the_json_message(gateway: Gateway) -> None:
    line = f'{LINE} thinking=3 tool=look json={{"query":"a \\"b\\" 🌊"}}'
    stream, whole = await asyncio.gather(
        run_client(gateway.url, "stream", line), run_client(gateway.url, "whole", line)
    )
    message = Message.model_validate(stream["message"])
    assert stream["text"] == TEXT == await read_stored_text(gateway, turn_of(stream["message"]))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert stream["message"]["content"][2]["input"] == {"query": 'a "b" 🌊'}
    same = {"id": "msg", "stop_details": None, "parsed_output": None}
    assert stream["message"] | same == whole["message"] | same


@pytest.mark.proves("anthropic", "heartbeats before the first event", "@anthropic-ai/sdk")
async def test_pings_are_ignored(system: System, gateway: Gateway, new_gateway: NewGateway) -> None:
    """Before `message_start` and between two deltas."""
    beating = await new_gateway(system.nats_url, heartbeat_s=0.1)
    shown = await run_client(beating.url, "raw", "#sim words=3 rate=4 wait=0.5")
    assert (shown["text"], "ping" in shown["kinds"], shown["kinds"]["message_stop"]) == (words(3), False, 1)


@pytest.mark.proves("anthropic", "errors before the first event", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "errors during the stream", "@anthropic-ai/sdk")
async def test_failure_is_raised_with_its_type(gateway: Gateway) -> None:
    """Before the first word with the status of the API and the turn; later as an event."""
    before, later = await asyncio.gather(
        run_client(gateway.url, "whole", "#sim fault=529"),
        run_client(gateway.url, "stream", "#sim words=99 rate=0 fault=500@4+"),
    )
    record = (await gateway.client.get(f"/v1/turns/{before['requestID']}")).json()
    assert (before["status"], before["type"], record["outcome"]) == (529, "overloaded_error", "failed")
    assert later["type"] == "api_error"
    assert later["text"]
    assert words(99).startswith(later["text"])
