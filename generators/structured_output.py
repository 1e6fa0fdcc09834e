"""How a model is asked for JSON that fits a schema, and asked again when it did not: calls in, calls out. Pure.

Where the model has structured outputs of its own (models.json) and the schema can be said in their part of JSON Schema
(Anthropic's docs, "Structured outputs"), it is made to fit; else the schema stands in the system prompt. Either way the
answer is judged by the schema as it was given.
"""

from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.proto.entries import Message
from tailrace.proto.fold import Turn
from tailrace.proto.models import find_model
from tailrace.proto.schema import schema_of

Schema = dict[str, Any]

ASKED = (
    "Your whole answer is one JSON value that fits this JSON Schema, and nothing else: "
    "no code fence, no introduction, no explanation.\n{schema}"
)
ASKED_AGAIN = (
    "Your answer does not fit the JSON Schema: {misfit}\nGive the whole answer anew, corrected, and nothing else."
)
MISFIT_CHARS_MAX = 1000

# What the model's structured outputs know; what they would refuse and a judge can check is told in the description.
PLAIN = frozenset({"type", "title", "description", "default", "enum", "const", "required"})
TOLD = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"}
    | {"minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "format", "examples"}
)
LEFT_OUT = frozenset({"$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly"})
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})


def shaped(call: Call) -> Call:
    """`call`, whose options name the schema where Anthropic's API has it, as its model has to be asked."""
    schema = schema_of(call.options)
    if schema is None or not isinstance(call.options, dict) or "output_format" in call.options:
        return call
    model = find_model(call.model)
    config = call.options["output_config"]
    is_native = model is not None and model.supports.structured_outputs is True
    said = native(schema) if is_native else None
    if said is not None:
        wanted = config | {"format": config["format"] | {"schema": said}}
        return msgspec.structs.replace(call, options=call.options | {"output_config": wanted})
    return in_prompt(call)


def in_prompt(call: Call) -> Call:
    """`call` for who has no structured outputs, whatever its model has: the schema stands in the system prompt."""
    schema, options = schema_of(call.options), call.options or {}
    if schema is None:
        return call
    kept = {name: value for name, value in options.items() if name not in ("output_config", "output_format")}
    config = {name: value for name, value in options.get("output_config", {}).items() if name != "format"}
    told = ASKED.format(schema=msgspec.json.encode(schema).decode())
    return msgspec.structs.replace(
        call, options=kept | ({"output_config": config} if config else {}) or None, system=with_told(call.system, told)
    )


def with_told(system: str | list[dict[str, Any]] | None, told: str) -> str | list[dict[str, Any]]:
    match system:
        case None | "":
            return told
        case str():
            return f"{system}\n\n{told}"
        case _:
            return [*system, {"type": "text", "text": told}]


def corrected(call: Call, turn: Turn) -> Call:
    """`call` and, when its answer did not fit, that answer and why."""
    if turn.misfit is None:
        return call
    again = Message("user", ASKED_AGAIN.format(misfit=turn.misfit[:MISFIT_CHARS_MAX]))
    said = [Message("assistant", turn.rejected)] if turn.rejected.strip() else []
    return msgspec.structs.replace(call, messages=[*call.messages, *said, again])


def native(schema: Schema) -> Schema | None:
    """`schema` in the words of the model's structured outputs; None when they cannot say it.

    What fits it may still not fit `schema` (`minimum`, say), and is then asked again; whatever they could not give at
    all (an object of any names, say) is not said in them.
    """
    return _said(schema) if _is_finite(schema) else None


def _said(schema: Any) -> Schema | None:
    if not isinstance(schema, dict):
        return None
    said: Schema = {}
    told: Schema = {}
    is_whole = True
    for name, value in schema.items():
        match name, value:
            case "$ref", str():
                said[name] = value
            case "properties" | "$defs" | "definitions", dict():
                said[name] = {key: _said(inner) for key, inner in value.items()}
                is_whole = None not in said[name].values()
            case ("anyOf", list()) | ("allOf", [_]):
                # Of several at once each would forbid the others' properties.
                said[name] = [_said(inner) for inner in value]
                is_whole = None not in said[name]
            case "items", dict():
                said[name] = _said(value)
                is_whole = said[name] is not None
            case "additionalProperties", False:
                said[name] = False
            case "minItems", 0 | 1:
                said[name] = value
            case "format", str() if value in FORMATS:
                said[name] = value
            case _ if name in PLAIN:
                said[name] = value
            case _ if name in TOLD:
                told[name] = value
            case _ if name in LEFT_OUT:
                continue
            case _:
                is_whole = False
        if not is_whole:
            return None
    return _closed(said, told)


def _closed(said: Schema, told: Schema) -> Schema | None:
    """Objects have the properties that are named and no others: narrower than it was asked, and never wrong."""
    kind = said.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in said:
        if "properties" not in said and said.get("additionalProperties") is not False:
            # Any object at all: they would give an empty one.
            return None
        said["additionalProperties"] = False
    if told:
        rule = msgspec.json.encode(told).decode()
        said["description"] = f"{said['description']}\n\n{rule}" if isinstance(said.get("description"), str) else rule
    return said


def _is_finite(schema: Schema) -> bool:
    """Whether each reference names a definition of the schema's own, and none comes back to itself."""
    named = {
        f"#/{place}/{name}": inner
        for place in ("$defs", "definitions")
        if isinstance(schema.get(place), dict)
        for name, inner in schema[place].items()
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
