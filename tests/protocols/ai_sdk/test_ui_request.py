"""Requests of AI SDK's transports: unknown fields and tool outputs. tests/golden/requests has the cases."""

import json
from urllib.parse import unquote

import pytest
from hypothesis import given

from tailrace.gateway.turns.request_body import MessageParam, new_messages
from tailrace.proto.long_strings import PIECE_BYTES
from tailrace.protocols.ai_sdk import tool_result
from tailrace.protocols.ai_sdk.request import unknown_fields
from tests.golden.requests import build_turn
from tests.harness.strategies import JSON


def test_unknown_fields_are_listed() -> None:
    """Only names that are valid in a header, and at most 20."""
    known = ["messages", "messageId", "trigger"]
    assert unknown_fields(known) == []
    assert unknown_fields([*known, "temperature", "a\r\nb", "webSearch"]) == ["temperature", "webSearch"]
    assert len(unknown_fields([f"f{number}" for number in range(100)])) == 20


@pytest.mark.parametrize("shift", range(3))
def test_an_escape_of_a_long_data_url_is_decoded_whole(shift: int) -> None:
    text = "x" * shift + "%C3%A9" * (PIECE_BYTES // 3) + "%4%"
    part = {"type": "file", "mediaType": "text/plain", "url": f"data:text/plain,{text}"}
    messages = build_turn("ui", {"messages": [{"role": "user", "parts": [part]}]}).turn.messages
    assert messages is not None
    assert messages[0].content[0]["source"]["data"] == unquote(text)  # type: ignore[index]


@pytest.mark.parametrize("url", ["data:text/plain,", "data:text/plain;base64,", "data:image/png;base64,"])
def test_an_empty_file_is_left_out(url: str) -> None:
    """The history has none either. Otherwise the next message would begin a new branch."""
    media_type = url.removeprefix("data:").partition(";")[0].rstrip(",")
    parts = [{"type": "file", "mediaType": media_type, "url": url}, {"type": "text", "text": "Why?"}]
    assert build_turn("ui", {"messages": [{"role": "user", "parts": parts}]}).turn.messages == [
        MessageParam("user", "Why?")
    ]


@given(JSON)
def test_tool_output_round_trip(output: object) -> None:
    """A string that looks like JSON stays a string."""
    assert tool_result.decode_output(tool_result.encode_output(output)) == output


def test_tool_output_string_is_not_encoded() -> None:
    """The model gets it without JSON quotes."""
    assert tool_result.encode_output("[1]") == "[1]"


def test_deeply_nested_tool_output_becomes_text() -> None:
    """For the model, as any output, and for the page, which would get it back as the text."""
    deep = "[" * 300 + "]" * 300
    call = {"type": "tool-look", "toolCallId": "c1", "input": {}, "state": "output-available"}
    asked = {"role": "assistant", "parts": [{**call, "output": json.loads(deep)}]}
    messages = new_messages(build_turn("ui", {"messages": [asked]}).turn)
    assert messages[-1].content == [
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": deep}]}
    ]
    assert tool_result.decode_output([{"type": "text", "text": deep}]) == deep
