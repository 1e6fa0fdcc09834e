"""An API key as it is stored: never the key itself, only what it is found by. Pure."""

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import msgspec

from tailrace.proto.ids import Tenant

Scope = Literal["write", "read", "manage"]
"""What a credential may do: create and cancel turns; read; rename and delete."""

SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
# Key records and tokens that were made before version 0.1.0 use the old name.
OLD_SCOPES: dict[str, Scope] = {"ask": "write"}

# What a person, and a scanner for leaked secrets, knows a key by.
PREFIX = "tr_"
SECRET_BYTES = 32
ID_BYTES = 8
KEY_ID = re.compile(rf"key_[0-9a-f]{{{2 * ID_BYTES}}}")


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`sha256` is the whole key's, in lower-case hex; times are Unix seconds. `id` is no secret.

    A scope that a reader does not know is one that it does not grant.
    """

    id: str
    sha256: str
    tenant: Tenant
    scopes: list[str]
    created_at: int
    name: str = ""
    revoked_at: int | None = None
    expires_at: int | None = None
    """None: it is good until it is revoked."""
    limits: dict[str, float] | None = None

    def is_good(self, now: float) -> bool:
        """Whether it opens anything at `now`, in Unix seconds: neither revoked, nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class NewKey(NamedTuple):
    secret: str
    """Shown once, and then nowhere."""
    record: ApiKey


def new_key(
    tenant: Tenant,
    *,
    now: int,
    name: str = "",
    scopes: Iterable[Scope],
    limits: dict[str, float] | None = None,
    expires_at: int | None = None,
) -> NewKey:
    """A key of 256 random bits, and its record."""
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    record = ApiKey(
        id=f"key_{secrets.token_hex(ID_BYTES)}",
        sha256=hash_key(secret.encode()),
        tenant=tenant,
        scopes=sorted(scopes),
        created_at=now,
        name=name,
        limits=limits,
        expires_at=expires_at,
    )
    return NewKey(secret, record)


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Returns the known scopes among `names`. An unknown name grants nothing."""
    return SCOPES & {OLD_SCOPES.get(name, name) for name in names}


def hash_key(key: bytes) -> str:
    """What a key is found by: of the whole of it, so that equal beginnings mean nothing."""
    return hashlib.sha256(key).hexdigest()
