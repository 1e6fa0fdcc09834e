"""The only door to strangers' servers: one POST to a URL that somebody has named. It knows no turn.

Each call opens a connection of its own, to an address that was judged at that very socket. No redirect is followed, no
cookie kept, no proxy asked, and the answer's body is not read.
"""

import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple, Self

import aiohttp
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver

from tailrace.persistence.webhooks.payload import retry_after_s
from tailrace.proto.errors import WebhookFailed, WebhookRefused
from tailrace.proto.ssrf import UrlNotAllowed, check_url, is_public
from tailrace.proto.version import VERSION


class Answer(NamedTuple):
    status: int
    retry_after_s: float | None


class Egress:
    """`async with Egress(private, timeout_s=15) as egress: await egress.post(…)`. `resolver`: DNS, if not given."""

    def __init__(self, private: frozenset[str], *, timeout_s: float, resolver: AbstractResolver | None = None) -> None:
        self._private = private
        self._timeout_s = timeout_s
        self._resolver = resolver

    async def __aenter__(self) -> Self:
        # Made here, and not by aiohttp when it is imported, so that SSL_CERT_FILE is heeded.
        context = ssl.create_default_context()
        self._public = self._session(context, _public_socket)
        self._own = self._session(context, _any_socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._public.close()
        await self._own.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Returns the server's answer. Raises WebhookRefused if `url` is not allowed, else WebhookFailed."""
        try:
            session = self._own if check_url(url, self._private).is_private else self._public
        except UrlNotAllowed as error:
            raise WebhookRefused(f"its URL {error}") from error
        try:
            async with session.post(url, headers=headers, data=body, allow_redirects=False) as response:
                asked_s = retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
                return Answer(response.status, asked_s)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _NotPublicError):
                raise WebhookRefused("its host leads to an address that is not public") from error
            raise WebhookFailed(type(error).__name__) from error
        except TimeoutError as error:
            raise WebhookFailed(f"no answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WebhookFailed(type(error).__name__) from error

    def _session(self, context: ssl.SSLContext, opens: aiohttp.SocketFactoryType) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=context,
            resolver=self._resolver,
            use_dns_cache=False,
            force_close=True,
            limit=0,
            socket_factory=opens,
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
    """An OSError, so that another address of the same name may still be tried."""


def _public_socket(where: AddrInfoType) -> socket.socket:
    # The last moment before the connection: what is judged here is what is connected to.
    if not is_public(str(where[4][0])):
        raise _NotPublicError("not a public address")
    return _any_socket(where)


def _any_socket(where: AddrInfoType) -> socket.socket:
    return socket.socket(where[0], where[1], where[2])
