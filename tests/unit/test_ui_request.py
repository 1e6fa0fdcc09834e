"""Requests of AI SDK's transports: their conversion to turns."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given

from tailrace.gateway.clients.ai_sdk import tool_result
from tailrace.gateway.clients.ai_sdk.request import UIChatRequest, build_turn, unknown_fields
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tests.harness.strategies import JSON
from tests.harness.turn_builder import raw

PNG = base64.b64encode(b"\x89PNG").decode()
USER = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
SIGNED = {"anthropic": {"signature": "sig"}}
CALL = {"toolCallId": "c1", "input": {"q": 1}}


def ask(*messages: dict[str, Any], **given: Any) -> NewTurn:
    return build_turn(msgspec.json.decode(raw({"messages": messages, **given}), type=UIChatRequest))


def told(*parts: dict[str, Any], role: str = "user") -> list[Message]:
    return ask({"id": "m1", "role": role, "parts": parts}).messages or []


@pytest.mark.parametrize(
    ("part", "block"),
    [
        ({"mediaType": "image/png", "url": f"data:image/png;base64,{PNG}"}, ("image", "base64", "image/png", PNG)),
        (
            {"mediaType": "application/pdf", "url": "data:application/pdf;base64,AAAA"},
            ("document", "base64", "application/pdf", "AAAA"),
        ),
        (
            {"mediaType": "text/csv; charset=utf-8", "url": "data:text/csv,a%2Cb%0A"},
            ("document", "text", "text/plain", "a,b\n"),
        ),
        ({"mediaType": "text/plain", "url": "data:text/plain;base64,aMOp"}, ("document", "text", "text/plain", "hé")),
    ],
)
def test_file_in_a_data_url_becomes_a_block(part: dict[str, Any], block: tuple[str, ...]) -> None:
    """Images, PDFs and texts."""
    kind, source, media_type, content = block
    want = {"type": kind, "source": {"type": source, "media_type": media_type, "data": content}}
    assert told({"type": "file", **part}) == [Message("user", [want])]


@pytest.mark.parametrize(
    ("media_type", "kind"), [("image/webp", "image"), ("image", "image"), ("application/pdf", "document")]
)
def test_file_at_an_https_url_becomes_a_url_block(media_type: str, kind: str) -> None:
    """The API supports only https; a document keeps its name."""
    part = {"type": "file", "mediaType": media_type, "url": "https://host/a", "filename": "a"}
    named = {"title": "a"} if kind == "document" else {}
    assert told(part) == [
        Message("user", [{"type": kind, "source": {"type": "url", "url": "https://host/a"}, **named}])
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"mediaType": "video/mp4", "url": "data:video/mp4;base64,AAAA"},
        {"mediaType": "image/png", "url": "http://host/a.png"},
        {"mediaType": "image/png", "url": "blob:https://host/1"},
        {"mediaType": "image/png", "url": "data:image/png;base64,!!"},
        {"mediaType": "image/png", "url": "data:image/png;base64"},
        {"mediaType": "text/plain", "url": "https://host/a.txt"},
        {},
    ],
)
def test_unsupported_file_is_refused(part: dict[str, Any]) -> None:
    """The error names the message. Without the file the question would be another one."""
    with pytest.raises(Refused, match=r"`messages\[1\]` has a file") as refused:
        ask(USER, {"id": "u2", "role": "user", "parts": [{"type": "file", **part}]})
    assert refused.value.code == "request_invalid"


def test_assistant_message_with_steps_becomes_several_messages() -> None:
    """A tool result follows its call in a user message; the last text is the assistant's again."""
    result = {"state": "output-available", "output": {"found": ["a"]}}
    failed = {"toolCallId": "c2", "input": {}, "state": "output-error", "errorText": "no"}
    assert told(
        {"type": "step-start"},
        {"type": "reasoning", "text": "hm", "providerMetadata": SIGNED},
        {"type": "text", "text": "let me see", "state": "done"},
        {"type": "tool-look", **CALL, **result},
        {"type": "dynamic-tool", "toolName": "ask", **failed},
        {"type": "data-tailrace", "data": {}},
        {"type": "step-start"},
        {"type": "source-url", "sourceId": "1", "url": "https://a"},
        {"type": "text", "text": "a"},
        role="assistant",
    ) == [
        Message(
            "assistant",
            [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"q": 1}},
                {"type": "tool_use", "id": "c2", "name": "ask", "input": {}},
            ],
        ),
        Message(
            "user",
            [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": '{"found":["a"]}'}]},
                {"type": "tool_result", "tool_use_id": "c2", "content": "no", "is_error": True},
            ],
        ),
        Message("assistant", "a"),
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "reasoning", "text": "hm"},
        {"type": "text", "text": " \n"},
        {"type": "tool-look", **CALL, "state": "input-streaming"},
        {"type": "tool-look", **CALL, "state": "input-available"},
        {"type": "tool-look", **CALL, "state": "approval-requested"},
        {"type": "tool-web_search", **CALL, "state": "output-available", "output": [], "providerExecuted": True},
        {"type": "dynamic-tool", **CALL, "state": "output-available", "output": 1},
        {"type": "custom", "kind": "a.b"},
        {"type": "data-anything", "data": None},
    ],
)
def test_part_that_the_api_refuses_is_left_out(part: dict[str, Any]) -> None:
    """Thinking without a signature, a call without a result, parts for the page only."""
    assert told(part, role="assistant") == []


def test_denied_tool_call_has_an_error_result() -> None:
    denied = told({"type": "tool-look", **CALL, "state": "output-denied"}, role="assistant")[1]
    assert denied == Message(
        "user",
        [
            {
                "type": "tool_result",
                "tool_use_id": "c1",
                "content": "the user denied this tool call",
                "is_error": True,
            }
        ],
    )


def test_chat_becomes_a_session_with_full_history() -> None:
    """`useChat` sends its name as `id`; a new message interrupts a running answer."""
    asked = ask(USER, id="chat-1", model="claude-haiku-5-5", project_id="p")
    assert asked == NewTurn(
        messages=[Message("user", "hi")],
        session="chat-1",
        create_session=True,
        full_history=True,
        model="claude-haiku-5-5",
        project="p",
        on_busy="interrupt",
    )


def test_request_without_id_has_no_session() -> None:
    """The workflow transport sends none, unless its app does."""
    assert (ask(USER).session, ask(USER).create_session) == (None, False)
    assert ask(USER, session_id="s").session == "s"
    with pytest.raises(Refused, match="`id` and `session_id` differ"):
        ask(USER, id="a", session_id="b")


def test_tool_result_records_the_id_of_the_continued_message() -> None:
    """The client appends the answer to that message."""
    called = {
        "id": "msg_1",
        "role": "assistant",
        "parts": [{"type": "tool-look", **CALL, "state": "output-available", "output": 1}],
    }
    assert ask(USER, called, metadata={"user": "u"}).metadata == {"user": "u", "ui_message": "msg_1"}
    assert ask(USER, called, USER).metadata is None


def test_unknown_fields_are_listed() -> None:
    """Only names that are valid in a header, and at most 20."""
    known = b'"messages": [], "messageId": null, "trigger": "submit-message"'
    assert unknown_fields(b"{%s}" % known) == []
    assert unknown_fields(b'{%s, "temperature": 1, "a\\r\\nb": 2, "webSearch": {}}' % known) == [
        "temperature",
        "webSearch",
    ]
    many = b",".join(b'"f%d": 1' % number for number in range(100))
    assert len(unknown_fields(b"{%s}" % many)) == 20


@given(JSON)
def test_tool_output_round_trip(output: object) -> None:
    """A string that looks like JSON stays a string."""
    assert tool_result.decode_output(tool_result.encode_output(output)) == output


def test_tool_output_string_is_not_encoded() -> None:
    """The model gets it without JSON quotes."""
    assert tool_result.encode_output("[1]") == "[1]"


def test_deeply_nested_tool_output_is_refused() -> None:
    """It could be stored as text, but not be returned."""
    deep = "[" * 300 + "]" * 300
    with pytest.raises(Refused, match="the output of `look`"):
        told({"type": "tool-look", **CALL, "state": "output-available", "output": json.loads(deep)}, role="assistant")
    assert tool_result.decode_output([{"type": "text", "text": deep}]) == deep
