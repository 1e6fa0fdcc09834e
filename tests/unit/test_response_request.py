"""Responses API requests: their conversion to turns, and what is refused or ignored."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from tailrace.gateway.clients.openai.responses_input import items_of, messages_of
from tailrace.gateway.clients.openai.responses_parameters import UNSUPPORTED
from tailrace.gateway.clients.openai.responses_request import ResponseRequest, build_turn
from tailrace.gateway.clients.openai.unsupported import BuiltTurn
from tailrace.gateway.http import read_body
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.models import models

PAGE = Path(__file__).parents[2] / "docs/OPENAI.md"
SONNET, SONNET_4_5 = models()["claude-sonnet-5-5"], models()["claude-sonnet-4-5"]
HAIKU = models()["claude-haiku-5-5"]
PNG = "data:image/png;base64,iVBORw0KGgo="
NO_BASE64 = {"type": "input_file", "file_data": "data:text/plain;base64,é"}
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"x": {}}}}


def understood(model: Any = SONNET, **given: Any) -> BuiltTurn:
    told = read_body.decode(json.dumps({"model": model.id, "input": "hi", **given}).encode(), ResponseRequest)
    return build_turn(told, model)


def ask(model: Any = SONNET, **given: Any) -> NewTurn:
    return understood(model, **given).turn


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("hi", [("user", "hi")]),
        ([user("a"), user("b")], [("user", "a"), ("user", "b")]),
        (
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}],
            [("user", [{"type": "text", "text": "a"}])],
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "detail": "low", "image_url": PNG}]}],
            [
                (
                    "user",
                    [
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                        }
                    ],
                )
            ],
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_url": "https://a.example/b.pdf"}]}],
            [("user", [{"type": "document", "source": {"type": "url", "url": "https://a.example/b.pdf"}}])],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "input_file",
                            "filename": "a.txt",
                            "file_data": "data:text/plain;base64," + base64.b64encode(b"abc").decode(),
                        }
                    ],
                }
            ],
            [
                (
                    "user",
                    [
                        {
                            "type": "document",
                            "source": {"type": "text", "media_type": "text/plain", "data": "abc"},
                            "title": "a.txt",
                        }
                    ],
                )
            ],
        ),
        (
            [
                user("go"),
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [{"type": "summary_text", "text": "hm"}],
                    "encrypted_content": "c2ln",
                },
                {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "redacted_thinking:eA=="},
                {"type": "reasoning", "id": "rs_3", "summary": [{"type": "summary_text", "text": "unsigned"}]},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "ok", "annotations": [], "logprobs": []}],
                },
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": '{"x": 1}'},
                {"type": "function_call", "call_id": "c2", "name": "look", "arguments": ""},
                {"type": "function_call_output", "call_id": "c1", "output": "seen"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
                user("and?"),
            ],
            [
                ("user", "go"),
                (
                    "assistant",
                    [
                        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                        {"type": "redacted_thinking", "data": "eA=="},
                        {"type": "text", "text": "ok"},
                        {"type": "tool_use", "id": "c1", "name": "look", "input": {"x": 1}},
                        {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
                    ],
                ),
                (
                    "user",
                    [
                        {"type": "tool_result", "tool_use_id": "c1", "content": "seen"},
                        {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "two"}]},
                    ],
                ),
                ("user", "and?"),
            ],
        ),
    ],
    ids=["string", "messages", "text part", "picture", "address of a file", "file", "a whole conversation"],
)
def test_input_items_become_messages(given: Any, messages: list[tuple[str, Any]]) -> None:
    """Consecutive items of the assistant become one message, and so do the outputs of its calls."""
    assert [(one.role, one.content) for one in ask(input=given).messages or []] == messages


def test_instructions_and_system_messages_become_the_system_prompt() -> None:
    """`instructions` come first; `developer` is `system`; without any, there is none."""
    items = [{"role": "developer", "content": "b"}, user("hi"), {"role": "system", "content": "c"}]
    assert ask(input=items, instructions="a").system == [{"type": "text", "text": text} for text in "abc"]
    assert ask(instructions="a").system == "a"
    assert ask().system is None


@pytest.mark.parametrize(
    ("model", "given", "options"),
    [
        (SONNET, {}, None),
        (SONNET, {"tools": [LOOK]}, None),
        (SONNET, {"tools": [LOOK], "tool_choice": "auto"}, None),
        (SONNET, {"tools": [LOOK], "tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        (HAIKU, {"tools": [LOOK], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        (
            HAIKU,
            {"tools": [LOOK], "tool_choice": {"type": "function", "name": "look"}, "parallel_tool_calls": False},
            {"tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True}},
        ),
        (
            SONNET,
            {"reasoning": {"effort": "high"}},
            {"output_config": {"effort": "high"}, "thinking": {"type": "adaptive"}},
        ),
        (
            SONNET,
            {"reasoning": {"effort": "low", "summary": "auto"}},
            {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive", "display": "summarized"}},
        ),
        (SONNET, {"reasoning": {"summary": "auto"}}, {"thinking": {"type": "adaptive", "display": "summarized"}}),
        (HAIKU, {"reasoning": {"effort": "none", "summary": "auto"}}, {"thinking": {"type": "disabled"}}),
        (
            SONNET,
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        (SONNET, {"text": {"format": {"type": "text"}}}, None),
        (SONNET, {"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        (SONNET, {"safety_identifier": "s1", "user": "u1"}, {"metadata": {"user_id": "s1"}}),
        (SONNET_4_5, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
    ],
    ids=range(15),
)
def test_parameter_becomes_an_option(model: Any, given: dict[str, Any], options: dict[str, Any] | None) -> None:
    """The names are those of Anthropic's Messages API."""
    assert ask(model, **given).options == options


def test_functions_become_tools() -> None:
    """With their schema; a function without parameters has an empty one."""
    bare = {"type": "function", "name": "now", "description": "the time", "strict": True}
    assert ask(tools=[LOOK, bare]).tools == [
        {"name": "look", "input_schema": LOOK["parameters"]},
        {
            "name": "now",
            "input_schema": {"type": "object", "properties": {}},
            "description": "the time",
            "strict": True,
        },
    ]


def test_request_continues_a_response_or_a_conversation() -> None:
    """Or neither."""
    assert (ask().session, ask().parent, ask().create_session) == (None, msgspec.UNSET, False)
    assert ask(previous_response_id="resp_turn-1").parent == "turn-1"
    for named in ("conv_1", {"id": "conv_1"}):
        placed = ask(conversation=named)
        assert (placed.session, placed.create_session, placed.full_history) == ("conv_1", True, False)
    answered = [user("hi"), {"role": "assistant", "content": "ho"}, user("and?")]
    news, whole = ask(session_id="s1"), ask(session_id="s1", input=answered)
    assert (news.session, news.full_history, whole.session, whole.full_history) == ("s1", False, "s1", True)
    assert not ask(conversation="s1", input=answered).full_history


def test_common_parameters_become_fields_of_the_turn() -> None:
    """Those that Tailrace adds to every protocol are among them."""
    given = {"max_output_tokens": 9, "metadata": {"a": "b"}, "project_id": "p", "on_busy": "branch"}
    further = {"on_interrupt": "fail", "on_disconnect": "cancel"}
    made = ask(**given, **further)
    assert (made.max_tokens, made.metadata, made.project, made.on_busy) == (9, {"a": "b"}, "p", "branch")
    assert (made.on_interrupt, made.on_disconnect) == ("fail", "cancel")


@pytest.mark.parametrize("row", [row for row in UNSUPPORTED if row.is_refused], ids=lambda row: row.name)
def test_unsupported_parameter_is_refused_by_name(row: Any) -> None:
    """With the reason of the table; values that ask for nothing special are accepted."""
    with pytest.raises(Refused, match=f"`{row.name}` is not supported") as refused:
        ask(**{row.name: "something"})
    assert row.reason in refused.value.message
    for idle in (None, *row.allowed):
        assert understood(**{row.name: idle}).ignored == []


@pytest.mark.parametrize("row", [row for row in UNSUPPORTED if not row.is_refused], ids=lambda row: row.name)
def test_harmless_parameter_is_ignored_by_name(row: Any) -> None:
    """According to the table; values that ask for nothing special are accepted silently."""
    assert understood(**{row.name: "something"}).ignored == [row.name]
    for idle in (None, *row.allowed):
        assert understood(**{row.name: idle}).ignored == []


def test_sampling_context_and_verbosity_are_ignored_by_name() -> None:
    """Nearly every client sends sampling parameters."""
    given = {"temperature": 1, "top_p": 0.5, "reasoning": {"context": "all_turns"}, "text": {"verbosity": "low"}}
    assert understood(**given).ignored == ["temperature", "top_p", "reasoning.context", "text.verbosity"]
    assert ask(**given).options is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mystery": 1}, "unknown field"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "previous_response_id"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "`web_search_call`"),
        ({"input": [{"content": "who?"}]}, "`role`"),
        ({"input": [{"type": "function_call", "name": "look"}]}, "`call_id`"),
        ({"input": [{"type": "function_call_output", "call_id": "c1"}]}, "`output`"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "n", "arguments": "{"}]},
            "a JSON object",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "`input_audio`"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "uploaded files",
        ),
        ({"input": [{"role": "user", "content": [NO_BASE64]}]}, "not base64"),
        ({"tools": [{"type": "web_search"}]}, "`web_search`"),
        ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools"}}, "`allowed_tools`"),
        ({"tools": [LOOK], "tool_choice": "required"}, "does not support forced tool calls"),
        ({"text": {"format": {"type": "json_object"}}}, "json_schema"),
        ({"reasoning": {"mode": "pro"}}, "`reasoning.mode`"),
        ({"reasoning": {"effort": "minimal"}}, "`reasoning.effort`"),
        ({"reasoning": {"effort": "none"}}, "always thinks"),
        ({"conversation": "a", "previous_response_id": "resp_b"}, "either"),
        ({"conversation": "a", "session_id": "b"}, "differ"),
        ({"previous_response_id": "resp_*.>"}, "is not the id of a response"),
    ],
    ids=range(20),
)
def test_invalid_field_is_refused_with_advice(given: dict[str, Any], said: str) -> None:
    """The message names the field or what to send."""
    with pytest.raises(Refused, match=said):
        ask(**given)


def test_listed_input_items_equal_the_input() -> None:
    """Sending the listed items again gives the same conversation."""
    messages = [
        Message("user", "hi"),
        Message(
            "assistant", [{"type": "text", "text": "ok"}, {"type": "tool_use", "id": "c1", "name": "n", "input": {}}]
        ),
        Message("user", [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "seen"}]}]),
        Message(
            "user",
            [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}},
                {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aaaa"}},
                {"type": "document", "source": {"type": "url", "url": "https://a.example/b.pdf"}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}, "title": "b"},
            ],
        ),
    ]
    items = items_of("turn-1", messages)
    assert [item["type"] for item in items] == [
        "message",
        "message",
        "function_call",
        "function_call_output",
        "message",
    ]
    assert len({item["id"] for item in items}) == len(items)
    again = messages_of(read_body.decode(json.dumps({"model": "m", "input": items}).encode(), ResponseRequest).input)
    assert again == [Message("user", [{"type": "text", "text": "hi"}]), *messages[1:]]


def test_every_parameter_of_openais_sdk_is_known() -> None:
    """It is either supported or in the table of unsupported parameters."""
    theirs = set(ResponseCreateParamsBase.__annotations__) | {"stream"}
    assert {"input", "background", "moderation"} <= theirs
    assert theirs - set(ResponseRequest.__struct_fields__) == set()
    assert {foreign.name for foreign in UNSUPPORTED} <= set(ResponseRequest.__struct_fields__)


def test_tables_in_the_docs_equal_the_code() -> None:
    """docs/OPENAI.md has a row for each supported and each unsupported parameter."""
    (section,) = re.findall(r"^## `POST /v1/responses`$(.*?)(?:^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|(?: (.*?) \|)?$", section, re.MULTILINE)
    foreign = {name: (treated, why) for name, treated, why in rows if treated in ("ignored", "refused")}
    table = {one.name: ("refused" if one.is_refused else "ignored", one.reason) for one in UNSUPPORTED}
    assert foreign == table
    taken = {name for name, *_ in rows} - set(foreign)
    assert set(ResponseRequest.__struct_fields__) - set(table) <= taken
