"""Checks of the API's requests in the simulated Claude."""

import re
from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude.model import BY_NAME
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.request import decode, require_max_tokens
from tailrace.proto.models import models

ASK = {"role": "user", "content": "x"}
GOOD: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 10, "messages": [ASK]}
OLD = {"model": "claude-sonnet-4-5"}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
TEXT = {"type": "text", "text": "w0"}


def prefilled_request(content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"messages": [ASK, {"role": "assistant", "content": content}]}


def marked_request(cache_control: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": cache_control}]}]}


def schema_request(schema: dict[str, Any]) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "schema": schema}}


def type_of_refusal(request: dict[str, Any]) -> str | None:
    try:
        require_max_tokens(decode(msgspec.json.encode(request)))
    except Refusal as refusal:
        return refusal.type
    return None


def tool_use(*calls: str, **given: Any) -> dict[str, Any]:
    content = [{"type": "tool_use", "id": one, "name": "n", "input": {}, **given} for one in calls]
    return {"role": "assistant", "content": content}


def tool_result(*calls: str) -> dict[str, Any]:
    content = [{"type": "tool_result", "tool_use_id": call, "content": "r"} for call in calls]
    return {"role": "user", "content": content}


LATE = {"role": "user", "content": [TEXT, *tool_result("c1")["content"]]}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ASK, tool_use("c1"), tool_result("c1")], None),
        ([ASK, tool_use("c1"), tool_result("c1"), ASK], None),
        ([ASK, tool_use("c1", "c2"), tool_result("c1"), tool_result("c2")], None),
        ([ASK, tool_use("c1"), ASK], "without `tool_result` blocks immediately after: c1"),
        ([ASK, tool_use("c1", "c2"), tool_result("c1")], "without `tool_result` blocks immediately after: c2"),
        ([ASK, tool_use("c1"), LATE], "without `tool_result` blocks immediately after: c1"),
        ([tool_result("c1")], "unexpected `tool_use_id`"),
        ([ASK, tool_use("c1"), tool_result("c1"), tool_use("c2"), tool_result("c2", "c1")], "unexpected `tool_use_id`"),
        ([ASK, tool_use("c1"), tool_result("c1"), tool_result("c1")], "single result"),
        ([ASK, tool_use(""), tool_result("")], "messages.1.content.0.tool_use.id: Field required"),
        ([ASK, tool_use("c1", name=""), tool_result("c1")], "tool_use.name: Field required"),
        ([ASK, tool_use("c1", input=[]), tool_result("c1")], "tool_use.input: Input should be a valid dictionary"),
    ],
)
def test_a_tool_call_needs_its_result_directly_after_it(messages: list[dict[str, Any]], message: str | None) -> None:
    """As in Anthropic's API, which joins consecutive messages of one role."""
    body = msgspec.json.encode(GOOD | {"messages": messages})
    if message is None:
        decode(body)
        return
    with pytest.raises(Refusal, match=message):
        decode(body)


@pytest.mark.parametrize(
    ("change", "type_"),
    [
        ({}, None),
        ({"model": "claude-unknown"}, "not_found_error"),
        ({"messages": []}, "invalid_request_error"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": ""}]}, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "invalid_request_error"),
        ({"max_tokens": 0}, "invalid_request_error"),
        ({"max_tokens": "10"}, "invalid_request_error"),
        ({"temperature": 1.0}, "invalid_request_error"),
        (OLD | {"temperature": 1.0}, None),
        ({"tool_choice": {"type": "any"}}, "invalid_request_error"),
        ({"tool_choice": {"type": "tool", "name": "look"}}, "invalid_request_error"),
        ({"tool_choice": {"type": "auto"}}, None),
        (OLD | {"tool_choice": {"type": "any"}}, None),
        (OLD | {"tool_choice": {"type": "any"}, "thinking": {"type": "enabled"}}, "invalid_request_error"),
        ({"model": "claude-haiku-5-5", "tool_choice": {"type": "tool", "name": "look"}}, None),
        ({"output_config": schema_request({"type": "object", "additionalProperties": False})}, None),
        ({"output_config": schema_request({"type": "object"})}, "invalid_request_error"),
        ({"output_config": schema_request({"anyOf": [{"type": "object"}]})}, "invalid_request_error"),
        ({"output_config": {"format": {"type": "json_object"}}}, "invalid_request_error"),
        ({"output_config": {"effort": "low"}}, None),
        ({"output_format": schema_request({"type": "object", "additionalProperties": False})["format"]}, None),
        ({"output_format": schema_request({"type": "object"})["format"]}, "invalid_request_error"),
        (prefilled_request("w0"), "invalid_request_error"),
        (OLD | prefilled_request("w0"), None),
        (OLD | prefilled_request("w0 "), "invalid_request_error"),
        (OLD | THINKING, None),
        (OLD | THINKING | prefilled_request("w0"), "invalid_request_error"),
        (OLD | THINKING | prefilled_request([TEXT]), "invalid_request_error"),
        (OLD | THINKING | prefilled_request([{"type": "thinking", "thinking": "x", "signature": "s"}, TEXT]), None),
        ({"messages": [ASK, {"role": "user", "content": [{"type": "image", "source": {}}]}]}, None),
        (marked_request({"type": "ephemeral", "ttl": "1h"}), None),
        (marked_request({"type": "ephemeral", "ttl": "2h"}), "invalid_request_error"),
        (marked_request("5m"), "invalid_request_error"),
    ],
)
def test_an_invalid_request_is_refused_as_by_the_api(change: dict[str, Any], type_: str | None) -> None:
    """Otherwise a test would pass with a request that fails in production."""
    assert type_of_refusal(GOOD | change) == type_


NEW, OLDER = "2026-10-21", "2023-06-01"
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
CODE = {"type": "server_tool_use", "id": "srvtoolu_2", "name": "code_execution", "input": {}}
BY_CODE = {**tool_use("c1")["content"][0], "caller": {"type": "code_execution_20260120", "tool_id": "srvtoolu_2"}}
RAN = {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_2", "content": {}}
PDF: dict[str, Any] = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}}


def picture(media_type: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": "x"}}


def answered(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def question(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


CALL: Any = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
THOUGHT: Any = {"type": "thinking", "thinking": "x", "signature": "y"}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def failed(content: Any) -> dict[str, Any]:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": content, "is_error": True}
    return {"role": "user", "content": [result]}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ASK, answered(SEARCH, FOUND), ASK], None),
        ([ASK, answered(SEARCH)], None),
        ([ASK, answered(TEXT, {"type": "compaction", "content": "x"})], None),
        ([ASK, answered({"type": "compaction", "content": "x"}, TEXT)], "prefill"),
        ([ASK, answered(SEARCH, FOUND)], "prefill"),
        ([ASK, answered(SEARCH), ASK], "without a corresponding `web_search_tool_result` block"),
        ([ASK, answered(FOUND), ASK], "unexpected `tool_use_id` found in `web_search_tool_result` blocks"),
        ([ASK, answered(CODE, BY_CODE), tool_result("c1"), answered(RAN, TEXT), ASK], None),
        ([ASK, answered(CODE), ASK], "without a corresponding `code_execution_tool_result` block"),
        ([ASK, answered(SEARCH, CALL), tool_result("c1")], None),
        ([ASK, answered(SEARCH, CALL), tool_result("c1"), answered(FOUND, TEXT), ASK], None),
        ([ASK, answered(SEARCH, CALL), tool_result("c1"), ASK], "without a corresponding `web_search_tool_result`"),
        ([ASK, answered(SEARCH, CALL), tool_result("c1"), answered(TEXT), ASK], "without a corresponding `web_search"),
        ([ASK, answered(SEARCH, CALL), tool_result("c1"), system("x")], None),
        ([system("x"), ASK], "messages.0: use the top-level 'system' parameter for the initial system prompt"),
        ([ASK, system("x")], None),
        ([ASK, system("x"), answered(TEXT), ASK], None),
        ([ASK, answered(TEXT), system([]), ASK], None),
        ([ASK, system("x"), ASK], "messages.1: role 'system' must precede an 'assistant' message or end the array"),
        ([ASK, system("x"), system("y")], "messages.1: role 'system' must precede an 'assistant' message"),
        ([ASK, answered(TEXT), system("x"), ASK], "messages.2: role 'system' must follow a 'user' message"),
        ([ASK, answered(SEARCH, FOUND), system("x"), answered(TEXT), ASK], None),
        ([ASK, answered(TEXT, THOUGHT), ASK], "messages.1: The final block in an assistant message cannot be"),
        ([ASK, answered(THOUGHT), answered(TEXT), ASK], None),
        ([ASK, tool_use("c1"), failed("")], "content cannot be empty if `is_error` is true"),
        ([ASK, tool_use("c1"), failed([TEXT, picture("image/png")])], "all content must be type `text` if `is_error`"),
        ([ASK, tool_use("c1"), failed([TEXT])], None),
        ([ASK, answered({**SEARCH, "id": "call_1"})], "server_tool_use.id: String should match pattern '^srvtoolu_"),
        ([ASK, tool_use("c.1"), tool_result("c.1")], "messages.1.content.0.tool_use.id: String should match pattern"),
        ([ASK, tool_use("c1"), tool_result("c1"), tool_use("c1"), tool_result("c1")], "`tool_use` ids must be unique"),
        ([question({"type": "text", "text": " \n"})], "must contain non-whitespace text"),
        ([{"role": "user", "content": "  "}], "must contain non-whitespace text"),
        ([ASK, answered({"type": "thinking", "thinking": "x"}, TEXT), ASK], "thinking.signature: Field required"),
        ([question(picture("image/webp"), PDF)], None),
        ([ASK, answered(picture("image/png"), TEXT), ASK], "'image' blocks are not permitted within assistant turns"),
        ([question(picture("image/jpg"))], "image.source.base64.media_type: Input should be 'image/jpeg', 'image/png'"),
        ([question(picture("image/svg+xml"))], "source.base64.media_type"),
        (
            [question({**PDF, "source": {**PDF["source"], "media_type": "text/csv"}})],
            "Input should be 'application/pdf'",
        ),
    ],
)
def test_a_message_is_refused_with_the_words_of_the_api(messages: list[dict[str, Any]], message: str | None) -> None:
    body = msgspec.json.encode(GOOD | {"messages": messages})
    if message is None:
        decode(body, NEW)
        return
    with pytest.raises(Refusal, match=re.escape(message)):
        decode(body, NEW)


@pytest.mark.parametrize(
    "change",
    [
        *({name: 1} for name in ("temperature", "top_p", "top_k")),
        {"messages": [ASK, answered(TEXT, PDF), ASK]},
        {"messages": [question({**TEXT, "citations": [{"type": "char_location"}]})]},
    ],
)
def test_the_version_of_october_2026_refuses_what_it_has_removed(change: dict[str, Any]) -> None:
    """For all models. The version before takes it, and the models that support it."""
    body = msgspec.json.encode(GOOD | OLD | change)
    decode(body, OLDER)
    with pytest.raises(Refusal, match="not permitted"):
        decode(body, NEW)


def test_models_without_forced_tools_are_those_of_the_product_data() -> None:
    """Generators do not send them such requests."""
    supports = {name: model.supports.forced_tools for name, model in models().items() if name in BY_NAME}
    assert [name for name, is_taken in supports.items() if is_taken is False] == [
        name for name in supports if not BY_NAME[name].takes_forced_tools
    ]


@pytest.mark.parametrize("missing", ["max_tokens", "messages", "model"])
def test_a_missing_required_field_is_refused(missing: str) -> None:
    assert type_of_refusal({name: value for name, value in GOOD.items() if name != missing}) is not None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages":' + b"[" * 100_000])
def test_invalid_json_is_refused(body: bytes) -> None:
    """Also JSON that is nested too deeply."""
    with pytest.raises(Refusal):
        decode(body)
