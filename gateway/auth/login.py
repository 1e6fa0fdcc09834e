"""Logins of people in a browser: an API key becomes a short access token and a refresh token that no script can read.

A refresh token is good once. Whoever uses an older one has a copy, or the owner has: nobody can say which, so the
whole login ends (RFC 9700, 4.14.2). But two tabs refresh at once, and an answer can be lost on its way: the one before
the last still gets what the last got, for GRACE_S. Tokens are signed and not stored; their number is.
"""

import asyncio
import secrets
import time
from typing import Literal, NamedTuple

from starlette.requests import Request

from tailrace.gateway.auth.authenticate import CredentialSource, unknown
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.signed_tokens import Access, Refresh, Signature
from tailrace.gateway.auth.tickets import Named
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import logins

# `__Host-`: from this very host, over TLS, for all of it. Chromium and Firefox take it from http://localhost, too.
COOKIE = "__Host-tailrace_login"
REFRESH_PATH = "/v1/login/refresh"
ACCESS_S = 600
# In the end the key itself is asked for again.
LOGIN_S = 30 * 24 * 3600
GRACE_S = 30
TRIES = 10
STALE_WAIT_S = 0.02


class Tokens(NamedTuple):
    access: str
    refresh: str
    refresh_s: int
    """For how long the refresh token is good at most."""


class Logins:
    """Begins, refreshes and ends logins, and verifies access tokens. Any gateway knows those of any other."""

    def __init__(self, signature: Signature, stored: logins.Logins, named: Named) -> None:
        self._signature = signature
        self._stored = stored
        self._named = named
        self.carrier = CredentialSource(of_cookie, [RefreshVerifier(signature, named)])

    async def begin(self, key: str) -> Tokens:
        """For whoever has shown the API key of that name. Raises LogUnavailable."""
        now = time.time()
        login = logins.Login(key=key, until=int(now) + LOGIN_S, refreshed_at=now)
        name = secrets.token_hex(16)
        await self._stored.put(name, login)
        return self._tokens(name, login)

    async def refresh(self, token: bytes) -> Tokens:
        """The next tokens, at the price of this one. Raises Refused, LogUnavailable."""
        refresh = self._signature.read(token, Refresh)
        if refresh is None:
            raise unknown()
        for _ in range(TRIES):
            found = await self._stored.get(refresh.login)
            now = time.time()
            if found is None or now > found[0].until:
                raise unknown()
            login, revision = found
            match judge(login, refresh.generation, now):
                case "good":
                    following = logins.Login(
                        key=login.key, until=login.until, generation=login.generation + 1, refreshed_at=now
                    )
                    if await self._stored.put(refresh.login, following, revision):
                        return self._tokens(refresh.login, following)
                case "late":
                    return self._tokens(refresh.login, login)
                case "used":
                    await self._stored.delete(refresh.login)
                    raise unknown()
                case "ahead":
                    # What was read is behind (PROTOCOL R14).
                    await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable("the login is being refreshed by many at once")

    async def end(self, token: bytes) -> None:
        """What cannot be read is no login, and has none to end. Raises LogUnavailable."""
        if (refresh := self._signature.read(token, Refresh)) is not None:
            await self._stored.delete(refresh.login)

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        """The caller of an access token: the API key that logged in, as it is today, for as long as the token says."""
        access = self._signature.read(token, Access)
        if access is None or time.time() > access.until:
            return None
        caller = self._named(access.key)
        return caller and caller._replace(until=access.until)

    def _tokens(self, name: str, login: logins.Login) -> Tokens:
        now = int(time.time())
        refresh = Refresh(login=name, key=login.key, generation=login.generation, until=login.until)
        return Tokens(
            access=self._signature.sign(Access(key=login.key, until=min(now + ACCESS_S, login.until))),
            refresh=self._signature.sign(refresh),
            refresh_s=max(0, login.until - now),
        )


class RefreshVerifier:
    """Knows whose login a refresh token is of; whether it is the last one is found out when it is used."""

    def __init__(self, signature: Signature, named: Named) -> None:
        self._signature = signature
        self._named = named

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        refresh = self._signature.read(token, Refresh)
        return None if refresh is None or time.time() > refresh.until else self._named(refresh.key)


def judge(login: logins.Login, generation: int, now: float) -> Literal["good", "late", "used", "ahead"]:
    """What the refresh token of that generation is to its login: its last, the one before that in time, an old one."""
    if generation == login.generation:
        return "good"
    if generation > login.generation:
        return "ahead"
    is_in_time = generation == login.generation - 1 and now - login.refreshed_at < GRACE_S
    return "late" if is_in_time else "used"


def of_cookie(request: Request) -> list[bytes]:
    """The refresh token, on the one route where it is worth something."""
    is_there = request.scope["path"] == REFRESH_PATH and COOKIE in request.cookies
    return [request.cookies[COOKIE].encode("latin-1", "replace")] if is_there else []


def cookie(token: str, life_s: int) -> str:
    """A `Set-Cookie` that no script can read, and that no other site's page is sent with."""
    return f"{COOKIE}={token}; Path=/; Max-Age={life_s}; Secure; HttpOnly; SameSite=Strict"
