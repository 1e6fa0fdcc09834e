"""Structured output: how a model is asked for JSON that fits a schema, and for a correction if it does not.

If the model has structured outputs (models.json) and they can express the schema (Anthropic's docs, "Structured
outputs"), the API enforces it; otherwise the schema follows the question. Either way the answer is checked
against the client's schema.
"""

import msgspec
import structlog

from tailrace.features.common.schema_prompt import move_schema_to_prompt
from tailrace.features.structured_output import json_schema, metrics
from tailrace.features.structured_output.forced_calls import request_forced_call, write_forced_call
from tailrace.features.structured_output.native_schema import to_native
from tailrace.generators.backends import Call
from tailrace.generators.feature import Feature, Hooks
from tailrace.generators.planner import AnswerCheck
from tailrace.proto import events
from tailrace.proto.conversation import without_lost_calls
from tailrace.proto.entries import Message, Request
from tailrace.proto.errors import SandboxFailed
from tailrace.proto.fold import Turn
from tailrace.proto.forced_tools import Schema, answer_schema, forced_functions
from tailrace.proto.ids import TurnKey
from tailrace.proto.models import find_model
from tailrace.proto.schema import schema_of

logger = structlog.get_logger()

CORRECTION_PROMPT = (
    "Your answer does not fit the JSON Schema: {misfit}\nGive the whole answer anew, corrected, and nothing else."
)
MISFIT_CHARS_MAX = 1000

# With these stop reasons the answer is not final, so it is not checked: a tool's result or the rest follows.
UNFINISHED = ("tool_use", events.PAUSE, "compaction")
# Longer than in a gateway: no client waits for a response here, and a batch may have a thousand answers checked at
# once.
CHECK_WAIT_S = 120.0


def request_schema(call: Call, _request: Request, _turn: Turn) -> Call:
    """Returns `call` with the schema in its options changed into what its model supports."""
    schema = schema_of(call.options)
    if schema is None or not isinstance(call.options, dict) or "output_format" in call.options:
        return call
    model = find_model(call.model)
    config = call.options["output_config"]
    has_structured_outputs = model is not None and model.supports.structured_outputs is True
    native = to_native(schema) if has_structured_outputs else None
    if native is not None:
        output_config = config | {"format": config["format"] | {"schema": native}}
        return msgspec.structs.replace(call, options=call.options | {"output_config": output_config})
    return move_schema_to_prompt(call)


def add_correction(call: Call, _request: Request, turn: Turn) -> Call:
    """Returns `call`; if the turn's answer did not fit its schema, with that answer and the reason as messages."""
    if turn.misfit is None:
        return call
    prompt = Message("user", CORRECTION_PROMPT.format(misfit=turn.misfit[:MISFIT_CHARS_MAX]))
    rejected = [Message("assistant", turn.rejected)] if turn.rejected.strip() else []
    # The rejected text has no results of server tools, which the API would want for their calls.
    messages = without_lost_calls([*call.messages, *rejected], [prompt])
    return msgspec.structs.replace(call, messages=[*messages, prompt])


def find_schema_obstacle(request: Request) -> str | None:
    """Returns `schema` for a request with a schema: the model must write the JSON from its beginning. Else None."""
    return "schema" if answer_schema(request) is not None else None


def find_checked_text(turn: Turn) -> tuple[Schema, str] | None:
    """Returns the schema and the text of the complete answer in `turn`.

    Returns None without a schema, and if the answer is not final.
    """
    if turn.request is None:
        return None
    functions = forced_functions(turn.request)
    for block in turn.blocks:
        if block.type == "tool_use" and (arguments := functions.get(str(block.start.get("name")))) is not None:
            return arguments, block.text
    schema = answer_schema(turn.request)
    return None if schema is None or turn.stop.stop_reason in UNFINISHED else (schema, turn.text)


class SchemaCheck:
    """Checks complete answers against their schemas. Implements planner.CheckAnswer."""

    def __init__(self) -> None:
        self._checker = json_schema.SchemaChecker(wait_s=CHECK_WAIT_S)

    async def __call__(self, key: TurnKey, turn: Turn) -> AnswerCheck | None:
        """Returns whether the answer fits its schema; None if it has none, or if the check itself fails."""
        found = find_checked_text(turn)
        if found is None:
            return None
        try:
            misfit = await self._checker.find_mismatch(*found, key.tenant)
        except SandboxFailed as error:
            logger.warning("answer not checked against its schema", turn=key.turn, error=str(error))
            metrics.SCHEMA_CHECKS.labels("unchecked").inc()
            return None
        metrics.SCHEMA_CHECKS.labels("fits" if misfit is None else "misfit").inc()
        return AnswerCheck(misfit)


FEATURE = Feature(
    Hooks(
        filters=(request_forced_call, request_schema),
        late_filters=(add_correction,),
        sinks=(write_forced_call,),
        obstacles=(find_schema_obstacle,),
        checks=(SchemaCheck,),
    )
)
