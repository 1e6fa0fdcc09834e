"""Structured output: which schemas the API enforces, and which go into the prompt."""

from typing import Any

import pytest

from tailrace.deploy.simulated_claude.request import refuse_schema
from tailrace.features.common.schema_prompt import move_schema_to_prompt
from tailrace.features.structured_output.generator import request_schema
from tailrace.features.structured_output.native_schema import to_native
from tailrace.features.structured_output.schema_size import SCHEMA_BYTES_MAX, require_small_schema
from tailrace.generators.continuation import build_call
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.schema import schema_of, with_schema
from tests.harness.turn_builder import request

CLOSED = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
OPEN = {name: value for name, value in CLOSED.items() if name != "additionalProperties"}
NAMED = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "converted"),
    [
        (CLOSED, CLOSED),
        (OPEN, CLOSED),
        ({"type": "array", "items": OPEN, "minItems": 1}, {"type": "array", "items": CLOSED, "minItems": 1}),
        (NAMED, NAMED),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"type": "integer", "minimum": 1}, {"type": "integer", "description": '{"minimum":1}'}),
        (
            {"type": "string", "description": "A day", "pattern": "x"},
            {"type": "string", "description": 'A day\n\n{"pattern":"x"}'},
        ),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "string"}, {"type": "string"}),
    ],
)
def test_a_schema_is_converted_for_structured_outputs(schema: dict[str, Any], converted: dict[str, Any]) -> None:
    """Narrower, or with rules moved into the description that only the check enforces; the API accepts it."""
    assert to_native(schema) == converted
    refuse_schema(to_native(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"a": {"type": "object", "patternProperties": {"x": {}}}}},
        {"type": "array", "items": True},
        {"type": "array", "prefixItems": [{"type": "string"}]},
        {"oneOf": [OPEN]},
        {"not": OPEN},
        {"allOf": [OPEN, {"type": "object", "properties": {"m": {}}}]},
        OPEN | {"anyOf": [{"type": "object", "properties": {"m": {"type": "integer"}}}]},
        {"$ref": "#/$defs/a", "properties": {"m": {"type": "integer"}}, "$defs": {"a": OPEN}},
        {"$ref": "#/$defs/a", "anyOf": [{"properties": {"m": {"type": "integer"}}}], "$defs": {"a": OPEN}},
        {"anyOf": [OPEN], "required": ["m"]},
        OPEN | {"required": ["n", "m"]},
        # Not a schema: that of a tool has not been checked.
        OPEN | {"required": [["n"]]},
        OPEN | {"minProperties": 2},
        OPEN | {"const": {"n": 1, "m": 2}},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"$ref": "#/$defs/none"},
        {"type": "object", "properties": {"a": {"$ref": "https://example.com"}}},
    ],
)
def test_a_schema_beyond_structured_outputs_is_not_converted(schema: dict[str, Any]) -> None:
    """Converted, it would allow less than the client wants, or the API would refuse it."""
    assert to_native(schema) is None


def test_a_schema_with_many_references_is_visited_once() -> None:
    """Each of 40 definitions refers to the next one twice: 2^40 paths."""
    named = {
        f"{side}{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}, {"$ref": f"#/$defs/b{level + 1}"}]}
        for side in "ab"
        for level in range(40)
    }
    assert to_native({"$ref": "#/$defs/a0", "$defs": named | {"a40": CLOSED, "b40": CLOSED}}) is not None


def test_a_model_with_structured_outputs_gets_the_schema_as_an_option() -> None:
    options = with_schema({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, OPEN)
    call = build_call(request(options=options, system="Be brief."), [request_schema])
    assert call.options == {
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": CLOSED}},
    }
    assert call.system == "Be brief."


SAID = {"type": "text", "text": "Why?"}


@pytest.mark.parametrize(
    ("last", "before"),
    [
        (Message("user", "Why?"), [SAID]),
        (Message("user", [SAID]), [SAID]),
    ],
)
def test_another_model_gets_the_schema_after_the_question(last: Message, before: list[dict[str, Any]]) -> None:
    """Its system prompt and other options stay: the thinking of earlier answers is bound to the system prompt."""
    options = with_schema({"output_config": {"effort": "low"}}, OPEN)
    messages = [Message("user", "Hi."), last]
    asked = request(model="claude-fable-5-2", options=options, system="Be brief.", messages=messages)
    call = build_call(asked, [request_schema])
    assert (call.options, call.system) == ({"output_config": {"effort": "low"}}, "Be brief.")
    assert asked.messages == messages
    assert call.messages[0] == messages[0]
    content = call.messages[-1].content
    prompt = content if isinstance(content, str) else content[-1]["text"]
    assert "JSON Schema" in prompt
    assert '"required":["n"]' in prompt
    assert before == ([] if isinstance(content, str) else content[:-1])


def test_the_beta_output_format_is_passed_on_unchanged() -> None:
    """Its schema is found for the check."""
    options = {"output_format": {"type": "json_schema", "schema": CLOSED}}
    assert schema_of(options) == CLOSED
    assert build_call(request(options=options), [request_schema]).options == options


@pytest.mark.parametrize(
    "options",
    [
        with_schema({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, OPEN),
        {"thinking": {"type": "adaptive"}, "output_format": {"type": "json_schema", "schema": OPEN}},
    ],
)
def test_move_schema_to_prompt_moves_it_for_any_model(options: dict[str, Any]) -> None:
    """The schema leaves either option; the other options and the system prompt stay."""
    call = move_schema_to_prompt(build_call(request(options=options, system="Be brief."), [request_schema]))
    assert schema_of(call.options) is None
    config = {"output_config": {"effort": "low"}} if "output_config" in options else {}
    assert call.options == {"thinking": {"type": "adaptive"}} | config
    assert call.system == "Be brief."
    assert '"required":["n"]' in call.messages[-1].content[-1]["text"]  # type: ignore[index]
    assert move_schema_to_prompt(call) == call


def test_a_schema_stands_before_a_system_message() -> None:
    """The API takes that only at the end."""
    reminder = Message("system", "Be kind.", clear_at="next_user_message")
    asked = request(messages=[Message("user", "Hi."), reminder], options=with_schema(None, OPEN))
    call = move_schema_to_prompt(build_call(asked))
    assert '"required":["n"]' in call.messages[0].content[-1]["text"]  # type: ignore[index]
    assert call.messages[1:] == [reminder]


def test_nothing_follows_the_results_of_an_answer_with_an_open_search() -> None:
    """It would end the answer, and the API refuses that. The schema is in the last result."""
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    tool_call = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
    results = Message("user", [{"type": "tool_result", "tool_use_id": "c1", "content": "1"}])
    messages = [Message("user", "Hi."), Message("assistant", [search, tool_call]), results]
    asked = request(messages=messages, system="Be brief.", options=with_schema(None, OPEN))
    call = move_schema_to_prompt(build_call(asked))
    assert (call.messages[:2], call.system) == (messages[:2], "Be brief.")
    content = call.messages[2].content
    assert isinstance(content, list)
    said, added = content[0]["content"]
    assert said == {"type": "text", "text": "1"}
    assert "Your whole answer is one JSON value" in added["text"]


def test_two_schemas_are_refused() -> None:
    """It would be unclear which one counts."""
    with pytest.raises(Refused):
        with_schema(with_schema(None, OPEN), CLOSED)
    with pytest.raises(Refused):
        with_schema({"output_config": "none"}, CLOSED)


def test_a_schema_has_a_size_limit() -> None:
    """Each answer is checked against it."""
    require_small_schema({"enum": ["x" * (SCHEMA_BYTES_MAX - 100)]})
    with pytest.raises(Refused) as refused:
        require_small_schema({"enum": ["x" * SCHEMA_BYTES_MAX]})
    assert refused.value.code == "schema_invalid"
