"""Who asks: a request becomes a caller, or is refused. What a body or a path says never matters here."""

import hashlib
import ipaddress
import re

from starlette.requests import Request

from gateway.caller import Caller
from gateway.origin import may_be_foreign
from gateway.settings import Settings
from proto.errors import Refused, SettingsInvalid
from proto.ids import Tenant, is_token

# Whose turns they are where nobody needs a key.
LOCAL = Caller(Tenant("local"))
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
ELSEWHERE = "a page of another origin may not do that: send `Content-Type: application/json`, from a server of yours"
# Enough of a configured key's hash to tell it from others, and nothing to find the key with.
NAME_CHARS = 12
KEY = re.compile(r"([^:]+):([0-9a-f]{64})")


class Door:
    """Checks credentials against the configured keys; only their hashes are known here."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsInvalid for keys that cannot be read, and for an open door where strangers can reach it."""
        self._tenants = _tenants(settings.api_keys)
        self._hosts = LOOPBACK_HOSTS | {name.strip() for name in settings.hosts.lower().split(",") if name.strip()}
        if not self._tenants and not settings.allow_anonymous and not _is_loopback(settings.host):
            raise SettingsInvalid(
                f"TAILRACE_HOST: {settings.host} can be reached from elsewhere, and no key is asked for. "
                "Set TAILRACE_API_KEYS, or TAILRACE_ALLOW_ANONYMOUS=true if that is what you want"
            )

    def caller(self, request: Request) -> Caller:
        """Who `request` speaks for; raises Refused."""
        if not self._tenants:
            self._check_host(request)
            if may_be_foreign(request):
                raise Refused("origin_refused", ELSEWHERE)
            return LOCAL
        credential = _credential(request)
        # The hash of the whole key is looked up: equal beginnings mean nothing, and a hit's time tells nothing.
        sha256 = hashlib.sha256(credential).hexdigest()
        found = self._tenants.get(sha256) if credential else None
        if found is None:
            raise Refused("credential_invalid", "send a valid key as `Authorization: Bearer KEY` or `x-api-key: KEY`")
        return Caller(found, f"env_{sha256[:NAME_CHARS]}")

    def _check_host(self, request: Request) -> None:
        """Without keys, a page elsewhere could point a name of its own at this machine (DNS rebinding)."""
        host = re.sub(r":[0-9]+$", "", request.headers.get("host", "")).lower()
        if "*" not in self._hosts and host not in self._hosts:
            raise Refused("host_refused", "this server does not go by that name: set TAILRACE_HOSTS")


def _credential(request: Request) -> bytes:
    bearers = request.headers.getlist("authorization")
    keys = request.headers.getlist("x-api-key")
    if len(bearers) + len(keys) != 1:
        # None, or several that another server in the way might choose among differently.
        return b""
    if keys:
        return keys[0].encode("latin-1")
    scheme, _, token = bearers[0].partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _tenants(text: str) -> dict[str, Tenant]:
    tenants: dict[str, Tenant] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        match = KEY.fullmatch(pair)
        if match is None or not is_token(match[1]):
            raise SettingsInvalid("TAILRACE_API_KEYS: expected TENANT:SHA256 in hex, TENANT of a-z 0-9 _ -")
        if tenants.setdefault(match[2], Tenant(match[1])) != match[1]:
            raise SettingsInvalid("TAILRACE_API_KEYS: one key stands for two tenants")
    return tenants


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
