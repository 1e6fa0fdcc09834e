"""Who asks, as a credential tells it: whose turns they are, what may be done with them, and for how long."""

from typing import NamedTuple

from tailrace.proto.api_key import SCOPES, Scope
from tailrace.proto.ids import Tenant, TurnId


class Principal(NamedTuple):
    tenant: Tenant
    key: str | None = None
    """The credential's name, which is no secret: what usage is counted by. None: nobody was asked for one.

    What one credential was exchanged for (a ticket, a login) bears that one's name, and ends with it.
    """
    scopes: frozenset[Scope] = SCOPES
    until: float | None = None
    """Unix seconds; None: for ever."""
    turn: TurnId | None = None
    """The only turn that may be named. None: all of the tenant's."""
    limits: dict[str, float] | None = None
    """What the key's own record says of how much."""
