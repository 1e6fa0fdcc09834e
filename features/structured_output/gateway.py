"""The check of the JSON Schemas that clients request, before a turn is stored."""

from functools import partial
from typing import Any

from tailrace.features.structured_output.json_schema import SchemaChecker
from tailrace.features.structured_output.schema_size import require_small_schema
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.settings import NoSettings

# How long the check of a schema waits for a free subprocess.
CHECK_WAIT_S = 10.0


async def check_schema(checker: SchemaChecker, schema: dict[str, Any], tenant: Tenant) -> None:
    """Raises Refused for an invalid schema."""
    require_small_schema(schema)
    await checker.check_schema(schema, tenant)


def start(_: Gateway, _settings: NoSettings) -> Parts:
    """Makes the step that checks the schema of a new turn or of a batch's input."""
    checker = SchemaChecker(wait_s=CHECK_WAIT_S)
    return Parts(steps=OptionalSteps(check_schema=partial(check_schema, checker)))


FEATURE = Feature(NoSettings, start)
