"""The connection to NATS: settings, reconnects and errors on top of nats-py.

nats-py's defaults notice a frozen server after minutes, give up after sixty reconnects, and buffer publishes that are
then stored long after their writer gave up. This module changes all three.
"""

import asyncio
import re
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from random import sample
from time import monotonic
from typing import Self
from urllib.parse import urlsplit

import msgspec
import nats
import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from tailrace.proto.errors import LogDenied, LogRefused, LogUnavailable, SettingsInvalid
from tailrace.proto.ids import Seq
from tailrace.proto.nats import pub_ack, stream_info
from tailrace.proto.nats.client import Client, Message, Receive, TlsClient
from tailrace.proto.nats.pub_ack import Ack
from tailrace.proto.nats.stream_info import StreamInfo
from tailrace.proto.nats.tls import ssl_context
from tailrace.proto.nats.users import USERS, inbox_prefix
from tailrace.proto.runtime.race import raise_if_cancelled
from tailrace.proto.subjects import STREAM

logger = structlog.get_logger()

# A server has 2 s (PING_INTERVAL_S * PINGS_MAX) to answer a ping; a frozen one is given up within 2.5 s. After a block,
# the event loop of this process counts at most one unanswered ping, and first reads the replies that have arrived.
PING_INTERVAL_S = 0.5
PINGS_MAX = 4
RECONNECT_WAIT_S = 0.25
CONNECT_TIMEOUT_S = 2
CLOSE_TIMEOUT_S = 2
INFO_TIMEOUT_S = 2.0
# With unlimited reconnects, nats-py also tries the first connection without end.
OPEN_TIMEOUT_S = 5
AUTH_ERROR = "authorization violation"
# The only error after which the server keeps the connection open.
PERMISSION_ERROR = "permissions violation"
# The server's error for a reply to a request of another account, if this connection has not received the request.
# nats-py puts errors in lower case.
LATE_REPLY_ERROR = f'{PERMISSION_ERROR} for publish to "_r_.'
# A request waits for its reply for some seconds, and then looks for its error among so many.
DENIED_KEPT = 256
# nats-server's error code of a cluster without a majority.
NO_LEADER = 10008
LEADERLESS = "JetStream has no leader: start the other servers (of three, at least two must run)"
RENEW = "renew it, and run `nats-server --signal reload`: docs/RUNBOOK.md, Renew certificates"
URL_FORMAT = "nats://USER:PASSWORD@HOST:PORT"
HOST = re.compile(r"[A-Za-z0-9._:-]+")


class Connection:
    """A connection that reconnects by itself and then runs the `on_reconnected` callbacks.

    When the server closes the connection for good (a protocol violation, a revoked user), `closed` is set and the
    process exits; its supervisor restarts it, as after a crash.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.closed = asyncio.Event()
        self._reconnected: set[Callable[[], None]] = set()
        self._is_opened = False
        self._is_closing = False
        self.is_refused = False
        """The server has rejected the user or the password."""
        self._has_unknown_name = False
        """The DNS has no address for one of the servers, or does not answer."""
        self.is_tls_failing = False
        """TLS has failed since the connection was lost."""
        self._denied = deque[str](maxlen=DENIED_KEPT)
        """The newest errors about permissions."""
        self.disconnects = 0
        self.changed_at = 0.0
        """The last disconnect or reconnect, by the monotonic clock."""
        self.is_leaving = False
        """The nats-server has announced that it ends (lame duck mode): the client will be disconnected soon."""
        self.forkless_after: Seq | None = None
        """Entries of the log after this one were stored by one replica, so none is of a fork; None: not known.

        setup_state.watch sets it. A disconnect resets it, because the next server may be another one.
        """
        self.missing: list[str] = []
        """The streams, buckets and consumers that NATS lacks, according to the last check of setup_state.watch."""

    @classmethod
    async def open(cls, url: str, name: str, user: str | None = None) -> Self:
        """Connects to `url`: `nats://USER:PASSWORD@HOST:PORT`, several separated by commas; for `tls://` see tls.py.

        `user` is the role of this process: a URL with the user of another role is refused. Raises LogUnavailable,
        LogRefused for a wrong password, or SettingsInvalid for an invalid URL.
        """
        addresses = parse_servers(url)
        named = user_of(addresses)
        if user is not None and named in USERS and named != user:
            # NATS would refuse every publish and subscription, without the reason.
            raise SettingsInvalid(
                f"TAILRACE_NATS_URL has the user {named}, but this process needs nats://{user}:PASSWORD@HOST:PORT"
            )
        tls = ssl_context(addresses)
        connection = cls(TlsClient() if tls else Client())
        connection.client.report = connection._report
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await connection.client.connect(
                    # Shuffled once, then in order, so that a lost server is tried last. nats-py would choose at random
                    # each time, and a frozen server costs CONNECT_TIMEOUT_S.
                    servers=[address.partition("?")[0] for address in sample(addresses, len(addresses))],
                    dont_randomize=True,
                    tls=tls,
                    name=name,
                    # Each user may subscribe only to its own inboxes.
                    inbox_prefix=inbox_prefix(named),
                    ping_interval=PING_INTERVAL_S,  # type: ignore[arg-type]  # annotated int, slept as a float
                    max_outstanding_pings=PINGS_MAX,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # as above
                    max_reconnect_attempts=-1,
                    # No buffer while disconnected: a failed append must not be stored an hour later.
                    pending_size=-1,
                    error_cb=connection._on_error,
                    disconnected_cb=connection._on_disconnected,
                    reconnected_cb=connection._on_reconnected,
                    closed_cb=connection._on_closed,
                    lame_duck_mode_cb=connection._on_lame_duck,
                )
                await connection.client.open_inbox()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            why = str(connection.client.last_error)
            await connection.close()
            raise _failure(url, why, is_unknown=connection._has_unknown_name) from error
        connection._is_opened = True
        # One of several servers may have refused the user before another accepted it.
        connection.is_refused = False
        return connection

    @property
    def is_up(self) -> bool:
        """Whether the client is connected to a nats-server now. Otherwise the client tries to reconnect."""
        return self.client.is_connected

    @property
    def server_version(self) -> tuple[int, int, int] | None:
        """The version of the connected server; None while disconnected."""
        version = self.client.connected_server_version
        numbers = version.major, version.minor, version.patch
        return numbers if any(numbers) else None

    @property
    def jetstream(self) -> JetStreamContext:
        """nats-py's JetStream client. Its requests time out after 2 seconds."""
        return self.client.jetstream(timeout=2)

    async def close(self) -> None:
        """Closes the connection, within CLOSE_TIMEOUT_S."""
        self._is_closing = True
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            # nats-py flushes first, also while disconnected, and then fails an assertion. uvloop raises RuntimeError
            # for a closed socket.
            with suppress(OSError, AssertionError, RuntimeError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.client.close()
        except asyncio.CancelledError:
            # nats-py cancels its reconnect and the future of the socket, and then waits for this future.
            if task and task.cancelling() > cancellations:
                raise
        finally:
            self.client.abort()

    def leave_server(self) -> None:
        """Reconnects to the next server. Does nothing if there is only one server, or while disconnected."""
        if self.is_up and len(self.client.servers) > 1:
            logger.warning("nats-server left, because the log does not answer there")
            self.client.abort()

    async def request(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Sends a request and returns its reply. Raises LogUnavailable without a reply in time, EntryTooLarge."""
        try:
            return await self.client.ask(subject, payload, timeout_s, headers)
        except nats.errors.Error as error:
            # Clients receive this message, too.
            raise LogUnavailable(f"the log does not answer ({type(error).__name__}): retry") from error

    async def store(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_s: float,
        fence: Seq | None = None,
        headers: dict[str, str] | None = None,
    ) -> Ack:
        """Publishes to a stream and returns the server's answer: the sequence of the message, or why it is not stored.

        With `fence`, the server stores the message only if this is the sequence of the last one on `subject`, or on the
        subjects of the header `Nats-Expected-Last-Subject-Sequence-Subject`. Raises LogUnavailable without an answer in
        time: the message may be stored then. Raises EntryTooLarge.
        """
        if fence is not None:
            headers = {pub_ack.FENCE: str(fence), **(headers or {})}
        return pub_ack.decode((await self.request(subject, payload, timeout_s=timeout_s, headers=headers)).data)

    async def stream_info(
        self, name: str, *, subjects: str | None = None, offset: int = 0, timeout_s: float = INFO_TIMEOUT_S
    ) -> StreamInfo:
        """Returns the configuration and the state of a stream, from its leader. Raises LogUnavailable.

        With `subjects`, which may have wildcards, the state has a page of them, in order, from number `offset` on.
        """
        query = b"" if subjects is None else msgspec.json.encode({"subjects_filter": subjects, "offset": offset})
        reply = await self.request(f"$JS.API.STREAM.INFO.{name}", query, timeout_s=timeout_s)
        if (error := stream_info.decode_error(reply.data).error) is not None:
            raise LogUnavailable(f"the stream {name} does not answer ({error.description}): retry")
        return stream_info.decode(reply.data)

    async def lacks_leader(self) -> bool:
        """Returns whether nats-server says that JetStream has no leader. It then answers questions, and no appends."""
        with suppress(LogUnavailable):
            reply = await self.request("$JS.API.INFO", b"", timeout_s=INFO_TIMEOUT_S)
            error = stream_info.decode_error(reply.data).error
            return error is not None and error.err_code == NO_LEADER
        return False

    async def now(self) -> datetime:
        """Returns the time of nats-server's clock, which also dates the entries. Raises LogUnavailable.

        For actions that cannot be undone: this machine's clock may be wrong by a day.
        """
        return (await self.stream_info(STREAM)).ts

    async def publish(self, subject: str, payload: bytes, *, reply: str = "") -> None:
        """Publishes without waiting for a reply. Raises LogUnavailable while disconnected, EntryTooLarge."""
        try:
            self.client.send(subject, reply, payload)
        except nats.errors.Error as error:
            raise LogUnavailable(f"publishing to NATS failed ({type(error).__name__}): retry") from error

    def raise_if_denied(self, subject: str) -> None:
        """Raises LogDenied if NATS has denied a publish to `subject` since the last reconnect."""
        if any(subject.lower() in error for error in self._denied):
            raise LogDenied(
                f"NATS denies the permission to publish to {subject}: run the nats-users.conf of this version"
            )

    async def subscribe(self, subject: str, on_message: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Calls `on_message` for each message, in order, in a task. The subscription survives reconnects.

        Raises LogUnavailable.
        """
        return await self._await_subscription(self.client.subscribe(subject, cb=on_message))

    async def subscribe_directly(self, subject: str, receive: Receive) -> Subscription:
        """Like `subscribe`, for a function that returns at once: it is called as each message is read.

        Raises LogUnavailable.
        """
        return await self._await_subscription(self.client.subscribe_directly(subject, receive))

    async def _await_subscription(self, subscribing: Awaitable[Subscription]) -> Subscription:
        try:
            return await subscribing
        except nats.errors.Error as error:
            raise LogUnavailable(f"subscribing at NATS failed ({type(error).__name__}): retry") from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription. Does nothing on a closed connection."""
        if not self.client.is_closed:
            await subscription.unsubscribe()

    def on_reconnected(self, call: Callable[[], None]) -> Callable[[], None]:
        """Calls `call` after each reconnect. Returns a function that unregisters it."""
        self._reconnected.add(call)
        return lambda: self._reconnected.discard(call)

    async def flush(self) -> None:
        """Returns when the server has processed what was sent, such as subscriptions. Raises LogUnavailable."""
        # Client writes at the end of an iteration of the event loop, and nats-py's PING would overtake these bytes.
        await asyncio.sleep(0)
        try:
            await self.client.flush(CONNECT_TIMEOUT_S)
        except nats.errors.Error as error:
            raise LogUnavailable(f"NATS does not answer ({type(error).__name__}): retry") from error
        raise_if_cancelled()

    async def _on_error(self, error: Exception) -> None:
        if not self._is_opened:
            # nats-py tries to connect until it is cancelled.
            raise_if_cancelled()
        self._report(error)

    def _report(self, error: Exception) -> None:
        self._has_unknown_name |= isinstance(error, socket.gaierror)
        text = str(error).lower()
        if AUTH_ERROR in text:
            # Logged once, not at each of four attempts a second.
            if not self.is_refused:
                logger.error("nats rejects the user or password of TAILRACE_NATS_URL")
            self.is_refused = True
            return
        if isinstance(error, ssl.SSLError):
            # Logged once, as above, with the reason: for example, that the server's certificate has expired.
            if not self.is_tls_failing:
                logger.warning("TLS to nats fails", error=str(error))
            self.is_tls_failing = True
            return
        if LATE_REPLY_ERROR in text:
            # Only the connection that received a request may reply, for two minutes only. The client has timed out by
            # then.
            logger.warning("nats refused a late reply", error=str(error))
            return
        if PERMISSION_ERROR in text:
            # A refused publish has no other sign: a request only times out.
            logger.error("nats denied a permission", error=str(error))
            self._denied.append(text)
            return
        # Reconnect attempts fail four times a second; the lost connection was logged once.
        is_away = isinstance(error, OSError | TimeoutError | nats.errors.NoServersError)
        (logger.debug if is_away else logger.warning)("nats reported an error", error=type(error).__name__)
        # nats-py dropped messages of a slow subscription, or a message that it had no memory for: readers must read
        # again, as after a reconnect.
        if isinstance(error, nats.errors.SlowConsumerError | MemoryError):
            self._read_again()

    async def _on_disconnected(self) -> None:
        self.disconnects += 1
        self.changed_at = monotonic()
        self.forkless_after = None
        if not self._is_closing:
            logger.warning("nats connection lost")

    async def _on_reconnected(self) -> None:
        self.is_refused = self.is_tls_failing = self.is_leaving = False
        self.changed_at = monotonic()
        self._denied.clear()
        logger.info("nats connection restored")
        self._read_again()

    def _read_again(self) -> None:
        for call in tuple(self._reconnected):
            call()

    async def _on_lame_duck(self) -> None:
        self.is_leaving = True

    async def _on_closed(self) -> None:
        self.closed.set()


def parse_servers(url: str) -> list[str]:
    """Returns the addresses in TAILRACE_NATS_URL. Raises SettingsInvalid; the message does not repeat the password."""
    addresses = [address.strip() for address in url.split(",")]
    if not all(map(_is_server, addresses)):
        raise SettingsInvalid(f"TAILRACE_NATS_URL: expected {URL_FORMAT} or tls://…, several separated by commas")
    return addresses


def user_of(addresses: Sequence[str]) -> str:
    """Returns the user in the first address; "" if it has a token or no credentials."""
    parts = urlsplit(addresses[0] if "://" in addresses[0] else f"nats://{addresses[0]}")
    return parts.username or "" if parts.password else ""


def _is_server(address: str) -> bool:
    try:
        parts = urlsplit(address if "://" in address else f"nats://{address}")
        return parts.scheme in ("nats", "tls") and HOST.fullmatch(parts.hostname or "") is not None and parts.port != 0
    except ValueError:
        # An invalid port.
        return False


def _failure(url: str, why: str, *, is_unknown: bool) -> LogUnavailable:
    """Returns the error for a failed connection to `url`. Its message does not contain the password."""
    where = ", ".join(address.rpartition("://")[2].rpartition("@")[2].partition("?")[0] for address in url.split(","))
    if "Authorization" in why:
        return LogRefused(f"NATS at {where} rejects the user or password: set TAILRACE_NATS_URL to {URL_FORMAT}")
    if "certificate has expired" in why:
        return LogUnavailable(f"TLS to NATS at {where} failed ({why}): {RENEW}")
    if "TLS" in why or "SSL" in why:
        return LogUnavailable(f"TLS to NATS at {where} failed ({why}): set ?ca=, &cert= and &key= in TAILRACE_NATS_URL")
    if is_unknown:
        return LogUnavailable(
            f"no NATS server answers at {where}: a host name has no address, or the DNS does not answer"
        )
    return LogUnavailable(
        f"no NATS server answers at {where}: start one, or set TAILRACE_NATS_URL; `tailrace up` starts everything"
    )


def explain(error: nats.errors.Error) -> str:
    """Returns what is wrong with JetStream and what to do; otherwise nats-py's text."""
    if isinstance(error, nats.js.errors.APIError) and error.err_code == NO_LEADER:
        return LEADERLESS
    if isinstance(error, nats.js.errors.ServiceUnavailableError) and error.code is None:
        return "this NATS server has no JetStream: add `jetstream { store_dir: … }` to its configuration"
    return str(error)
