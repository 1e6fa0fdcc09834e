"""The principal of a request: tenant, credential name, scopes and expiry, as the credential states them."""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from tailrace.gateway.auth.limits import GivenLimits
from tailrace.gateway.http.scope import TENANT_SCOPES, ScopeName
from tailrace.proto.ids import TurnId
from tailrace.proto.ownership import Scope


class Principal(NamedTuple):
    """The authenticated sender of a request."""

    access: Scope
    """The scope of the credential: the whole tenant, or the things of one private user. The name of the tenant is
    `access.tenant`."""
    key: str | None = None
    """The credential's id, which is not secret; usage is counted by it. None: no credential was needed.

    A credential that a client got for its key carries the id of that key, and ends with it.
    """
    scopes: frozenset[ScopeName] = TENANT_SCOPES
    until: float | None = None
    """Expiry in Unix seconds; None: it does not expire."""
    turn: TurnId | None = None
    """The only turn that requests may name. None: all turns of the tenant."""
    limits: GivenLimits | None = None
    """The limits in the key's own record."""
    user: str | None = None
    """The end user that a JWT names: the user of every turn that it creates, whatever the body says."""
    must_name_user: bool = False
    """Whether the credential is one of a user, which is not valid without a user where users are private."""
    has_private_users: bool = False
    """Whether the users of the tenant are private, and this credential sees the whole tenant."""
    counted_as: str | None = None
    """The id of the replaced key whose limits this key shares after rotations. None: its own limits."""


class NoKey(Enum):
    """The reason for which no API key has the id of a credential.

    A value and not None, so that `or` cannot replace a key that has ended by another principal.
    """

    ENDED = "ended"
    """It is the id of an API key, which is unknown, revoked or expired."""
    OTHER = "other"
    """It is the id of a credential of another kind, such as a JWT, which has no record."""


KeyLookup = Callable[[str], Principal | NoKey]
"""Returns the principal of the API key with this id, or why there is none."""
