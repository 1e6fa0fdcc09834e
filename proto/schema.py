"""The JSON Schema that a request wants its answer to fit: where it stands, and how large it may be. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tailrace.proto.errors import Refused

SCHEMA_BYTES_MAX = 65_536


def schema_of(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The schema in a request's `options`, where Anthropic's API has it; None when any answer will do."""
    match options:
        case {"output_config": {"format": {"type": "json_schema", "schema": dict(schema)}}}:
            return schema
        case {"output_format": {"type": "json_schema", "schema": dict(schema)}}:
            # Where it stood while it was in beta; clients still send it.
            return schema
        case _:
            return None


def with_schema(options: Mapping[str, Any] | None, schema: dict[str, Any]) -> dict[str, Any]:
    """`options` that want their answer to fit `schema`; raises Refused when they have one of their own."""
    if schema_of(options) is not None:
        raise Refused("request_invalid", "`schema` and the format in `options` are the same: send one of them")
    given = dict(options or {})
    config = given.get("output_config") or {}
    if not isinstance(config, dict):
        raise Refused("request_invalid", "`options.output_config` is an object")
    return given | {"output_config": config | {"format": {"type": "json_schema", "schema": schema}}}


def require_small_schema(schema: dict[str, Any]) -> None:
    """Raises Refused for a schema beyond SCHEMA_BYTES_MAX."""
    if len(msgspec.json.encode(schema)) > SCHEMA_BYTES_MAX:
        raise Refused("schema_invalid", f"the JSON Schema has more than {SCHEMA_BYTES_MAX} bytes")
