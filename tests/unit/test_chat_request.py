"""Chat completion requests: their conversion to turns, and what is refused or ignored."""

import base64
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from tailrace.gateway.clients.openai.chat_parameters import UNSUPPORTED
from tailrace.gateway.clients.openai.chat_request import ChatCompletionRequest, build_turn
from tailrace.gateway.clients.openai.unsupported import BuiltTurn
from tailrace.gateway.http.read_body import decode
from tailrace.gateway.turns.request_body import NewTurn, check
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.models import models
from tests.harness.strategies import JSON, TEXTS

HAIKU, SONNET, OLD = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-sonnet-4-5"
HI = {"role": "user", "content": "hi"}
NO_BASE64 = {"file_data": "data:text/plain;base64,é"}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
LOOKS = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}
CALLED = {"type": "tool_use", "id": "c1", "name": "look", "input": {"q": 1}}
PAGE = Path(__file__).parents[2] / "docs/OPENAI.md"


def asked(model: str = HAIKU, **given: Any) -> BuiltTurn:
    body = {"model": model, "messages": [HI], **given}
    return build_turn(decode(msgspec.json.encode(body), ChatCompletionRequest), models()[model])


def refusal(model: str = HAIKU, **given: Any) -> str:
    with pytest.raises(Refused) as refused:
        check(asked(model, **given).turn)
    assert refused.value.code == "request_invalid"
    return refused.value.message


def said(*told: dict[str, Any]) -> tuple[Any, list[Message] | None]:
    ask = asked(messages=list(told)).turn
    check(ask)
    return ask.system, ask.messages


def text(said: str, **further: object) -> dict[str, Any]:
    return {"type": "text", "text": said, **further}


def test_minimal_request_becomes_a_turn_without_session() -> None:
    """Nothing is added to the request."""
    assert asked() == BuiltTurn(NewTurn(messages=[Message("user", "hi")], model=HAIKU), [])


@pytest.mark.parametrize(
    ("model", "given", "wanted"),
    [
        (HAIKU, {"stop": "x"}, {"stop_sequences": ["x"]}),
        (HAIKU, {"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        (HAIKU, {"reasoning_effort": "low"}, {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}}),
        (HAIKU, {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        (HAIKU, {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        (HAIKU, {"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        (HAIKU, {"user": "u1", "safety_identifier": "s1"}, {"metadata": {"user_id": "s1"}}),
        (
            HAIKU,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        (HAIKU, {"response_format": {"type": "text"}}, None),
        (HAIKU, {"tools": [LOOK]}, None),
        (HAIKU, {"tools": [LOOK], "tool_choice": "auto", "parallel_tool_calls": True}, None),
        (HAIKU, {"tools": [LOOK], "tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        (HAIKU, {"tools": [LOOK], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        (
            HAIKU,
            {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "look"}}},
            {"tool_choice": {"type": "tool", "name": "look"}},
        ),
        (
            HAIKU,
            {"tools": [LOOK], "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (HAIKU, {"tools": [], "tool_choice": "required", "parallel_tool_calls": False}, None),
        (OLD, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        (HAIKU, {"temperature": 0.5, "top_p": 0.9}, None),
    ],
)
def test_parameter_becomes_an_option(model: str, given: dict[str, Any], wanted: dict[str, Any] | None) -> None:
    """The names are those of Anthropic's Messages API."""
    assert asked(model, **given).turn.options == wanted


def test_parameters_become_fields_of_the_turn() -> None:
    """Tools, limits, metadata, and the extensions of OpenAI-compatible servers of Claude."""
    given: dict[str, Any] = {
        "max_completion_tokens": 9,
        "metadata": {"a": "b"},
        "tools": [LOOK],
        "session_id": "s",
        "project_id": "p",
    }
    policies = {"on_busy": "branch", "on_interrupt": "fail", "on_disconnect": "cancel"}
    assert asked(**given, **policies).turn == NewTurn(
        messages=[Message("user", "hi")],
        model=HAIKU,
        max_tokens=9,
        tools=[LOOKS],
        metadata={"a": "b"},
        session="s",
        create_session=True,
        project="p",
        on_busy="branch",
        on_interrupt="fail",
        on_disconnect="cancel",
    )
    assert asked(max_tokens=9).turn.max_tokens == asked(max_tokens=9, max_completion_tokens=9).turn.max_tokens == 9


def test_tool_definition_keeps_every_field() -> None:
    """Optional fields, and those that Anthropic's definitions have besides."""
    strict = {**LOOK, "function": {"name": "look", "strict": True}, "cache_control": {"type": "ephemeral"}}
    assert asked(tools=[strict]).turn.tools == [
        {
            "name": "look",
            "input_schema": {"type": "object", "properties": {}},
            "strict": True,
            "cache_control": {"type": "ephemeral"},
        }
    ]


def test_system_and_developer_messages_become_the_system_prompt() -> None:
    """In their order, wherever they are."""
    assert said({"role": "system", "content": "Be brief."}, HI) == ("Be brief.", [Message("user", "hi")])
    told = ({"role": "developer", "content": [text("A")]}, HI, {"role": "system", "content": "B", "name": "x"}, HI)
    assert said(*told) == ([text("A"), text("B")], [Message("user", "hi")] * 2)


def test_conversation_with_tool_calls() -> None:
    """Consecutive tool messages become one message; empty text is left out; call ids are kept."""
    second = {**CALL, "id": "c2", "function": {"name": "look", "arguments": ""}}
    told = (
        HI,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [CALL, second],
            "reasoning_content": "hm",
            "annotations": [],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "2"}]},
        {"role": "user", "content": "and?", "name": "ada"},
        {"role": "assistant", "content": " ", "refusal": "No."},
        HI,
    )
    assert said(*told)[1] == [
        Message("user", "hi"),
        Message("assistant", [CALLED, {**CALLED, "id": "c2", "input": {}}]),
        Message(
            "user",
            [
                {"type": "tool_result", "tool_use_id": "c1", "content": "1"},
                {"type": "tool_result", "tool_use_id": "c2", "content": [text("2")]},
            ],
        ),
        Message("user", "and?"),
        Message("assistant", [text("No.")]),
        Message("user", "hi"),
    ]


def test_images_and_files() -> None:
    """As URL or data; `detail` is ignored, `cache_control` is kept."""
    plain = base64.b64encode("naïve".encode()).decode()
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "see", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,BBBB", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": "CCCC", "filename": "B.PDF"}},
        {"type": "file", "file": {"file_data": f"data:text/plain;charset=utf-8;base64,{plain}"}},
    ]
    pdf = {"type": "base64", "media_type": "application/pdf"}
    assert said({"role": "user", "content": parts})[1] == [
        Message(
            "user",
            [
                text("see", cache_control={"type": "ephemeral"}),
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "document", "source": {**pdf, "data": "BBBB"}, "title": "a.pdf"},
                {"type": "document", "source": {**pdf, "data": "CCCC"}, "title": "B.PDF"},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "naïve"}},
            ],
        )
    ]


def test_messages_with_an_answer_are_the_full_history() -> None:
    """Messages without an answer are added to the session, as with other OpenAI-compatible servers."""
    answer = {"role": "assistant", "content": "a"}
    tool = {"role": "tool", "tool_call_id": "c1", "content": "1"}
    assert asked(session_id="s", messages=[HI, answer, HI]).turn.full_history
    assert not asked(session_id="s", messages=[HI]).turn.full_history
    assert not asked(session_id="s", messages=[tool]).turn.full_history


@pytest.mark.parametrize("foreign", UNSUPPORTED, ids=lambda foreign: foreign.name)
def test_unsupported_parameter_is_ignored_or_refused(foreign: Any) -> None:
    """According to the table; values that ask for nothing special are accepted."""
    for idle in (None, *foreign.allowed):
        assert asked(**{foreign.name: idle}).ignored == []
    if foreign.is_refused:
        assert f"`{foreign.name}`" in refusal(**{foreign.name: "something"})
    else:
        assert asked(**{foreign.name: "something"}).ignored == [foreign.name]


def test_sampling_is_ignored_by_models_without_it() -> None:
    """Older models support it, within their own limits."""
    assert asked(SONNET, temperature=1, top_p=0.5).ignored == ["temperature", "top_p"]
    assert asked(OLD, temperature=1, top_p=0.5).ignored == []


@pytest.mark.parametrize(
    ("model", "given", "named"),
    [
        (HAIKU, {"messages": []}, "messages"),
        (HAIKU, {"messages": [{"role": "system", "content": "Be brief."}]}, "messages"),
        (HAIKU, {"messages": [{"role": "function", "name": "f", "content": "x"}]}, "function"),
        (HAIKU, {"messages": [HI, {"role": "assistant", "content": "prefill"}]}, "assistant"),
        (HAIKU, {"messages": [{"role": "assistant", "content": ""}, HI]}, "messages[0]"),
        (HAIKU, {"messages": [{"role": "assistant", "audio": {"id": "a"}}, HI]}, "audio"),
        (HAIKU, {"messages": [{"role": "assistant", "function_call": {"name": "f"}}, HI]}, "function_call"),
        (
            HAIKU,
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "input_audio",
        ),
        (HAIKU, {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}, "file_data"),
        (
            HAIKU,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "file", "file": {"file_data": "AA", "filename": "a"}}]}
                ]
            },
            "PDF",
        ),
        (HAIKU, {"messages": [{"role": "user", "content": [{"type": "file", "file": NO_BASE64}]}]}, "base64"),
        (
            HAIKU,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/x"}}]}]},
            "https",
        ),
        (HAIKU, {"messages": [HI, {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, HI]}, "custom"),
        (
            HAIKU,
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "["}}]}
                ]
            },
            "messages[0].tool_calls",
        ),
        (HAIKU, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "custom"),
        (HAIKU, {"tools": [LOOK], "tool_choice": {"type": "allowed_tools"}}, "allowed_tools"),
        (SONNET, {"tools": [LOOK], "tool_choice": "required"}, "tool_choice"),
        (HAIKU, {"response_format": {"type": "json_object"}}, "response_format"),
        (HAIKU, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        (HAIKU, {"reasoning_effort": "minimal"}, "reasoning_effort"),
        (SONNET, {"reasoning_effort": "none"}, "reasoning_effort"),
        (OLD, {"reasoning_effort": "low"}, "reasoning_effort"),
        (OLD, {"temperature": 1.5}, "temperature"),
        (HAIKU, {"n": 2}, "n"),
        (HAIKU, {"top_k": 5}, "top_k"),
        (HAIKU, {"on_busy": "wait"}, "on_busy"),
        (HAIKU, {"session_id": "a b"}, "session"),
        (HAIKU, {"project_id": "a/b"}, "project"),
    ],
)
def test_invalid_field_is_refused_by_name(model: str, given: dict[str, Any], named: str) -> None:
    """The gateway never changes the meaning of a request."""
    assert named in refusal(model, **given)


PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "file", "refusal", "x"])}) | JSON
TOLD = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": TEXTS | st.lists(PARTS, max_size=2),
        "tool_call_id": TEXTS,
        "tool_calls": JSON,
        "refusal": TEXTS,
    },
)


@given(
    st.dictionaries(st.sampled_from(ChatCompletionRequest.__struct_fields__), JSON, max_size=3),
    st.lists(TOLD | JSON, max_size=3),
)
def test_any_body_becomes_a_turn_or_is_refused(given_fields: dict[str, Any], told: list[Any]) -> None:
    """No other exception is raised."""
    body = {**given_fields, "messages": [HI, *told], "model": HAIKU}
    with suppress(Refused):
        check(build_turn(decode(msgspec.json.encode(body), ChatCompletionRequest), models()[HAIKU]).turn)


def test_every_parameter_of_openais_sdk_is_known() -> None:
    """It is either supported or in the table of unsupported parameters."""
    theirs = set(CompletionCreateParamsStreaming.__annotations__)
    assert {"messages", "stream", "web_search_options"} <= theirs
    assert theirs - set(ChatCompletionRequest.__struct_fields__) == set()
    assert {foreign.name for foreign in UNSUPPORTED} <= set(ChatCompletionRequest.__struct_fields__)


def test_tables_in_the_docs_equal_the_code() -> None:
    """docs/OPENAI.md has a row for each supported and each unsupported parameter."""
    (section,) = re.findall(
        r"^## `POST /v1/chat/completions`$(.*?)(?:^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|(?: (.*?) \|)?$", section, re.MULTILINE)
    foreign = {name: (treated, why) for name, treated, why in rows if treated in ("ignored", "refused")}
    table = {one.name: ("refused" if one.is_refused else "ignored", one.reason) for one in UNSUPPORTED}
    assert foreign == table
    taken = {name for name, *_ in rows} - set(foreign)
    assert set(ChatCompletionRequest.__struct_fields__) - set(table) <= taken
