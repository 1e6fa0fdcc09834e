"""API keys from the setting TAILRACE_API_KEYS, stored as hashes."""

import re

from starlette.requests import Request

from tailrace.gateway.auth.api_key import hash_key
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant, is_token
from tailrace.proto.ownership import WHOLE, Scope

# Enough hex digits of the hash to tell keys apart, too few to find a key by.
ID_CHARS = 12
KEY = re.compile(r"([^:]+):([0-9a-f]{64})")


class StaticKeys:
    """The keys of TAILRACE_API_KEYS. Static keys have all scopes of a tenant and do not expire."""

    def __init__(self, text: str) -> None:
        """Raises SettingsInvalid if `text` is not a list of TENANT:SHA256."""
        self._principals = _parse(text)

    def __bool__(self) -> bool:
        return bool(self._principals)

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        """Returns the principal of the key `token`, or None."""
        # A lookup by the hash of the whole key takes the same time for a wrong key that begins like a right one.
        return self._principals.get(hash_key(token))

    def find(self, key_id: str) -> Principal | None:
        """Returns the principal of the key with this id, or None."""
        return next((principal for principal in self._principals.values() if principal.key == key_id), None)


def _parse(text: str) -> dict[str, Principal]:
    principals: dict[str, Principal] = {}
    for number, pair in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        match = KEY.fullmatch(pair)
        if match is None or not is_token(match[1]):
            # Do not quote the value: it may be the key itself.
            raise SettingsInvalid(
                f"TAILRACE_API_KEYS: pair {number} is not TENANT:SHA256, with a TENANT of a-z 0-9 _ - and the hash "
                "that `printf %s KEY | sha256sum` prints"
            )
        principal = Principal(Scope(Tenant(match[1]), WHOLE), f"env_{match[2][:ID_CHARS]}")
        if principals.setdefault(match[2], principal) != principal:
            raise SettingsInvalid("TAILRACE_API_KEYS: one key is listed for two tenants; give each tenant its own")
    return principals
