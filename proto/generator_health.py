"""The health report of a generator, from which gateways estimate how long a new turn waits."""

from typing import Literal

import msgspec

from tailrace.proto.ids import Tenant


class GeneratorHealth(msgspec.Struct, frozen=True):
    """`held`: turns that run or wait in the generator."""

    ok: bool
    held: int = msgspec.field(name="running")
    free: int
    """Free slots."""
    waiting: dict[Tenant, int] = {}
    """Tenants that use their share of the slots, and how many of their turns wait. See generators/fair_share.py."""
    detail: str = ""
    """A sentence for operators, for example that the model key is refused."""
    oldest_waiting_s: float = 0.0
    """The age of the oldest turn that waits in the generator; 0 if none does."""
    state: Literal["degraded"] | msgspec.UnsetType = msgspec.UNSET
    """Set while the generator works and turns fail: `detail` says why."""
    claude_version: str | msgspec.UnsetType = msgspec.UNSET
    """The version of Claude Code, if the generator runs it."""
