"""POST /v1/messages with Anthropic's JavaScript SDK in Node."""

import pytest
from anthropic.types import Message

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

TEXT = words(40)
LINE = '#sim words=40 rate=200 thinking=3 tool=look json={"query":"a \\"b\\" 🌊"}'


@pytest.mark.proves("anthropic", "stream", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "answer as one JSON body", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "tools", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "thinking", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "heartbeats before the first event", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "errors before the first event", "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", "errors during the stream", "@anthropic-ai/sdk")
async def test_the_sdk_for_javascript_reads_answers_pings_and_errors(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """In one process: a stream that adds up to the JSON body, raw events with pings, and both kinds of failures."""
    beating = await new_gateway(system.nats_url, heartbeat_s=0.1)
    requests = (
        *("stream", LINE),
        *("whole", LINE),
        *("raw", "#sim words=3 rate=4 wait=0.5"),
        *("whole", "#sim fault=529"),
        *("stream", "#sim words=99 rate=0 fault=500@4+"),
    )
    stream, whole, raw, before, later = await node.run("anthropic.mjs", beating.url, KEY, *requests)
    message = Message.model_validate(stream["message"])
    assert stream["text"] == TEXT == await read_stored_text(gateway, message.id.removeprefix("msg_"))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert stream["message"]["content"][2]["input"] == {"query": 'a "b" 🌊'}
    same = {"id": "msg", "stop_details": None, "parsed_output": None}
    assert stream["message"] | same == whole["message"] | same
    # The SDK shows no ping.
    assert (raw["text"], "ping" in raw["kinds"], raw["kinds"]["message_stop"]) == (words(3), False, 1)
    # Before the first word with the status of the API and the turn; later as an event.
    record = (await gateway.client.get(f"/v1/turns/{before['requestID']}")).json()
    assert (before["status"], before["type"], record["outcome"]) == (529, "overloaded_error", "failed")
    assert later["type"] == "api_error"
    assert later["text"]
    assert words(99).startswith(later["text"])
