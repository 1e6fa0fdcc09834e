"""Structured output: finds, adds and bounds the JSON Schema in a request's options. Pure."""

from collections.abc import Mapping
from typing import Any

from tailrace.proto.errors import Refused


def schema_of(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the answer's JSON Schema from a request's `options`, or None. The fields are Anthropic's."""
    match options:
        case {"output_config": {"format": {"type": "json_schema", "schema": dict(schema)}}}:
            return schema
        case {"output_format": {"type": "json_schema", "schema": dict(schema)}}:
            # The field of the beta API; clients still send it.
            return schema
        case _:
            return None


def with_schema(options: Mapping[str, Any] | None, schema: dict[str, Any]) -> dict[str, Any]:
    """Returns `options` with `schema` added. Raises Refused if they already have a schema."""
    if schema_of(options) is not None:
        raise Refused("request_invalid", "`schema` and the format in `options` mean the same: send one of them")
    given = dict(options or {})
    config = given.get("output_config") or {}
    if not isinstance(config, dict):
        raise Refused("request_invalid", "`options.output_config` must be an object")
    return given | {"output_config": config | {"format": {"type": "json_schema", "schema": schema}}}
