"""HTTP client for webhooks with protection against server-side request forgery (SSRF).

Each call opens a new connection, and the address is checked when its socket is made. The client follows no redirects,
keeps no cookies, uses no proxy, and does not read the response's body.
"""

import socket
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple, Self

import aiohttp
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver

from tailrace.features.webhooks.ssrf import UrlNotAllowed, check_url, is_public
from tailrace.features.webhooks.system_resolver import SystemResolver
from tailrace.proto.errors import WebhookFailed, WebhookRefused
from tailrace.proto.runtime.retry_after import parse_retry_after
from tailrace.proto.version import VERSION


class Answer(NamedTuple):
    status: int
    retry_after_s: float | None


class WebhookClient:
    """Posts webhooks. Use it as an async context manager.

    `private` are the hosts that may have private addresses; `resolver` is by default the system's.
    """

    def __init__(self, private: frozenset[str], *, timeout_s: float, resolver: AbstractResolver | None = None) -> None:
        self._private = private
        self._timeout_s = timeout_s
        self._resolver = resolver or SystemResolver()

    async def __aenter__(self) -> Self:
        # aiohttp makes its default context at import, before SSL_CERT_FILE may have been set.
        context = ssl.create_default_context()
        self._public = self._session(context, _public_socket)
        self._own = self._session(context, _any_socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._public.close()
        await self._own.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Returns the receiver's answer. Raises WebhookRefused for a forbidden address, else WebhookFailed."""
        try:
            session = self._own if check_url(url, self._private).is_private else self._public
        except UrlNotAllowed as error:
            raise WebhookRefused(f"the URL {error}") from error
        try:
            async with session.post(url, headers=headers, data=body, allow_redirects=False) as response:
                return Answer(response.status, parse_retry_after(response.headers, time.time()))
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _NotPublicError):
                raise WebhookRefused("the host resolves to an address that is not public") from error
            raise WebhookFailed(type(error).__name__) from error
        except TimeoutError as error:
            raise WebhookFailed(f"no answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WebhookFailed(type(error).__name__) from error

    def _session(self, context: ssl.SSLContext, socket_factory: aiohttp.SocketFactoryType) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=context,
            resolver=self._resolver,
            use_dns_cache=False,
            force_close=True,
            limit=0,
            socket_factory=socket_factory,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": f"tailrace/{VERSION} (webhooks)", "content-type": "application/json"},
            auto_decompress=False,
            trust_env=False,
        )


class _NotPublicError(OSError):
    """An OSError, so that aiohttp tries the other addresses of the host."""


def _public_socket(where: AddrInfoType) -> socket.socket:
    # Checked immediately before the connection, so the checked address is the connected one (no DNS rebinding).
    if not is_public(str(where[4][0])):
        raise _NotPublicError("not a public address")
    return _any_socket(where)


def _any_socket(where: AddrInfoType) -> socket.socket:
    return socket.socket(where[0], where[1], where[2])
