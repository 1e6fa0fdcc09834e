"""Plans a turn's next action and runs the JSON Schema check that a plan may ask for."""

from collections.abc import Callable, Sequence

import structlog

from tailrace.generators import metrics
from tailrace.generators.plan import Action, CheckSchema, Complete, plan, plan_after_check
from tailrace.proto.errors import SandboxFailed
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime import json_schema

logger = structlog.get_logger()

# Longer than in a gateway: no client waits for a response here, and a batch may have a thousand answers checked at
# once.
CHECK_WAIT_S = 120.0


Cut = Callable[[Turn], str | None]
"""Returns None, or, for a turn that has reached a limit, the stop reason with which its answer is completed."""


class Planner:
    """Computes the next action of turns with `plan`, and the cuts and the schema check that it needs."""

    def __init__(self, attempts_max: int, cuts: Sequence[Cut] = ()) -> None:
        self._attempts_max = attempts_max
        self._cuts = cuts
        self._checker = json_schema.SchemaChecker(wait_s=CHECK_WAIT_S)

    async def next_action(self, key: TurnKey, turn: Turn) -> Action:
        """Returns the next action for `turn`. If the schema check itself fails, the answer is completed unchecked."""
        cut = next(filter(None, (cut(turn) for cut in self._cuts)), None)
        action = plan(turn, self._attempts_max, cut)
        if not isinstance(action, CheckSchema):
            return action
        try:
            misfit = await self._checker.find_mismatch(action.schema, action.text, key.tenant)
        except SandboxFailed as error:
            logger.warning("answer not checked against its schema", error=str(error))
            metrics.SCHEMA_CHECKS.labels("unchecked").inc()
            return Complete()
        metrics.SCHEMA_CHECKS.labels("fits" if misfit is None else "misfit").inc()
        return plan_after_check(turn, misfit, self._attempts_max, cut)
