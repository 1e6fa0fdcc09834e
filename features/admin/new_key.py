"""Makes API keys."""

import secrets
from collections.abc import Iterable
from typing import NamedTuple

from tailrace.gateway.auth.api_key import ID_BYTES, ApiKey, hash_key
from tailrace.gateway.auth.limits import GivenLimits
from tailrace.gateway.http.scope import ScopeName
from tailrace.proto.ids import Tenant

# Lets people and secret scanners recognise a key.
PREFIX = "tr_"
SECRET_BYTES = 32


class NewKey(NamedTuple):
    secret: str
    """The key itself. Shown once, then never again."""
    record: ApiKey


def new_key(
    tenant: Tenant,
    *,
    now: int,
    name: str = "",
    scopes: Iterable[ScopeName],
    limits: GivenLimits | None = None,
    expires_at: int | None = None,
) -> NewKey:
    """Returns a new key of 256 random bits, and its record."""
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    record = ApiKey(
        id=f"key_{secrets.token_hex(ID_BYTES)}",
        sha256=hash_key(secret.encode()),
        tenant=tenant,
        scopes=sorted(set(scopes)),
        created_at=now,
        name=name,
        limits=limits,
        expires_at=expires_at,
    )
    return NewKey(secret, record)
