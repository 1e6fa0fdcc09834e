"""Values of the simulated Claude that fit a JSON Schema."""

from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.sample import FORMATS, INPUT, LENGTH_MAX, sample, sample_input

Schemas = st.SearchStrategy[Any]

NODE = {"$ref": "#/$defs/node"}


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"left": NODE, "right": NODE}, {}),
        ({"left": {"anyOf": [NODE, {"type": "null"}]}, "right": {"const": 1}}, {"left": None, "right": 1}),
        ({"children": {"type": "array", "items": NODE}}, {"children": []}),
        ({"twice": {"type": "array", "items": {"const": 1}, "minItems": 10**12}}, {"twice": [1] * LENGTH_MAX}),
    ],
)
def test_the_sample_of_a_recursive_schema_is_finite(properties: dict[str, Any], expected: Any) -> None:
    """A tree would otherwise keep the simulated Claude busy for minutes."""
    schema = {**NODE, "$defs": {"node": {"type": "object", "properties": properties}}}
    assert msgspec.json.decode(sample(schema)) == expected


@pytest.mark.parametrize("schema", [{"properties": []}, {"type": "array", "minItems": "x"}, {"minLength": None}])
def test_an_invalid_schema_is_refused_as_by_the_api(schema: dict[str, Any]) -> None:
    """A generator would repeat the call after another error."""
    with pytest.raises(Refusal, match="JSON schema is invalid"):
        sample(schema)


def fits(schema: Any) -> bool:
    found = msgspec.json.decode(sample(schema))
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(found)


def between(kind: str, low: str, high: str, values: st.SearchStrategy[Any]) -> Schemas:
    """Schemas of a kind with a lower bound, an upper bound or both."""
    both = st.tuples(values, values).map(lambda pair: {low: min(pair), high: max(pair)})
    one = st.tuples(st.sampled_from([low, high]), values).map(lambda pair: {pair[0]: pair[1]})
    return st.one_of(both, one).map(lambda bounds: {"type": kind, **bounds})


COUNTS, NUMBERS, FLOATS = st.integers(0, 12), st.integers(-50, 50), st.floats(-50, 50)
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4), st.lists(NUMBERS, max_size=2))
PATTERNS = [
    *(r"^[A-Z]{3}$", r"^\d{4}-\d{2}$", r"^[^\s@]+@[^\s@]+\.[a-z]{2,}$", r"^(https?)://\S+$"),
    *("a|b", r"^\w+(-\w+)*$", r"[^a-zA-Z]", r"^\S{2,9}\D?$"),
]
MULTIPLES = st.sampled_from([0.1, 2.5, 7, 10])
LEAVES = st.one_of(
    between("string", "minLength", "maxLength", COUNTS),
    between("integer", "minimum", "maximum", NUMBERS),
    between("number", "minimum", "maximum", FLOATS),
    NUMBERS.map(lambda low: {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + 0.5}),
    st.tuples(
        st.sampled_from(["integer", "number"]), st.sampled_from(["exclusiveMinimum", "exclusiveMaximum"]), NUMBERS
    ).map(lambda given: {"type": given[0], given[1]: given[2]}),
    MULTIPLES.map(lambda step: {"type": "number", "multipleOf": step, "minimum": 0.35}),
    st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.sampled_from(sorted(FORMATS)).map(lambda name: {"type": "string", "format": name}),
    st.sampled_from(["string", "boolean", "null", ["null", "string"], ["integer", "boolean"]]).map(
        lambda k: {"type": k}
    ),
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    st.sampled_from([True, {}, {"$ref": "#/$defs/tree"}, {"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/kinds/anyOf/1"}]),
)
DEFS = {
    "tree": {
        "type": "object",
        "properties": {
            "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            "more": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            "self": {"$ref": "#/$defs/tree"},
        },
        "required": ["left", "more"],
        "additionalProperties": False,
    },
    "a/b": {"enum": ["Mo", "Tu"]},
    "kinds": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 3}]},
}


@st.composite
def objects(draw: st.DrawFn, inner: Schemas) -> dict[str, Any]:
    properties = draw(st.dictionaries(st.sampled_from(["a", "b", "c d"]), inner, max_size=3))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    found: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    match draw(st.integers(0, 4)):
        case 0:
            found["additionalProperties"] = False
        case 1:
            found |= {"additionalProperties": draw(inner), "minProperties": draw(st.integers(0, 5))}
        case 2:
            found |= {"required": [*required, "e"], "patternProperties": {"^e": draw(inner)}}
        case 3:
            # In the one option only the member `kind` decides.
            kinds = [{"properties": {"kind": {"const": name}}, "required": ["kind"]} for name in ("x", "y")]
            found["oneOf"] = kinds
    return found


@st.composite
def arrays(draw: st.DrawFn, inner: Schemas) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "array", "items": draw(inner)}
    match draw(st.integers(0, 4)):
        case 0:
            found |= {"minItems": draw(COUNTS)}
        case 1:
            found |= {"prefixItems": [draw(inner), draw(inner)], "maxItems": 2}
        case 2:
            low = draw(NUMBERS)
            found |= {"items": {"type": "integer", "minimum": low}, "minItems": 5, "uniqueItems": True}
        case 3:
            found |= {"items": {"type": "string"}, "contains": {"const": "x"}, "minContains": 2}
    return found


def combinations(inner: Schemas) -> Schemas:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        objects(inner),
        arrays(inner),
        pairs.map(lambda pair: {"anyOf": [False, {"$ref": "#/$defs/endless"}, *pair]}),
        inner.map(lambda one: {"allOf": [one, {"description": "D."}, True]}),
        inner.map(lambda one: {"title": "T", "anyOf": [{"allOf": [one, False]}, one]}),
        inner.map(lambda one: {"type": "object", "allOf": [{"properties": {"a": one}}, {"required": ["a"]}]}),
    )


ENDLESS = {"type": "object", "properties": {"again": {"$ref": "#/$defs/endless"}}, "required": ["again"]}


@settings(max_examples=500)
@given(st.recursive(LEAVES, combinations, max_leaves=8))
def test_a_sample_fits_its_schema(schema: Any) -> None:
    """As jsonschema_rs sees it, with formats; as the input of a tool whose member has the schema."""
    schema = {"type": "object", "properties": {"it": schema}, "required": ["it"], "additionalProperties": False}
    assert fits(schema | {"$defs": DEFS | {"endless": ENDLESS}})


@pytest.mark.parametrize(
    ("schema", "type_", "expected"),
    [
        ({"type": "object", "properties": {}}, "", INPUT),
        ({"type": "object", "properties": {}, "additionalProperties": False}, "custom", "{}"),
        ({"type": "object", "properties": {"place": {"type": "string"}}}, "custom", '{"place":"tailrace"}'),
        ({}, "bash_20250124", '{"command":"echo tailrace"}'),
        ({"$ref": "#/$defs/e", "$defs": {"e": {"$ref": "#/$defs/e"}}}, "", "{}"),
    ],
)
def test_the_input_of_a_tool_is_an_object(schema: dict[str, Any], type_: str, expected: str) -> None:
    """A schema that names no member accepts any. The vendor's own tools have inputs of their own."""
    assert sample_input(schema, type_) == expected
