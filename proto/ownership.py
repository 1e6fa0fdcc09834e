"""Who may use a thing: the one rule about the users of a tenant. Pure.

The owner of a thing is the user of the credential that has made it; None: the tenant itself, such as a company, which
has made it with a credential without a user. A session's owner also owns the turns of the session, whoever has made
them. In a tenant whose users are private, a user uses only what it owns.
"""

import hashlib
from typing import Literal, cast

from msgspec import UNSET

from tailrace.proto.entries import Request
from tailrace.proto.ids import Tenant

Users = Literal["shared", "private"]
"""Whether the users of a tenant use everything of the tenant, or only what they own."""
KNOWN_SETTINGS = ("users",)
"""The settings of tenants that this version applies. Gateways and persistence report them (PROTOCOL R29, R76)."""


class TenantView(str):
    """The name of a tenant for one of its private users: queries, and reads of the log, find only what the user owns.

    It is equal to the name, so that locks, limits and feeds are the tenant's.
    """

    __slots__ = ("viewer",)
    viewer: str


def view_of(tenant: Tenant, viewer: str) -> Tenant:
    """Returns the tenant as this user sees it."""
    view = TenantView(tenant)
    view.viewer = viewer
    return cast("Tenant", view)


def viewer_in(tenant: Tenant) -> str | None:
    """Returns the user that sees the tenant; None: everything of the tenant is seen."""
    return tenant.viewer if isinstance(tenant, TenantView) else None


def whole(tenant: Tenant) -> Tenant:
    """Returns the tenant with all that it has, for what is not about things of one user, and to be encoded."""
    return Tenant(str(tenant))


def viewer_of(user: str | None, users: Users) -> str | None:
    """Returns the user whose things alone a credential with this `user` may use; None: those of the whole tenant."""
    return user if users == "private" else None


def may_use(viewer: str | None, owner: str | None) -> bool:
    """Returns whether a credential whose `viewer_of` is `viewer` may use a thing of this owner."""
    return viewer is None or viewer == owner


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


def owned_key(tenant: Tenant, key: str) -> str:
    """Returns the idempotency key that a client's `key` means: each private user has keys of its own."""
    viewer = viewer_in(tenant)
    return key if viewer is None else f"{key}@{hash_subject(viewer)[:32]}"
