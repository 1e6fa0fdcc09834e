"""The limit of the size of a JSON Schema."""

from typing import Any

import msgspec

from tailrace.proto.errors import Refused

SCHEMA_BYTES_MAX = 65_536


def require_small_schema(schema: dict[str, Any]) -> None:
    """Raises Refused if `schema` has more than SCHEMA_BYTES_MAX bytes as JSON."""
    if len(msgspec.json.encode(schema)) > SCHEMA_BYTES_MAX:
        raise Refused("schema_invalid", f"the JSON Schema has more than {SCHEMA_BYTES_MAX} bytes: simplify it")
