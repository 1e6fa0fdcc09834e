"""What AI SDK's transports POST, as the model is told it: part by part, and nothing is changed without a word."""

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
from tests.handwritten import raw
from tests.made_up import JSON

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
def test_a_file_of_the_users_is_told_with_its_content(part: dict[str, Any], block: tuple[str, ...]) -> None:
    """Pictures, PDF and texts; a text is told as one."""
    kind, source, media_type, content = block
    want = {"type": kind, "source": {"type": source, "media_type": media_type, "data": content}}
    assert told({"type": "file", **part}) == [Message("user", [want])]


@pytest.mark.parametrize(
    ("media_type", "kind"), [("image/webp", "image"), ("image", "image"), ("application/pdf", "document")]
)
def test_a_file_elsewhere_is_fetched_by_the_model(media_type: str, kind: str) -> None:
    """By https alone, which is what the API takes; a document has its name."""
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
def test_a_file_that_no_model_can_look_at_is_refused_by_its_place(part: dict[str, Any]) -> None:
    """Left out, the answer would be to another question."""
    with pytest.raises(Refused, match=r"`messages\[1\]` has a file") as refused:
        ask(USER, {"id": "u2", "role": "user", "parts": [{"type": "file", **part}]})
    assert refused.value.code == "request_invalid"


def test_an_answer_in_steps_is_as_many_messages() -> None:
    """A result follows its call in a message of the user's; the last text is the assistant's again."""
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
def test_what_the_api_would_refuse_is_left_out(part: dict[str, Any]) -> None:
    """A thought without its signature, a call without its result, what is for the page alone."""
    assert told(part, role="assistant") == []


def test_a_denied_call_has_a_result_that_says_so() -> None:
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


def test_a_chat_is_a_session_and_says_all_of_it() -> None:
    """`useChat` names it `id`; who asks in a busy chat has done with what runs there."""
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


def test_without_a_name_it_is_a_conversation_of_its_own() -> None:
    """The workflow transport sends none, unless its app does."""
    assert (ask(USER).session, ask(USER).create_session) == (None, False)
    assert ask(USER, session_id="s").session == "s"
    with pytest.raises(Refused, match="`id` and `session_id` differ"):
        ask(USER, id="a", session_id="b")


def test_an_answer_to_a_tool_goes_on_in_the_message_that_called_it() -> None:
    """The client adds to that message what comes."""
    called = {
        "id": "msg_1",
        "role": "assistant",
        "parts": [{"type": "tool-look", **CALL, "state": "output-available", "output": 1}],
    }
    assert ask(USER, called, metadata={"user": "u"}).metadata == {"user": "u", "ui_message": "msg_1"}
    assert ask(USER, called, USER).metadata is None


def test_fields_that_mean_nothing_here_are_named() -> None:
    """All but those that no header can repeat, and not more than one can hold."""
    known = b'"messages": [], "messageId": null, "trigger": "submit-message"'
    assert unknown_fields(b"{%s}" % known) == []
    assert unknown_fields(b'{%s, "temperature": 1, "a\\r\\nb": 2, "webSearch": {}}' % known) == [
        "temperature",
        "webSearch",
    ]
    many = b",".join(b'"f%d": 1' % number for number in range(100))
    assert len(unknown_fields(b"{%s}" % many)) == 20


@given(JSON)
def test_a_tools_result_comes_back_as_it_was(output: object) -> None:
    """A page that is loaded anew shows what its tools have brought: a text that looks like JSON stays a text."""
    assert tool_result.decode_output(tool_result.encode_output(output)) == output


def test_a_text_that_a_tool_has_brought_is_told_as_it_is() -> None:
    """To the model it is no JSON."""
    assert tool_result.encode_output("[1]") == "[1]"


def test_what_a_tool_has_brought_is_no_deeper_than_anything_else() -> None:
    """As text it would be taken, and nobody could show it again."""
    deep = "[" * 300 + "]" * 300
    with pytest.raises(Refused, match="the output of `look`"):
        told({"type": "tool-look", **CALL, "state": "output-available", "output": json.loads(deep)}, role="assistant")
    assert tool_result.decode_output([{"type": "text", "text": deep}]) == deep
