"""Checks the JSON Schema and the forced tool of a new turn, as a step of turn submission."""

from tailrace.proto import entries
from tailrace.proto.forced_tools import require_offered
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.json_schema import SchemaChecker
from tailrace.proto.schema import require_small_schema, schema_of


async def check_schema(checker: SchemaChecker, entry: entries.Request, tenant: Tenant) -> None:
    """Raises Refused for an entry whose options contain an invalid schema, or force an absent tool."""
    require_offered(entry)
    if (schema := schema_of(entry.options)) is not None:
        require_small_schema(schema)
        await checker.check_schema(schema, tenant)
