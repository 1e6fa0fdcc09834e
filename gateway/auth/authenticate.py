"""Who asks: a request becomes a caller, or is refused. What a body or a path says never matters here.

A credential stands in one of few places (carriers), and is one of few kinds (verifiers). Whoever adds one adds it to
the lists that the Authenticator is given; every check behind it is the same for all.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from starlette.requests import Request

from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.cors import listed, may_be_foreign
from tailrace.gateway.auth.jwt import WebTokens
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.static_keys import ConfiguredKeys
from tailrace.gateway.settings import Settings
from tailrace.proto.errors import Refused, SettingsInvalid
from tailrace.proto.ids import Tenant

# Whose turns they are where nobody needs a key.
LOCAL = Principal(Tenant("local"))
ELSEWHERE = "a page of another origin may not do that: send `Content-Type: application/json`, from a server of yours"


class Verifier(Protocol):
    """Knows one kind of credential."""

    async def verify(self, token: bytes, request: Request) -> Principal | None:
        """Who `token` speaks for; None: it is none of this kind, or good no longer.

        Raises LogUnavailable when nobody can say. `request` is for a kind that is good for some requests only.
        """


class CredentialSource(NamedTuple):
    """A place in a request where credentials may stand, and the kinds that are taken there."""

    read: Callable[[Request], list[bytes]]
    verifiers: Sequence[Verifier]


class Authenticator:
    """Admits who has a credential, and everybody where none is asked for."""

    def __init__(self, settings: Settings, ring: ApiKeyCache) -> None:
        """Raises SettingsInvalid for keys, secrets and sources of keys that cannot be read."""
        self._host = settings.host
        self._is_anonymous_allowed = settings.allow_anonymous
        self._configured = ConfiguredKeys(settings.api_keys)
        self.ring = ring
        self.tokens = WebTokens(settings)
        self._origins = listed(settings.origins)
        self.carriers: list[CredentialSource] = [
            CredentialSource(_of_headers, [self._configured, self.ring, self.tokens])
        ]
        """Others may be added before the first request."""

    def take(self, verifier: Verifier) -> None:
        """One more kind of credential in the headers; before the first request."""
        headers = self.carriers[0]
        self.carriers[0] = headers._replace(verifiers=[*headers.verifiers, verifier])

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a credential: none is configured, and there has never been a key.

        Where strangers can reach it, it is so only by the word of whoever started it.
        """
        is_any_known = bool(self._configured or self.ring.is_used or self.tokens)
        return not is_any_known and (self._is_anonymous_allowed or _is_loopback(self._host))

    def require_credentials(self) -> None:
        """Raises SettingsInvalid for a door that strangers reach, where there is nothing that could open it."""
        if not (self.is_open or self._configured or self.ring.is_used or self.tokens):
            raise SettingsInvalid(
                f"TAILRACE_HOST: {self._host} can be reached from elsewhere, and there is no key: start without it, "
                "make one with `tailrace keys create`, and start again; or set TAILRACE_API_KEYS or TAILRACE_JWT_…, or "
                "say TAILRACE_ALLOW_ANONYMOUS=true if that is what you want"
            )

    async def caller(self, request: Request) -> Principal:
        """Who `request` speaks for; raises Refused."""
        if self.is_open:
            if may_be_foreign(request, self._origins):
                raise Refused("origin_refused", ELSEWHERE)
            return LOCAL
        found = [(token, carrier.verifiers) for carrier in self.carriers for token in carrier.read(request)]
        # None, or several that another server in the way might choose among differently.
        if len(found) == 1:
            token, verifiers = found[0]
            for verifier in verifiers:
                if token and (caller := await verifier.verify(token, request)) is not None:
                    return self._still_good(caller)
        raise unknown()

    def named(self, key: str) -> Principal | None:
        """Who the API key of that name speaks for just now; None: there is none, it was revoked, or it has expired."""
        return self._configured.named(key) or self.ring.named(key)

    def _still_good(self, caller: Principal) -> Principal:
        """Whatever carried it and whatever it was exchanged for: a credential ends with its key, and at its time."""
        if self.ring.is_gone(caller.key) or (caller.until is not None and caller.until <= time.time()):
            raise unknown()
        return caller

    @contextmanager
    def ending(self, caller: Principal) -> Iterator[asyncio.Event]:
        """An event that is set when what `caller` came with is good no longer: expired, or its key revoked."""
        behind = self.named(caller.key) if caller.key is not None else None
        # What a key was exchanged for ends at its own time, or the key's.
        ends = [each.until for each in (caller, behind) if each is not None and each.until is not None]
        with self.ring.watched(caller.key) as ended:
            timer = None
            if ends:
                # The loop's clock from here on: a wall clock that jumps ends no stream.
                timer = asyncio.get_running_loop().call_later(max(0.0, min(ends) - time.time()), ended.set)
            try:
                yield ended
            finally:
                if timer is not None:
                    timer.cancel()


def unknown() -> Refused:
    """The same for none, one that nobody knows, one that has expired, and one that was revoked."""
    return Refused("credential_invalid", "send a valid key as `Authorization: Bearer KEY` or `x-api-key: KEY`")


def _of_headers(request: Request) -> list[bytes]:
    """Current SDKs send a bearer token, older ones and Claude Code `x-api-key`. Of another scheme: empty."""
    bearers = [_bearer(header) for header in request.headers.getlist("authorization")]
    return bearers + [header.encode("latin-1") for header in request.headers.getlist("x-api-key")]


def _bearer(header: str) -> bytes:
    scheme, _, token = header.partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
