"""Allowed values of the `Host` header (TAILRACE_HOSTS), against DNS rebinding.

DNS rebinding: an attacker's page points its own host name at this server's address and is then same-origin with this
server. IP addresses are always allowed: a page cannot rebind one, and health checks and scrapers use them. Where
every request needs a key, a rebound page has no key to send, so every name is allowed until TAILRACE_HOSTS lists some.
`X-Forwarded-Host` is ignored.
"""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.http import error_responses
from tailrace.gateway.settings import Settings
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.ip_address import is_ip_address

ANY = "*"
LOOPBACK_NAMES = frozenset({"localhost"})
# RFC 9110, section 7.2. Container names have underscores.
NAME = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
HOST = re.compile(rf"({NAME}|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?")
# The longest DNS name; a message quotes no more of a header than that.
QUOTED_CHARS_MAX = 253


class AllowedHosts:
    """The host names of TAILRACE_HOSTS."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsInvalid if an entry is not a host name."""
        self._names = frozenset(filter(None, (name.strip() for name in settings.hosts.lower().split(","))))
        invalid = [name for name in self._names if name != ANY and re.fullmatch(NAME, name) is None]
        if invalid:
            raise SettingsInvalid(
                f"TAILRACE_HOSTS: {min(invalid)} is not a host name; write names without scheme and port"
            )

    def allows(self, headers: Headers, *, is_key_needed: bool) -> bool:
        """Returns whether the `Host` header among `headers` is allowed."""
        hosts = headers.getlist("host")
        if is_key_needed and not hosts and not self._names:
            return True  # HTTP/1.0 has no `Host`
        match = HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if match is None:
            return False
        name = match[1]
        is_any_allowed = ANY in self._names or (is_key_needed and not self._names)
        return is_any_allowed or name in LOOPBACK_NAMES or name in self._names or is_ip_address(name.strip("[]"))


class HostMiddleware:
    """ASGI middleware that answers 403 on every route if the `Host` header is not allowed."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, authenticator: Authenticator) -> None:
        self._app = app
        self._hosts = hosts
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._hosts.allows(headers, is_key_needed=not self._authenticator.is_open):
            await self._app(scope, receive, send)
        else:
            refusal = error_responses.response("host_refused", _message(headers.getlist("host")))
            await refusal(scope, receive, send)


def _message(hosts: list[str]) -> str:
    if not hosts:
        return "The request has no Host header; send one."
    if len(hosts) > 1:
        return "The request has more than one Host header; send one."
    return f'Host "{hosts[0][:QUOTED_CHARS_MAX]}" is not allowed; add it to TAILRACE_HOSTS.'
