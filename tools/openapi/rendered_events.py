"""Schemas of the events of another protocol's dialect, from what the dialect renders, and an example of a stream."""

import re
from typing import Any

from tailrace.gateway.clients.native.event_types import TurnEvent
from tailrace.gateway.streaming.dialect import Dialect
from tools import asyncapi

Json = dict[str, Any]
KINDS: dict[type, Json] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number"},
    str: {"type": "string"},
    dict: {"type": "object", "additionalProperties": True},
    list: {"type": "array", "items": {}},
}
# What tells the kind of an event.
CONSTANT = ("type", "object")


def add_dialect(components: Json, name: str, dialect: Dialect) -> None:
    """Adds a schema for each kind of event that the example turns have in `dialect`, and their union `name`.

    Only the type is required: that each example has a property does not mean that each event has it.
    """
    found: dict[str, list[Json]] = {}
    for event, payload in asyncapi.render_example(dialect):
        if isinstance(payload, dict):
            found.setdefault(event, []).append(payload)
    refs = {}
    for event, payloads in found.items():
        part = name.removesuffix("Event") + capitalise(event)
        components[part] = schema_of(event, dialect.name, payloads)
        refs[event] = f"#/components/schemas/{part}"
    listed = [{"$ref": ref} for ref in refs.values()]
    has_type = all("type" in payload for payloads in found.values() for payload in payloads)
    discriminator = {"discriminator": {"propertyName": "type", "mapping": refs}}
    union: Json = {"oneOf": listed} | discriminator if has_type else {"anyOf": listed}
    components[name] = union | {"description": f"An event of the dialect `{dialect.name}` (docs/EVENTS.md)."}


def schema_of(event: str, dialect: str, payloads: list[Json]) -> Json:
    """Returns the schema of the events with this name. Later versions may add properties."""
    whole = {field: value for payload in payloads for field, value in payload.items()}
    properties = {}
    for field, value in whole.items():
        values = [payload[field] for payload in payloads if field in payload]
        kinds = {type(one): KINDS[type(one)] for one in values if one is not None}
        kind = next(iter(kinds.values())) if len(kinds) == 1 and None not in values else {}
        if field in CONSTANT:
            properties[field] = {"type": "string", "enum": [value], "description": f"Always `{value}`."}
        else:
            properties[field] = {**kind, "description": f"Rendered by the dialect `{dialect}`."}
        properties[field]["examples"] = [value]
    required = [field for field in CONSTANT if all(field in payload for payload in payloads)]
    description = f"The event `{event}`."
    return {"type": "object", "description": description, "properties": properties, "required": required}


def name_of(events: Any) -> str:
    """Returns the name of the schema of a stream's events: of a dialect, or of a union of types."""
    if isinstance(events, str):
        return f"{capitalise(events)}StreamEvent"
    return "TurnEvent" if events == TurnEvent else "SessionStreamEvent"


def example_stream(dialect: Dialect) -> str:
    """Returns the stream of a short turn."""
    return "".join(asyncapi.render_stream(dialect, asyncapi.short_turn()))


def capitalise(name: str) -> str:
    """Returns `text-delta` as `TextDelta`."""
    return "".join(
        part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name.lower() if name.isupper() else name)
    )
