"""The scopes of credentials, by name."""

from collections.abc import Iterable
from typing import Literal, get_args

ScopeName = Literal["write", "read", "manage", "operate", "admin"]
"""A right of a credential. `write` creates and cancels turns, `read` reads them, `manage` renames and deletes.
`operate` reads the metrics of all tenants; `admin` changes their keys and limits, and reads their usage."""

ADMIN_SCOPE: ScopeName = "admin"
SCOPES: frozenset[ScopeName] = frozenset(get_args(ScopeName))
TENANT_SCOPES: frozenset[ScopeName] = SCOPES - {"operate", ADMIN_SCOPE}
"""The scopes of a credential that names none: they are limited to its own tenant."""


def scopes_of(names: Iterable[str]) -> frozenset[ScopeName]:
    """Returns the known scopes among `names`. An unknown name grants nothing."""
    return SCOPES.intersection(names)
