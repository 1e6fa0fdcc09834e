"""Browser logins: an API key is exchanged for a short access token and a refresh token in an HttpOnly cookie.

A refresh token is valid once. The use of an older one means that a copy exists, and since the server cannot tell which
of the two is the copy, the login ends (RFC 9700, section 4.14.2). Two tabs may refresh at the same time and an answer
may be lost, so for GRACE_S the previous token gets the same answer as the last one. Tokens are signed, not stored; the
store holds the generation of the last one.
"""

import asyncio
import secrets
import time
from typing import Literal, NamedTuple

from starlette.requests import Request

from tailrace.features.logins.store import Login, LoginStore
from tailrace.gateway.auth.authenticate import CredentialSource, credential_invalid
from tailrace.gateway.auth.principal import KeyLookup, Principal
from tailrace.gateway.auth.signed_tokens import Signed, TokenSigner
from tailrace.proto.errors import LogUnavailable
from tailrace.protocols.common.cookies import cookie_value

# `__Host-` ties the cookie to this host, to TLS and to the path /. Chromium and Firefox accept it on http://localhost.
COOKIE = "__Host-tailrace_login"
REFRESH_PATH = "/v1/login/refresh"
ACCESS_S = 600
# After this the API key itself is needed again.
LOGIN_S = 30 * 24 * 3600
GRACE_S = 30
TRIES = 10
STALE_WAIT_S = 0.02


class Access(Signed, frozen=True, kw_only=True, array_like=True):
    """The access token of a login with the API key `key`."""

    prefix = b"tra_"

    key: str
    until: int


class Refresh(Signed, frozen=True, kw_only=True, array_like=True):
    """The refresh token of a login, which is valid for one refresh."""

    prefix = b"trr_"

    login: str
    key: str
    generation: int
    until: int


class Tokens(NamedTuple):
    """The tokens of a login."""

    access: str
    refresh: str
    refresh_s: int
    """How long the refresh token is valid at most, in seconds."""


class Logins:
    """Creates, refreshes and ends logins, and verifies access tokens. All gateways accept each other's tokens."""

    def __init__(self, signer: TokenSigner, store: LoginStore, find_key: KeyLookup) -> None:
        self._signer = signer
        self._store = store
        self._find_key = find_key
        self.source = CredentialSource(read_cookie, [RefreshVerifier(signer, find_key)])

    async def create(self, key: str) -> Tokens:
        """Creates a login with the API key of this id. Raises LogUnavailable."""
        now = time.time()
        login = Login(key=key, until=int(now) + LOGIN_S, refreshed_at=now)
        login_id = secrets.token_hex(16)
        await self._store.put(login_id, login)
        return self._tokens(login_id, login)

    async def refresh(self, token: bytes) -> Tokens:
        """Exchanges a refresh token for the next tokens. Raises Refused, LogUnavailable."""
        refresh = self._signer.read(token, Refresh)
        if refresh is None:
            raise credential_invalid()
        for _ in range(TRIES):
            found = await self._store.get(refresh.login)
            now = time.time()
            if found is None or now > found[0].until:
                raise credential_invalid()
            login, revision = found
            match judge(login, refresh.generation, now):
                case "current":
                    following = Login(
                        key=login.key, until=login.until, generation=login.generation + 1, refreshed_at=now
                    )
                    if await self._store.put(refresh.login, following, revision):
                        return self._tokens(refresh.login, following)
                case "previous":
                    return self._tokens(refresh.login, login)
                case "reused":
                    await self._store.delete(refresh.login)
                    raise credential_invalid()
                case "ahead":
                    # The read was stale (PROTOCOL R14).
                    await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable("Too many clients refresh this login at once; retry.")

    async def end(self, token: bytes) -> None:
        """Ends the login of a refresh token; does nothing if the token is not valid. Raises LogUnavailable."""
        if (refresh := self._signer.read(token, Refresh)) is not None:
            await self._store.delete(refresh.login)

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        """Returns the principal of the API key behind an access token, until the token expires; or None."""
        access = self._signer.read(token, Access)
        if access is None or time.time() > access.until:
            return None
        principal = self._find_key(access.key)
        return principal._replace(until=access.until) if isinstance(principal, Principal) else None

    def _tokens(self, login_id: str, login: Login) -> Tokens:
        now = int(time.time())
        refresh = Refresh(login=login_id, key=login.key, generation=login.generation, until=login.until)
        return Tokens(
            access=self._signer.sign(Access(key=login.key, until=min(now + ACCESS_S, login.until))),
            refresh=self._signer.sign(refresh),
            refresh_s=max(0, login.until - now),
        )


class RefreshVerifier:
    """Verifies a refresh token's signature and expiry. `Logins.refresh` finds out whether it is the newest token."""

    def __init__(self, signer: TokenSigner, find_key: KeyLookup) -> None:
        self._signer = signer
        self._find_key = find_key

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        """Returns the principal of the API key behind the login, or None."""
        refresh = self._signer.read(token, Refresh)
        if refresh is None or time.time() > refresh.until:
            return None
        principal = self._find_key(refresh.key)
        return principal if isinstance(principal, Principal) else None


def judge(login: Login, generation: int, now: float) -> Literal["current", "previous", "reused", "ahead"]:
    """Returns the relation of a refresh token of this generation to the login.

    `previous`: the token before the last, within GRACE_S. `ahead`: newer than the stored login, which was a stale read.
    """
    if generation == login.generation:
        return "current"
    if generation > login.generation:
        return "ahead"
    is_in_grace = generation == login.generation - 1 and now - login.refreshed_at < GRACE_S
    return "previous" if is_in_grace else "reused"


def read_cookie(request: Request) -> list[bytes]:
    """Returns the refresh token in the cookie. Only the refresh route accepts it."""
    token = cookie_value(request.headers, COOKIE) if request.scope["path"] == REFRESH_PATH else ""
    return [token.encode("latin-1")] if token else []


def format_cookie(token: str, life_s: int) -> str:
    """Returns a `Set-Cookie` that scripts cannot read and that requests of other sites do not carry."""
    return f"{COOKIE}={token}; Path=/; Max-Age={life_s}; Secure; HttpOnly; SameSite=Strict"
