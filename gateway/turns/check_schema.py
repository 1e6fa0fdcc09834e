"""Checks the JSON Schema of a new turn, as a step of turn submission."""

from typing import Any

from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.json_schema import SchemaChecker
from tailrace.proto.schema import require_small_schema


async def check_schema(checker: SchemaChecker, schema: dict[str, Any], tenant: Tenant) -> None:
    """Raises Refused for an invalid schema."""
    require_small_schema(schema)
    await checker.check_schema(schema, tenant)
