"""The smallest value that fits a JSON Schema, for answers without `json=`. Pure.

Knows the keywords of Anthropic's structured outputs and the bounds of numbers, but neither patterns nor formats.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from tailrace.deploy.simulated_claude.refusal import Refusal

TEXT = "tailrace"
LEVELS_MAX = 64
# The most items or characters.
LENGTH_MAX = 1000


class Endless(Exception):
    """A definition refers to itself, so no value could be complete."""


def sample(schema: Any) -> str:
    """Returns the value as JSON. Raises Refusal if the part of the schema that is read is not valid."""
    try:
        found = value(schema, schema, LEVELS_MAX)
    except Endless:
        found = TEXT
    except (TypeError, AttributeError) as error:
        raise Refusal("invalid_request_error", f"JSON schema is invalid: {error}") from error
    return msgspec.json.encode(found).decode()


def value(schema: Any, root: Any, levels: int, within: frozenset[str] = frozenset()) -> Any:
    """Returns a value that fits the schema, at most `levels` deep. `root` resolves references.

    Raises Endless for a reference that is one of `within`, the references that lead to this schema.
    """
    if not isinstance(schema, dict) or levels == 0:
        return TEXT
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match schema:
        case {"const": constant}:
            return constant
        case {"enum": [first, *_]}:
            return first
        case {"$ref": str(reference)}:
            if reference in within:
                raise Endless
            return value(resolve(reference, root), root, levels - 1, within | {reference})
        case {"anyOf": [_, *_] as options} | {"oneOf": [_, *_] as options} | {"allOf": [_, *_] as options}:
            return first_value(options, root, levels - 1, within)
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            return dict(members(schema, root, levels - 1, within))
        case "array":
            try:
                items = [value(schema.get("items"), root, levels - 1, within)]
            except Endless:
                if schema.get("minItems", 0):
                    raise
                return []
            return items * min(schema.get("minItems", 1), LENGTH_MAX)
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return TEXT * -(-min(schema.get("minLength", 1), LENGTH_MAX) // len(TEXT))


def first_value(options: list[Any], root: Any, levels: int, within: frozenset[str]) -> Any:
    """Returns a value that fits the first of `options` that is not endless. Raises Endless."""
    for option in options:
        with suppress(Endless):
            return value(option, root, levels, within)
    raise Endless


def members(schema: dict[str, Any], root: Any, levels: int, within: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Yields the members of an object, without optional members that are endless. Raises Endless."""
    for name, inner in schema.get("properties", {}).items():
        try:
            yield name, value(inner, root, levels, within)
        except Endless:
            if name in schema.get("required", ()):
                raise


def resolve(reference: str, root: Any) -> Any:
    """Returns the definition that a local reference names; None if there is none."""
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step) if isinstance(found, dict) else None
    return found
