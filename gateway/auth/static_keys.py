"""The keys that a setting names: the static way, which asks nobody. Only their hashes are known here."""

import re

from starlette.requests import Request

from tailrace.gateway.auth.principal import Principal
from tailrace.proto.api_key import hash_key
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant, is_token

# Enough of a configured key's hash to tell it from others, and nothing to find the key with.
NAME_CHARS = 12
KEY = re.compile(r"([^:]+):([0-9a-f]{64})")


class ConfiguredKeys:
    def __init__(self, text: str) -> None:
        """Raises SettingsInvalid for what is no list of TENANT:SHA256."""
        self._callers = _callers(text)

    def __bool__(self) -> bool:
        return bool(self._callers)

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        # The hash of the whole key is looked up: equal beginnings mean nothing, and a hit's time tells nothing.
        return self._callers.get(hash_key(token))

    def named(self, key: str) -> Principal | None:
        return next((caller for caller in self._callers.values() if caller.key == key), None)


def _callers(text: str) -> dict[str, Principal]:
    callers: dict[str, Principal] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        match = KEY.fullmatch(pair)
        if match is None or not is_token(match[1]):
            raise SettingsInvalid("TAILRACE_API_KEYS: expected TENANT:SHA256 in hex, TENANT of a-z 0-9 _ -")
        caller = Principal(Tenant(match[1]), f"env_{match[2][:NAME_CHARS]}")
        if callers.setdefault(match[2], caller) != caller:
            raise SettingsInvalid("TAILRACE_API_KEYS: one key stands for two tenants")
    return callers
