"""Checks the JSON Schema and the forced tool of a new turn, as a feature of turn submission."""

from operator import attrgetter

from tailrace.gateway.turns.submission import Feature, Submission
from tailrace.proto.forced_tools import require_offered
from tailrace.proto.runtime.json_schema import SchemaChecker
from tailrace.proto.schema import require_small_schema, schema_of


def schema_feature(checker: SchemaChecker) -> Feature[Submission]:
    """Returns the step that refuses an entry whose options contain an invalid schema, or force an absent tool."""

    async def check(submission: Submission) -> None:
        require_offered(submission.entry)
        if (schema := schema_of(submission.entry.options)) is not None:
            require_small_schema(schema)
            await checker.check_schema(schema, submission.principal.tenant)

    return Feature(check, attrgetter("entry.options"))
