"""Who asks, as a credential tells it: whose turns they are, and which credential it was."""

from typing import NamedTuple

from proto.ids import Tenant


class Caller(NamedTuple):
    tenant: Tenant
    key: str | None = None
    """The credential's name, which is no secret: what usage is counted by. None: nobody was asked for one."""
