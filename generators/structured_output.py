"""Structured output: how a model is asked for JSON that fits a schema, and for a correction if it does not. Pure.

If the model has structured outputs (models.json) and they can express the schema (Anthropic's docs, "Structured
outputs"), the API enforces it; otherwise the schema goes into the system prompt. Either way the answer is checked
against the client's schema.

`anthropic.transform_schema` is not used, because it changes what a schema allows: an object with any names becomes an
empty one, `oneOf` becomes `anyOf`, `patternProperties` and `not` become prose. A list of types makes it raise.
"""

from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.proto.entries import Message, Request
from tailrace.proto.fold import Turn
from tailrace.proto.models import find_model
from tailrace.proto.schema import schema_of

Schema = dict[str, Any]

SCHEMA_PROMPT = (
    "Your whole answer is one JSON value that fits this JSON Schema, and nothing else: "
    "no code fence, no introduction, no explanation.\n{schema}"
)
CORRECTION_PROMPT = (
    "Your answer does not fit the JSON Schema: {misfit}\nGive the whole answer anew, corrected, and nothing else."
)
MISFIT_CHARS_MAX = 1000

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


def request_schema(call: Call, _request: Request, _turn: Turn) -> Call:
    """Returns `call` with the schema in its options changed into what its model supports."""
    schema = schema_of(call.options)
    if schema is None or not isinstance(call.options, dict) or "output_format" in call.options:
        return call
    model = find_model(call.model)
    config = call.options["output_config"]
    has_structured_outputs = model is not None and model.supports.structured_outputs is True
    native = to_native(schema) if has_structured_outputs else None
    if native is not None:
        output_config = config | {"format": config["format"] | {"schema": native}}
        return msgspec.structs.replace(call, options=call.options | {"output_config": output_config})
    return move_schema_to_prompt(call)


def move_schema_to_prompt(call: Call) -> Call:
    """Returns `call` with the schema in the system prompt instead of the options."""
    schema, options = schema_of(call.options), call.options or {}
    if schema is None:
        return call
    kept = {name: value for name, value in options.items() if name not in ("output_config", "output_format")}
    config = {name: value for name, value in options.get("output_config", {}).items() if name != "format"}
    prompt = SCHEMA_PROMPT.format(schema=msgspec.json.encode(schema).decode())
    return msgspec.structs.replace(
        call,
        options=kept | ({"output_config": config} if config else {}) or None,
        system=append_to_system(call.system, prompt),
    )


def append_to_system(system: str | list[dict[str, Any]] | None, text: str) -> str | list[dict[str, Any]]:
    """Returns a system prompt with `text` after it, in the form that `system` has: a text, or a list of blocks."""
    match system:
        case None | "":
            return text
        case str():
            return f"{system}\n\n{text}"
        case _:
            return [*system, {"type": "text", "text": text}]


def add_correction(call: Call, _request: Request, turn: Turn) -> Call:
    """Returns `call`; if the turn's answer did not fit its schema, with that answer and the reason as messages."""
    if turn.misfit is None:
        return call
    prompt = Message("user", CORRECTION_PROMPT.format(misfit=turn.misfit[:MISFIT_CHARS_MAX]))
    rejected = [Message("assistant", turn.rejected)] if turn.rejected.strip() else []
    return msgspec.structs.replace(call, messages=[*call.messages, *rejected, prompt])


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
