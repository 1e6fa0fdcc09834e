"""Settings of the simulated Claude, which a test can change while it runs."""

import msgspec

from tailrace.deploy.simulated_claude.thinking import Behavior


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """The properties of the account at the simulated Claude."""

    thinking: Behavior = "error"
    """The reaction to thinking whose prefix has changed, if the request names none: refuse the request (accounts since
    2026-08-31), drop the thinking, or accept it."""
    containers_from: int = 0
    """Containers with a smaller number have expired."""
    known: set[str] = set()
    """Signatures and containers in the cases of tests. They are accepted like the simulated Claude's own."""
