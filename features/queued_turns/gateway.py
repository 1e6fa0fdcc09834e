"""The check of a new turn that may be queued, and its place in the session."""

from tailrace.features.common.line import make_line
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.settings import NoSettings


def check_queue(new_turn: NewTurn) -> None:
    """Raises Refused for a turn that brings its own history: a queued turn gets the history of the turn before it."""
    if new_turn.full_history:
        raise Refused(
            "request_invalid",
            "`on_busy: queue` continues the conversation of the session, so send only the new messages and no history",
            param="on_busy",
        )


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    return Parts(steps=OptionalSteps(check_queue=check_queue, take_place=make_line(gateway).take_place))


FEATURE = Feature(NoSettings, start)
