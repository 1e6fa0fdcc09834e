"""Rewrites msgspec's JSON Schemas to equal ones that client generators understand.

Without it, openapi-typescript requires a field with a `default` in requests, and allows no field in an object without
`additionalProperties`. openapi-generator reads an integer without `format` as 32 bits in Go, and an enumeration without
`type` as an object.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

Json = dict[str, Any]
KEYWORDS_WITH_A_SCHEMA = ("items", "additionalProperties")
KEYWORDS_WITH_SCHEMAS = ("anyOf", "oneOf", "prefixItems")


def rewrite(schema: Json, *, is_read: bool) -> None:
    """Rewrites `schema` and the schemas in it, in place.

    If the gateway reads it (`is_read`), the description names the default value.
    """
    default = schema.pop("default", None)
    if is_read and default not in (None, "", False, [], {}):
        value = default if isinstance(default, str) else msgspec.json.encode(default).decode()
        schema["description"] = f"{schema.get('description', '')} By default `{value}`."
    if "anyOf" in schema:
        _merge(schema)
    match schema:
        case {"enum": [*values]} if all(isinstance(value, str) for value in values):
            schema["type"] = "string"
        case {"type": "integer"}:
            schema["format"] = "int64"
        case {"type": "object"} if "properties" not in schema:
            schema.setdefault("additionalProperties", True)
    for one in _schemas_in(schema):
        rewrite(one, is_read=is_read)


def _merge(schema: Json) -> None:
    """Joins enumerations, removes `integer` beside `number`, and writes `oneOf` if only one schema can match."""
    kinds = schema.pop("anyOf")
    if {"type": "number"} in kinds:
        kinds = [kind for kind in kinds if kind != {"type": "integer"}]
    if values := [value for kind in kinds for value in kind.get("enum", ())]:
        kinds = [{"enum": values}, *(kind for kind in kinds if "enum" not in kind)]
    if len(kinds) == 1:
        schema |= kinds[0]
    else:
        # The tag of a Struct excludes the others.
        schema["oneOf" if "discriminator" in schema else "anyOf"] = kinds


def _schemas_in(schema: Json) -> Iterator[Json]:
    yield from schema.get("properties", {}).values()
    for keyword in KEYWORDS_WITH_SCHEMAS:
        yield from schema.get(keyword, ())
    for keyword in KEYWORDS_WITH_A_SCHEMA:
        if isinstance(schema.get(keyword), dict):
            yield schema[keyword]


def always_written(struct: type[msgspec.Struct]) -> list[str]:
    """Returns the fields that an encoded Struct always has; msgspec's schema requires those that a decoder needs."""
    fields = msgspec.structs.fields(struct)
    tag = [struct.__struct_config__.tag_field] if struct.__struct_config__.tag_field else []
    if struct.__struct_config__.omit_defaults:
        return tag + [field.encode_name for field in fields if field.required]
    return tag + [field.encode_name for field in fields if field.default is not msgspec.UNSET]
