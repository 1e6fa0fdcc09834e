"""A JSON Schema in the subset that Anthropic's structured outputs support (docs, "Structured outputs"). Pure.

`anthropic.transform_schema` is not used, because it changes what a schema allows: an object with any names becomes an
empty one, `oneOf` becomes `anyOf`, `patternProperties` and `not` become prose. A list of types makes it raise.
"""

from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

Schema = dict[str, Any]

# What structured outputs support. Rules that they refuse and the check enforces go into the description.
SUPPORTED = frozenset({"type", "title", "description", "default", "enum", "const", "required"})
DESCRIBED = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"}
    | {"minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "format", "examples"}
)
LEFT_OUT = frozenset({"$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly"})
# "In-place applicators" of JSON Schema: their schemas apply to the same value as the schema that they are in.
IN_PLACE_APPLICATORS = ("$ref", "anyOf", "allOf")
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})


def to_native(schema: Schema) -> Schema | None:
    """Returns `schema` in the subset of structured outputs; None if the subset cannot express it.

    The two are not equal. An answer that fits the result may still not fit `schema` (a `minimum`, for example): the
    check finds that. And the result excludes answers with properties that `schema` allows but does not name. None if
    it would thereby exclude every answer that fits `schema`.
    """
    return _convert(schema) if _is_finite(schema) else None


def _convert(schema: Any) -> Schema | None:
    if not isinstance(schema, dict):
        return None
    native: Schema = {}
    described: Schema = {}
    is_expressible = True
    for name, value in schema.items():
        match name, value:
            case "$ref", str():
                native[name] = value
            case "properties" | "$defs" | "definitions", dict():
                native[name] = {key: _convert(inner) for key, inner in value.items()}
                is_expressible = None not in native[name].values()
            case ("anyOf", list()) | ("allOf", [_]):
                # One schema in allOf at most: each of several would forbid the properties of the others.
                native[name] = [_convert(inner) for inner in value]
                is_expressible = None not in native[name]
            case "items", dict():
                native[name] = _convert(value)
                is_expressible = native[name] is not None
            case "additionalProperties", False:
                native[name] = False
            case "minItems", 0 | 1:
                native[name] = value
            case "format", str() if value in FORMATS:
                native[name] = value
            case _ if name in SUPPORTED:
                native[name] = value
            case _ if name in DESCRIBED:
                described[name] = value
            case _ if name in LEFT_OUT:
                continue
            case _:
                is_expressible = False
        if not is_expressible:
            return None
    return _close(native, described)


def _close(native: Schema, described: Schema) -> Schema | None:
    """Returns `native` without unnamed properties, and with the rules `described` in its description.

    None if the subset cannot express the schema, or if answers that fit the schema need unnamed properties.
    """
    kind = native.get("type")
    is_object = kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in native
    if (is_object or "required" in native) + sum(name in native for name in IN_PLACE_APPLICATORS) > 1:
        # Several schemas apply to one object: each would forbid the properties of the others.
        return None
    if is_object:
        if "properties" not in native and native.get("additionalProperties") is not False:
            # Any object is allowed: structured outputs would only allow an empty one.
            return None
        if _needs_unnamed_properties(native, described):
            return None
        native["additionalProperties"] = False
    if described:
        rule = msgspec.json.encode(described).decode()
        native["description"] = (
            f"{native['description']}\n\n{rule}" if isinstance(native.get("description"), str) else rule
        )
    return native


def _needs_unnamed_properties(native: Schema, described: Schema) -> bool:
    """Returns whether an object that fits may need properties besides the named ones."""
    named, required, at_least = native.get("properties", {}), native.get("required"), described.get("minProperties")
    return (
        (isinstance(required, list) and any(not isinstance(name, str) or name not in named for name in required))
        or (isinstance(at_least, int) and at_least > len(named))
        or "enum" in native
        or "const" in native
    )


def _is_finite(schema: Schema) -> bool:
    """Returns whether all references lead to definitions in the schema, without a cycle."""
    named = {
        f"#/{section}/{name}": inner
        for section in ("$defs", "definitions")
        if isinstance(schema.get(section), dict)
        for name, inner in schema[section].items()
    }
    if not _refs(schema) <= named.keys():
        return False
    try:
        TopologicalSorter({ref: _refs(inner) for ref, inner in named.items()}).prepare()
    except CycleError:
        return False
    return True


def _refs(schema: Any) -> set[str]:
    match schema:
        case dict():
            own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
            return own.union(*map(_refs, schema.values()))
        case list():
            return set().union(*map(_refs, schema))
        case _:
            return set()
