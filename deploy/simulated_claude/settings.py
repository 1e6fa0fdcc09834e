"""Settings of the simulated Claude, which a test can change while it runs."""

import msgspec

from tailrace.deploy.simulated_claude.thinking import Behavior

# Whether requests are refused as by the real API for their thinking, marks of the cache, containers, ids of users, stop
# sequences and types of images.
ENFORCES = True


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """The properties of the account at the simulated Claude."""

    enforces: bool = ENFORCES
    """Whether all rules of requests are enforced (`rules.refuse_request`)."""
    thinking: Behavior = "error"
    """The reaction to thinking whose prefix has changed, if the request names none: refuse the request (accounts since
    2026-08-31), drop the thinking, or accept it."""
    containers_from: int = 0
    """Containers with a smaller number have expired."""
    known: set[str] = set()
    """Signatures and containers in the cases of tests. They are accepted like the simulated Claude's own."""
