"""How a model is asked for JSON: what its own structured outputs can say, and what is said in the prompt instead."""

from typing import Any

import pytest

from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.request import refuse_schema
from tailrace.generators.continuation import build_call
from tailrace.generators.structured_output import move_schema_to_prompt, to_native
from tailrace.proto.errors import Refused
from tailrace.proto.schema import SCHEMA_BYTES_MAX, require_small_schema, schema_of, with_schema
from tests.handwritten import request

CLOSED = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
OPEN = {name: value for name, value in CLOSED.items() if name != "additionalProperties"}
NAMED = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "said"),
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
def test_a_schema_in_the_words_of_structured_outputs(schema: dict[str, Any], said: dict[str, Any]) -> None:
    """Narrower than it was, or told in a description what only the judge can check; the API takes it."""
    assert to_native(schema) == said
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
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"$ref": "#/$defs/none"},
        {"type": "object", "properties": {"a": {"$ref": "https://example.com"}}},
    ],
)
def test_what_structured_outputs_cannot_say_is_not_said_in_them(schema: dict[str, Any]) -> None:
    """Else they would give less than was asked, or an error."""
    assert to_native(schema) is None


def test_a_schema_of_many_references_is_looked_through_once() -> None:
    """Each of 40 definitions names two of the next: the ways through them are a million millions."""
    named = {
        f"{side}{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}, {"$ref": f"#/$defs/b{level + 1}"}]}
        for side in "ab"
        for level in range(40)
    }
    assert to_native({"$ref": "#/$defs/a0", "$defs": named | {"a40": CLOSED, "b40": CLOSED}}) is not None


def test_a_model_that_has_them_is_made_to_fit() -> None:
    """The schema stands where the API has it, and the other options with it."""
    options = with_schema({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, OPEN)
    call = build_call(request(options=options, system="Be brief."))
    assert call.options == {
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": CLOSED}},
    }
    assert call.system == "Be brief."


@pytest.mark.parametrize("system", [None, "Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_another_is_told_in_its_prompt(system: Any) -> None:
    """What it was told besides stays; so do the other options."""
    options = with_schema({"output_config": {"effort": "low"}}, OPEN)
    call = build_call(request(model="claude-fable-5-2", options=options, system=system))
    assert call.options == {"output_config": {"effort": "low"}}
    told = str(call.system)
    assert "JSON Schema" in told
    assert '"required":["n"]' in told
    assert ("Be brief." in told) == (system is not None)


def test_a_format_of_the_beta_goes_as_it_came() -> None:
    """It is found, and judged by, and nobody touches it."""
    options = {"output_format": {"type": "json_schema", "schema": CLOSED}}
    assert schema_of(options) == CLOSED
    assert build_call(request(options=options)).options == options


@pytest.mark.parametrize(
    "options",
    [
        with_schema({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, OPEN),
        {"thinking": {"type": "adaptive"}, "output_format": {"type": "json_schema", "schema": OPEN}},
    ],
)
def test_who_has_none_is_told_in_its_prompt_whatever_its_model_has(options: dict[str, Any]) -> None:
    """The schema leaves the options, from either place; the others stay, and so does what the prompt said."""
    call = move_schema_to_prompt(build_call(request(options=options, system="Be brief.")))
    assert schema_of(call.options) is None
    config = {"output_config": {"effort": "low"}} if "output_config" in options else {}
    assert call.options == {"thinking": {"type": "adaptive"}} | config
    assert isinstance(call.system, str)
    assert call.system.startswith("Be brief.\n\n")
    assert '"required":["n"]' in call.system
    assert move_schema_to_prompt(call) == call


def test_one_schema_is_enough() -> None:
    """Of two nobody could say which is meant."""
    with pytest.raises(Refused):
        with_schema(with_schema(None, OPEN), CLOSED)
    with pytest.raises(Refused):
        with_schema({"output_config": "none"}, CLOSED)


def test_a_schema_has_a_size() -> None:
    """It is judged by at each answer."""
    require_small_schema({"enum": ["x" * (SCHEMA_BYTES_MAX - 100)]})
    with pytest.raises(Refused) as refused:
        require_small_schema({"enum": ["x" * SCHEMA_BYTES_MAX]})
    assert refused.value.code == "schema_invalid"


def test_the_simulation_refuses_what_the_api_does() -> None:
    """Or the first test here would say nothing."""
    with pytest.raises(Refusal):
        refuse_schema(OPEN)
