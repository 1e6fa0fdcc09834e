"""Settings of the simulated Claude, which a test can change while it runs."""

import msgspec

from tailrace.deploy.simulated_claude.thinking import Behavior

# Whether requests are refused as by the real API for their thinking, marks of the cache, containers, ids of users, stop
# sequences and types of images.
ENFORCES = True


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """What the account of the simulated Claude is like."""

    enforces: bool = ENFORCES
    """Whether all rules of requests are enforced (`rules.refuse_request`)."""
    thinking: Behavior = "error"
    """What happens to thinking whose prefix has changed: a request that does not say it is refused (accounts since
    2026-08-31), the thinking is dropped, or nothing happens."""
    containers_from: int = 0
    """Containers with a smaller number have expired."""
    known: set[str] = set()
    """Signatures and containers in the cases of tests. They are accepted like the simulated Claude's own."""
