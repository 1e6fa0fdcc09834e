"""What the API refuses, and what it does not."""

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


def prefilled(text: str) -> dict[str, Any]:
    return {"messages": [ASK, {"role": "assistant", "content": text}]}


def formatted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "schema": schema}}


def type_of_refusal(request: dict[str, Any]) -> str | None:
    try:
        require_max_tokens(decode(msgspec.json.encode(request)))
    except Refusal as refusal:
        return refusal.type
    return None


@pytest.mark.parametrize(
    ("change", "type_"),
    [
        ({}, None),
        ({"model": "claude-unknown"}, "not_found_error"),
        ({"model": ""}, "not_found_error"),
        ({"messages": []}, "invalid_request_error"),
        ({"messages": "x"}, "invalid_request_error"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_request_error"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": ""}]}, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "invalid_request_error"),
        ({"max_tokens": 0}, "invalid_request_error"),
        ({"max_tokens": "10"}, "invalid_request_error"),
        ({"temperature": 1.0}, "invalid_request_error"),
        ({"top_p": 0.9}, "invalid_request_error"),
        ({"top_k": 4}, "invalid_request_error"),
        (OLD | {"temperature": 1.0}, None),
        ({"tool_choice": {"type": "any"}}, "invalid_request_error"),
        ({"tool_choice": {"type": "tool", "name": "look"}}, "invalid_request_error"),
        ({"tool_choice": {"type": "auto"}}, None),
        ({"tool_choice": {"type": "none"}}, None),
        (OLD | {"tool_choice": {"type": "any"}}, None),
        ({"model": "claude-haiku-5-5", "tool_choice": {"type": "tool", "name": "look"}}, None),
        ({"output_config": formatted({"type": "object", "additionalProperties": False})}, None),
        ({"output_config": formatted({"type": "object"})}, "invalid_request_error"),
        ({"output_config": formatted({"anyOf": [{"type": "object"}]})}, "invalid_request_error"),
        ({"output_config": {"format": {"type": "json_object"}}}, "invalid_request_error"),
        ({"output_config": {"effort": "low"}}, None),
        (prefilled("w0"), "invalid_request_error"),
        (OLD | prefilled("w0"), None),
        (OLD | prefilled("w0 "), "invalid_request_error"),
        ({"messages": [ASK, {"role": "user", "content": [{"type": "image", "source": {}}]}]}, None),
    ],
)
def test_a_request_is_refused_as_the_api_refuses_it(change: dict[str, Any], type_: str | None) -> None:
    """What the real API would refuse must not pass here, or a test is green that production is not."""
    assert type_of_refusal(GOOD | change) == type_


def test_the_models_that_cannot_be_made_to_call_a_tool_are_those_of_the_data_file() -> None:
    """Two files say it, and one would be wrong: what is refused here the gateway refuses for OpenAI's clients."""
    said = {name: model.supports.forced_tools for name, model in models().items() if name in BY_NAME}
    assert [name for name, is_taken in said.items() if is_taken is False] == [
        name for name in said if not BY_NAME[name].takes_forced_tools
    ]


@pytest.mark.parametrize("missing", ["max_tokens", "messages", "model"])
def test_a_required_field_is_missed(missing: str) -> None:
    """The three fields without which there is no answer."""
    assert type_of_refusal({name: value for name, value in GOOD.items() if name != missing}) is not None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages":' + b"[" * 100_000])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Bytes that cannot be decoded, or not so deep, are the client's fault."""
    with pytest.raises(Refusal):
        decode(body)
