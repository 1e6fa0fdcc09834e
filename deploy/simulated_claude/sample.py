"""The smallest value that fits a JSON Schema, for answers without `json=`. Pure.

Knows the keywords of Anthropic's structured outputs and the bounds of numbers, but no patterns and formats.
"""

from typing import Any

import msgspec

TEXT = "tailrace"
LEVELS_MAX = 64


def sample(schema: Any) -> str:
    """Returns the value as JSON."""
    return msgspec.json.encode(value(schema, schema, LEVELS_MAX)).decode()


def value(schema: Any, root: Any, levels: int) -> Any:
    """Returns a value that fits the schema, at most `levels` deep. `root` resolves references."""
    if not isinstance(schema, dict) or levels == 0:
        return TEXT
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match schema:
        case {"const": constant}:
            return constant
        case {"enum": [first, *_]}:
            return first
        case {"$ref": str(reference)}:
            return value(resolve(reference, root), root, levels - 1)
        case {"anyOf": [first, *_]} | {"oneOf": [first, *_]} | {"allOf": [first, *_]}:
            return value(first, root, levels - 1)
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            properties = schema.get("properties", {}).items()
            return {name: value(inner, root, levels - 1) for name, inner in properties}
        case "array":
            return [value(schema.get("items"), root, levels - 1)] * schema.get("minItems", 1)
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return TEXT * -(-schema.get("minLength", 1) // len(TEXT))


def resolve(reference: str, root: Any) -> Any:
    """Returns the definition that a local reference names; None if there is none."""
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step) if isinstance(found, dict) else None
    return found
