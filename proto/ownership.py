"""Who may use a thing: the one rule about the users of a tenant. Pure.

The owner of a thing is the user of the credential that has made it; None: the tenant itself, such as a company, which
has made it with a credential without a user. In a tenant whose users are private, a user uses only what it owns.
"""

from typing import Literal

Users = Literal["shared", "private"]
"""Whether the users of a tenant use everything of the tenant, or only what they own."""


KNOWN_SETTINGS = ("users",)
"""The settings of tenants that this version applies. Gateways and persistence report them (PROTOCOL R29, R76)."""


def viewer_of(user: str | None, users: Users) -> str | None:
    """Returns the user whose things alone a credential with this `user` may use; None: those of the whole tenant."""
    return user if users == "private" else None


def may_use(viewer: str | None, owner: str | None) -> bool:
    """Returns whether a credential whose `viewer_of` is `viewer` may use a thing of this owner."""
    return viewer is None or viewer == owner
