"""The fields of a turn that the bodies of several protocols have in common."""

from typing import Any

import msgspec

from tailrace.gateway.turns.request_body import OnBusy
from tailrace.proto.entries import OnInterrupt, OnPause

SAME = ("on_busy", "max_cost", "on_interrupt", "on_pause", "on_disconnect")


class TurnSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of Tailrace in the body of another protocol."""

    model: str | None = None
    """The model that answers; if it is left out, the session's model, else the operator's default."""
    metadata: dict[str, str] | None = None
    """Your own labels of the turn, which are returned with it, and by which it can be found."""
    project_id: str | None = None
    """The project of the session."""
    on_busy: OnBusy = "reject"
    """The reaction while the turn to continue still runs."""
    max_cost: float | None = None
    """The most that the answer may cost, in dollars."""
    on_interrupt: OnInterrupt = "continue"
    """The reaction to a model call that breaks off: continue the answer, restart it, or fail."""
    on_pause: OnPause = "continue"
    """The reaction to a pause for tools of the model's API: continue the answer, or return it."""
    on_disconnect: str = "continue"
    """The reaction when the last reader leaves: `continue`, `cancel` or `grace:SECONDS`."""


def settings_of(body: TurnSettings) -> dict[str, Any]:
    """Returns the fields of a NewTurn that a body sets in these fields, besides `model` and `metadata`."""
    return {"project": body.project_id} | {name: getattr(body, name) for name in SAME}
