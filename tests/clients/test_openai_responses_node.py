"""`/v1/responses` with OpenAI's JavaScript SDK, as it is: what it shows is what the log and SQLite have."""

import pytest

from tests.answering import words
from tests.clients import node
from tests.clients.conftest import told
from tests.cutting import Cutting, seeded
from tests.integration.conftest import KEY, Gateway

NODE = "openai (Node)"
DIALECT = "openai-responses"


@pytest.mark.proves(DIALECT, "whole", NODE)
@pytest.mark.proves(DIALECT, "streams", NODE)
@pytest.mark.proves(DIALECT, "tools", NODE)
@pytest.mark.proves(DIALECT, "thinking", NODE)
@pytest.mark.proves(DIALECT, "errors before the first word", NODE)
@pytest.mark.proves(DIALECT, "resumes after cuts", NODE)
@pytest.mark.proves(DIALECT, "resumes with the SDK's accumulator", NODE)
@pytest.mark.proves(DIALECT, "in the background", NODE)
@pytest.mark.proves(DIALECT, "is cancelled", NODE)
async def test_openais_sdk_for_javascript(gateway: Gateway) -> None:
    """One process asks in every way: whole, streamed, with a tool, for an error, through cuts, in the background."""
    often, once = (seeded(5, count, bytes_min=2600, bytes_max=4500) for count in (4, 1))
    async with Cutting(gateway.port, often) as proxy, Cutting(gateway.port, once) as other:
        whole, streamed, tools, refused, resumed, cut, accumulated, cancelled = await node.run(
            "openai-responses.mjs", KEY, gateway.url, proxy.url, other.url
        )
        assert proxy.left == other.left == []
    shown_texts = ((whole, words(5)), (streamed, words(5)), (resumed, words(120)), (accumulated, words(120)))
    for shown, text in shown_texts:
        turn = shown.pop("id").removeprefix("resp_")
        assert shown.pop("text") == text == await told(gateway, turn)
    assert (whole, streamed) == ({"usage": 5}, {"end": "response.completed"})
    assert tools == {
        "items": ["reasoning", "message", "function_call"],
        "arguments": '{"query":"the sky"}',
        "isStreamed": True,
        "text": words(2),
    }
    assert refused == {"error": "InternalServerError", "status": 529, "code": "backend_overloaded"}
    assert resumed == {"isNumbered": True, "cuts": 4}
    assert "Error" in cut["cut"]
    assert accumulated == {"isNumbered": True, "final": words(120)}
    assert cancelled == {"status": "cancelled", "end": "response.incomplete", "told": "cancelled"}
