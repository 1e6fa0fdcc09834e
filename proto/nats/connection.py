"""One connection to NATS, with the guards that nats-py lacks. It knows nothing of turns.

nats-py's own defaults are deaf for minutes on a frozen server, give up after sixty tries, and buffer publishes that are
then stored long after their writer gave up on them. None of that is wanted here.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import sample
from typing import Self
from urllib.parse import urlsplit

import nats
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from tailrace.proto.errors import EntryTooLarge, LogUnavailable, SettingsInvalid
from tailrace.proto.nats.client import Client
from tailrace.proto.nats.permissions import RIGHTS, inbox_prefix
from tailrace.proto.nats.tls import TlsClient, ssl_context

logger = structlog.get_logger()

# A server has the product of both, 2 s, to answer a ping; one that is frozen is given up within 2.5 s. A loop of ours
# that stood still counts one ping, whatever it has slept over, and reads the answers first.
PING_INTERVAL_S = 0.5
PINGS_MAX = 4
RECONNECT_WAIT_S = 0.25
CONNECT_TIMEOUT_S = 2
CLOSE_TIMEOUT_S = 2
# Told to reconnect for ever, nats-py also tries the first connection for ever.
OPEN_TIMEOUT_S = 5
# "NATS/1.0\r\n" and the blank line, and for each header ": " and "\r\n".
HEADERS_BYTES_FIXED = 12
HEADER_BYTES_FIXED = 4
AUTH_ERROR = "authorization violation"
# The one error of the server's that leaves the connection open.
PERMISSION_ERROR = "permissions violation"
# What it says, in nats-py's small letters, to who answers a question of another account's without having been asked by
# this connection.
LATE_REPLY_ERROR = f'{PERMISSION_ERROR} for publish to "_r_.'
URL_FORMAT = "nats://USER:PASSWORD@HOST:PORT"
HOST = re.compile(r"[A-Za-z0-9._:-]+")


class Connection:
    """A connection that comes back by itself. `reconnected` calls are made after each time it did.

    When the server closes it for good (a protocol violation, a revoked user) `closed` is set, and the process ends:
    whoever supervises it starts another, which is the same as surviving a crash.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.closed = asyncio.Event()
        self._reconnected: set[Callable[[], None]] = set()
        self._is_leaving = False
        self.is_refused = False
        """The server does not know our user, or not by that password."""

    @classmethod
    async def open(cls, url: str, name: str, user: str | None = None) -> Self:
        """Connects to `url` (`nats://USER:PASSWORD@HOST:PORT`, several joined by commas).

        `tls://` is as proto/nats/tls.py says. `user` is whom a URL that names one of accounts.py has to name. Raises
        LogUnavailable, and SettingsInvalid for what is no such URL.
        """
        addresses = parse_servers(url)
        named = user_of(addresses)
        if user is not None and named in RIGHTS and named != user:
            # NATS would refuse what is asked, one thing after the other, and never say why.
            raise SettingsInvalid(
                f"TAILRACE_NATS_URL is of the user {named}, who may not do this: give it nats://{user}:PASSWORD@HOST:PORT"
            )
        tls = ssl_context(addresses)
        connection = cls(TlsClient() if tls else Client())
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await connection.client.connect(
                    # In turn, from one that is drawn on: whom it has lost is tried last. nats-py would draw each time,
                    # and of a frozen server that is drawn it hears nothing until CONNECT_TIMEOUT_S.
                    servers=[address.partition("?")[0] for address in sample(addresses, len(addresses))],
                    dont_randomize=True,
                    tls=tls,
                    name=name,
                    # A user of least right hears its own inboxes and nobody else's.
                    inbox_prefix=inbox_prefix(named),
                    ping_interval=PING_INTERVAL_S,  # type: ignore[arg-type]  # annotated int, slept as a float
                    max_outstanding_pings=PINGS_MAX,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # as above
                    max_reconnect_attempts=-1,
                    # Nothing is kept for a server that is away: an append that failed must not be stored an hour later.
                    pending_size=-1,
                    error_cb=connection._on_error,
                    disconnected_cb=connection._on_disconnected,
                    reconnected_cb=connection._on_reconnected,
                    closed_cb=connection._on_closed,
                )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            why = str(connection.client.last_error)
            await connection.close()
            raise LogUnavailable(_nobody(url, why)) from error
        # Of several servers, one may have refused it, and another one not.
        connection.is_refused = False
        return connection

    @property
    def is_up(self) -> bool:
        return self.client.is_connected

    @property
    def server_version(self) -> tuple[int, int, int] | None:
        """Of the server that is connected to; None while there is none."""
        version = self.client.connected_server_version
        numbers = version.major, version.minor, version.patch
        return numbers if any(numbers) else None

    @property
    def jetstream(self) -> JetStreamContext:
        return self.client.jetstream(timeout=2)

    async def close(self) -> None:
        self._is_leaving = True
        # nats-py still wants to send what it has, also when nobody is there; and asserts that it had somewhere to go.
        with suppress(OSError, AssertionError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.client.close()
        self.client.abort()

    async def request(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """The one reply to `payload`. Raises LogUnavailable when none comes, EntryTooLarge before sending too much."""
        self.check_size(payload, headers)
        try:
            reply = await self.client.request(subject, payload, timeout=timeout_s, headers=headers)
        except nats.errors.Error as error:
            # Clients are told it, too.
            raise LogUnavailable(f"the log does not answer ({type(error).__name__}): try again in a moment") from error
        raise_if_cancelled()
        return reply

    async def publish(self, subject: str, payload: bytes, *, reply: str = "") -> None:
        """Sends without waiting for anything; raises LogUnavailable when there is no connection."""
        self.check_size(payload, None)
        try:
            await self.client.publish(subject, payload, reply=reply)
        except nats.errors.Error as error:
            raise LogUnavailable(f"cannot publish: {type(error).__name__}") from error
        raise_if_cancelled()

    async def subscribe(self, subject: str, heard: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Calls `heard` for each message, in order; the subscription outlives reconnects."""
        try:
            subscription = await self.client.subscribe(subject, cb=heard)
        except nats.errors.Error as error:
            raise LogUnavailable(f"cannot subscribe: {type(error).__name__}") from error
        try:
            raise_if_cancelled()
        except asyncio.CancelledError:
            await self.unsubscribe(subscription)
            raise
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        # After the connection was closed there is nothing left to unsubscribe from.
        if not self.client.is_closed:
            await subscription.unsubscribe()

    def on_reconnected(self, call: Callable[[], None]) -> Callable[[], None]:
        """Registers `call` for after each reconnect; returns what takes it back."""
        self._reconnected.add(call)
        return lambda: self._reconnected.discard(call)

    def check_size(self, payload: bytes, headers: dict[str, str] | None) -> None:
        """nats-py checks the payload alone; one byte of headers too many, and the server hangs up for good."""
        size = len(payload)
        if headers:
            size += HEADERS_BYTES_FIXED + sum(len(k) + len(v) + HEADER_BYTES_FIXED for k, v in headers.items())
        if size > self.client.max_payload:
            raise EntryTooLarge(f"{size} bytes are more than the {self.client.max_payload} the server takes")

    async def _on_error(self, error: Exception) -> None:
        said = str(error).lower()
        if AUTH_ERROR in said:
            # Said once, and not at each of four tries a second.
            if not self.is_refused:
                logger.error("nats does not know our user, or not by that password: TAILRACE_NATS_URL has both")
            self.is_refused = True
            return
        if LATE_REPLY_ERROR in said:
            # The right to answer is the connection's that heard the question, for two minutes. Whoever asked has
            # been told by then that nobody answered, and may ask again.
            logger.warning("nats refused an answer that came too late", error=str(error))
            return
        if PERMISSION_ERROR in said:
            # Of a publish nobody is told otherwise: who waits for its answer waits in vain.
            logger.error("nats refused what its user may not", error=str(error))
            return
        # A server that is away says so four times a second; that the connection is lost was said once.
        away = isinstance(error, OSError | TimeoutError | nats.errors.NoServersError)
        (logger.debug if away else logger.warning)("nats reported an error", error=type(error).__name__)
        # A slow subscription has dropped messages. To its readers that is the same as a reconnect: read again.
        if isinstance(error, nats.errors.SlowConsumerError):
            self._read_again()

    async def _on_disconnected(self) -> None:
        if not self._is_leaving:
            logger.warning("nats connection lost")

    async def _on_reconnected(self) -> None:
        self.is_refused = False
        logger.info("nats connection is back")
        self._read_again()

    def _read_again(self) -> None:
        for call in tuple(self._reconnected):
            call()

    async def _on_closed(self) -> None:
        self.closed.set()


def parse_servers(url: str) -> list[str]:
    """The addresses that TAILRACE_NATS_URL names; raises SettingsInvalid, without the secret that may be in them."""
    addresses = [address.strip() for address in url.split(",")]
    if not all(map(_is_server, addresses)):
        raise SettingsInvalid(f"TAILRACE_NATS_URL: expected {URL_FORMAT} or tls://…, several joined by commas")
    return addresses


def user_of(addresses: Sequence[str]) -> str:
    """The user of that URL; none where a token is enough."""
    who = urlsplit(addresses[0] if "://" in addresses[0] else f"nats://{addresses[0]}")
    return who.username or "" if who.password else ""


def _is_server(address: str) -> bool:
    try:
        parts = urlsplit(address if "://" in address else f"nats://{address}")
        return parts.scheme in ("nats", "tls") and HOST.fullmatch(parts.hostname or "") is not None and parts.port != 0
    except ValueError:
        # A port that is none.
        return False


def _nobody(url: str, why: str) -> str:
    """What a person is told who waited for NATS at `url`; never the secret in it."""
    where = ", ".join(address.rpartition("://")[2].rpartition("@")[2].partition("?")[0] for address in url.split(","))
    if "Authorization" in why:
        return f"NATS at {where} does not know us: TAILRACE_NATS_URL says who we are, as {URL_FORMAT}"
    if "TLS" in why or "SSL" in why:
        return f"NATS at {where} and we do not trust each other ({why}): TAILRACE_NATS_URL says ?ca=, &cert= and &key="
    return f"no NATS server answers at {where}: TAILRACE_NATS_URL says where one is; `make run` starts all"


def raise_if_cancelled() -> None:
    """Raises the CancelledError that nats-py swallows when it arrives while it flushes.

    Whoever was cancelled would go on for ever: whatever asks again and again calls this after each call of nats-py's.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
