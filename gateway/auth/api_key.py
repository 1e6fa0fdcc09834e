"""The stored record of an API key: id, SHA-256 of the key, tenant, scopes, limits. The key itself is not stored."""

import hashlib
import re

import msgspec

from tailrace.gateway.auth.limits import GivenLimits
from tailrace.proto.ids import Tenant

ID_BYTES = 8
KEY_ID = re.compile(rf"key_[0-9a-f]{{{2 * ID_BYTES}}}")


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key's record. `sha256` is of the whole key, in lower-case hex; times are Unix seconds; `id` is not secret.

    Readers ignore scopes that they do not know.
    """

    id: str
    sha256: str
    tenant: Tenant
    scopes: list[str]
    created_at: int
    name: str = ""
    revoked_at: int | None = None
    expires_at: int | None = None
    """None: valid until revoked."""
    limits: GivenLimits | None = None
    replaces: str | None = None
    """The id of the key for which a rotation has made this key."""
    replaced_by: str | None = None
    """The id of the key that a complete rotation has made for this key."""
    counted_as: str | None = None
    """The id of the first key in a chain of rotations. All keys of the chain share its counters."""

    def is_good(self, now: float) -> bool:
        """Returns whether the key is valid at `now`, in Unix seconds: neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def hash_key(key: bytes) -> str:
    """Returns the SHA-256 of a key in hexadecimal digits, under which its record is found."""
    return hashlib.sha256(key).hexdigest()
