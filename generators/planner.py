"""Plans a turn's next action, with the knowledge of features: limits, obstacles, and checks of complete answers."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from tailrace.generators.call_limits import CallLimits
from tailrace.generators.plan import Acknowledge, Action, Complete, Leave, plan, plan_after_check
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey

FindObstacle = Callable[[Request], str | None]
"""Returns why a partial answer to a request cannot be continued; None if it can."""


class AnswerCheck(NamedTuple):
    """The result of a check. `misfit` says why the answer did not pass; None: it passed."""

    misfit: str | None


CheckAnswer = Callable[[TurnKey, Turn], Awaitable[AnswerCheck | None]]
"""Checks the complete answer of a turn. Returns None if there is nothing to check, or if the check itself fails."""


class Planner:
    """Computes the next action of turns with `plan`."""

    def __init__(
        self,
        attempts_max: int,
        limits: CallLimits,
        obstacles: Sequence[FindObstacle] = (),
        checks: Sequence[CheckAnswer] = (),
    ) -> None:
        self._attempts_max = attempts_max
        self._limits = limits
        self._obstacles = obstacles
        self._checks = checks

    async def next_action(self, key: TurnKey, turn: Turn) -> Action:
        """Returns the next action for `turn`. If no check judges an answer, it is completed unchecked.

        Raises LogUnavailable.
        """
        action = await self._plan(key, turn)
        if isinstance(action, Acknowledge | Leave | Complete):
            return action
        cut = await self._limits.find_cut(key, turn, action)
        return action if cut is None else await self._plan(key, turn, cut)

    async def _plan(self, key: TurnKey, turn: Turn, cut: str | None = None) -> Action:
        request, obstacle = turn.request, None
        if request is not None:
            obstacle = next(filter(None, (find(request) for find in self._obstacles)), None)
        action = plan(turn, self._attempts_max, cut, obstacle)
        if action == Complete() and (checked := await check_answer(self._checks, key, turn)) is not None:
            return plan_after_check(turn, checked.misfit, self._attempts_max, cut)
        return action


async def check_answer(checks: Sequence[CheckAnswer], key: TurnKey, turn: Turn) -> AnswerCheck | None:
    """Returns the result of the first check that judges the complete answer of `turn`; None if there is none."""
    for check in checks:
        if (checked := await check(key, turn)) is not None:
            return checked
    return None
