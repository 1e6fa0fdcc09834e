"""By which names this server may be asked: it judges a Host header, and believes no X-Forwarded-Host.

A page elsewhere can give a name of its own this server's address (DNS rebinding), and is then, to its browser, a page
of this server. It cannot do so with an address: addresses are let in, as health checks and scrapers use them. Nor does
it win anything where a key is asked for, which it does not have: there every name is let in, so that a proxy's users
need no setting, until somebody lists the names that there are.
"""

import ipaddress
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway import error_responses
from tailrace.gateway.settings import Settings
from tailrace.proto.errors import SettingsInvalid

ANY = "*"
WRONG_NAME = "this server does not go by that name: set TAILRACE_HOSTS"
NO_NAME = "the request names no host, which it has to here: no key is asked for, or TAILRACE_HOSTS lists names"
LOOPBACK_NAMES = frozenset({"localhost"})
# RFC 9110, 7.2. Underscores are in the names of containers.
NAME = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
HOST = re.compile(rf"({NAME}|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?")


class Hosts:
    """The names that are listed, and what follows for one that is asked for."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsInvalid for what is no name."""
        self._names = frozenset(filter(None, (name.strip() for name in settings.hosts.lower().split(","))))
        wrong = [name for name in self._names if name != ANY and re.fullmatch(NAME, name) is None]
        if wrong:
            raise SettingsInvalid(f"TAILRACE_HOSTS: {min(wrong)} is no name: names alone, without scheme and port")

    def lets_in(self, headers: Headers, *, is_key_needed: bool) -> bool:
        """Whether a request with these headers goes to a name of ours."""
        hosts = headers.getlist("host")
        if is_key_needed and not hosts and not self._names:
            return True  # HTTP/1.0 has none
        match = HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if match is None:
            return False
        name = match[1]
        is_any = ANY in self._names or (is_key_needed and not self._names)
        return is_any or name in LOOPBACK_NAMES or name in self._names or _is_address(name)


class HostCheck:
    """ASGI middleware: whoever asks by another name gets a 403, on every route."""

    def __init__(self, app: ASGIApp, hosts: Hosts, is_key_needed: Callable[[], bool]) -> None:
        self._app = app
        self._hosts = hosts
        self._is_key_needed = is_key_needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._hosts.lets_in(Headers(scope=scope), is_key_needed=self._is_key_needed()):
            await self._app(scope, receive, send)
        else:
            refusal = error_responses.response(
                "host_refused", WRONG_NAME if "host" in Headers(scope=scope) else NO_NAME
            )
            await refusal(scope, receive, send)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
