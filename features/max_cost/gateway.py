"""The check of the cost limit of a new turn."""

from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.settings import NoSettings

COST_USD_MAX = 1e6


def check_max_cost(new_turn: NewTurn) -> None:
    """Raises Refused for a limit that is not above 0, or too large for nano-dollars."""
    if new_turn.max_cost is not None and not 0 < new_turn.max_cost <= COST_USD_MAX:
        raise Refused("request_invalid", f"`max_cost` is dollars, above 0 and at most {COST_USD_MAX:,.0f}")


FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(steps=OptionalSteps(check_max_cost=check_max_cost)))
