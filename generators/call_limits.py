"""CallLimits: the limits of what a turn's model calls may cost. Without a feature that has limits, none applies."""

from collections.abc import Sequence

from tailrace.generators.backends.model_event import Put
from tailrace.generators.plan import Action
from tailrace.proto.entries import Reservation
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey


class CallLimits:
    """No limits."""

    async def find_cut(self, key: TurnKey, turn: Turn, action: Action) -> str | None:  # noqa: ARG002
        """Returns the stop reason that completes the answer in place of `action`; None if the turn may go on.

        Raises LogUnavailable.
        """
        return None

    def begin_call(self, key: TurnKey, turn: Turn) -> Put | None:  # noqa: ARG002
        """Returns the function that counts the events of a call, each after it was passed on; None if none is counted.

        `turn` is the fold with the call's attempt. Raises CloseCall if the call must not be made.
        """
        return None

    async def steps_of(self, key: TurnKey, turn: Turn) -> Sequence[Reservation]:  # noqa: ARG002
        """Returns what an ended turn has reserved beyond the `holds` of its request. Raises LogUnavailable."""
        return ()

    def forget(self, key: TurnKey) -> None:
        """Is called when this process no longer runs the turn."""
