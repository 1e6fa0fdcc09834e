"""Who may use a thing: the one rule about the users of a tenant. Pure.

The owner of a thing is the user of the credential that has made it; None: the tenant itself, such as a company, which
has made it with a credential without a user. A session's owner also owns the turns of the session, whoever has made
them. In a tenant whose users are private, a user uses only what it owns.
"""

import hashlib
from enum import Enum
from typing import Final, Literal

from msgspec import UNSET, Struct

from tailrace.proto.entries import Request
from tailrace.proto.ids import Tenant, TurnId, TurnKey

Users = Literal["shared", "private"]
"""Whether the users of a tenant use everything of the tenant, or only what they own."""
KNOWN_SETTINGS = ("users",)
"""The settings of tenants that this version applies. Gateways and persistence report them (PROTOCOL R29, R76)."""


class Whole(Enum):
    """The type of WHOLE."""

    WHOLE = "whole"


WHOLE: Final = Whole.WHOLE
"""The viewer of a scope that shows everything of the tenant."""


class Scope(Struct, frozen=True):
    """The right to the things of a tenant: of the whole tenant, or only those that one of its private users owns.

    A scope has no default and is no text, so that a lost viewer is an error and never the whole tenant. Raises
    TypeError for any other tenant or viewer.
    """

    tenant: Tenant
    viewer: str | Whole

    def __post_init__(self) -> None:
        is_known = type(self.tenant) is str and type(self.viewer) in (str, Whole)
        if not (is_known and self.tenant and self.viewer):
            raise TypeError(f"a scope needs a tenant and a viewer, a user or WHOLE: {self.tenant!r}, {self.viewer!r}")

    @property
    def is_whole_tenant(self) -> bool:
        """Whether the scope shows everything of the tenant. A policy about private users depends on this alone."""
        return self.viewer is WHOLE

    @property
    def only_owner(self) -> str | None:
        """The owner by which lists are filtered; None: they have the things of every owner."""
        return None if self.viewer is WHOLE else self.viewer


class ScopedKey(Struct, frozen=True):
    """A turn and the scope in which it is read: the log client and the fan-out read no turn without a scope."""

    scope: Scope
    turn: TurnId

    @classmethod
    def whole(cls, key: TurnKey) -> "ScopedKey":
        """Returns the key for a read on behalf of no user: of generators, persistence and background work."""
        return cls(Scope(key.tenant, WHOLE), key.turn)

    @property
    def tenant(self) -> Tenant:
        """The tenant of the turn."""
        return self.scope.tenant

    @property
    def plain(self) -> TurnKey:
        """The name of the turn, by which appends, feeds, blobs and caches know it, whatever the scope."""
        return TurnKey(self.scope.tenant, self.turn)


def may_use(scope: Scope, owner: str | None) -> bool:
    """Returns whether the scope shows a thing of this owner."""
    return scope.viewer is WHOLE or scope.viewer == owner


def owner_of(request: Request) -> str | None:
    """Returns the owner of a turn. A version without owners has stored a user that may come from the body.

    It is the credential's if the name of the credential proves that.
    """
    if request.owner is not UNSET:
        return request.owner
    is_proven = bool(request.user) and request.by == name_token(request.user or "")
    return request.user if is_proven else None


def name_token(subject: str) -> str:
    """Returns the name of the credential of tokens with this subject: it is not secret, and shows no address."""
    return f"jwt_{hash_subject(subject)[:16]}"


def hash_subject(subject: str) -> str:
    """Returns the SHA-256 of a token's subject, of which the name of its credential has the first digits."""
    return hashlib.sha256(subject.encode(errors="replace")).hexdigest()


def owned_key(scope: Scope, key: str) -> str:
    """Returns the idempotency key that a client's `key` means: each private user has keys of its own."""
    return key if scope.viewer is WHOLE else f"{key}@{hash_subject(scope.viewer)[:32]}"
