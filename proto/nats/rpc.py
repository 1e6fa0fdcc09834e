"""Request/reply between processes over core NATS: queries, health reports, and whether a turn has readers."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, Service, ServiceConfig

from tailrace.proto import subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import CODES, LogUnavailable, Refused, TailraceError
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats.client import Message, drain_endpoints
from tailrace.proto.nats.connection import Connection
from tailrace.proto.runtime.logged_causes import LoggedCauses
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.subjects import GENERATORS, PERSISTENCE

logger = structlog.get_logger()

Handler = Callable[[Tenant, bytes], Awaitable[bytes]]
"""Answers a query of a tenant."""

T = TypeVar("T")

# Slots for the queries that one process answers at once. A tenant may use as many slots as stay free: half of all if it
# is alone, 1/(n + 1) of them if n tenants are busy. Further queries are refused, and may be retried.
QUERIES_MAX = 512
# The refusal when no process of a role answers, or when it cannot answer.
UNAVAILABLE = {
    PERSISTENCE: ("persistence_unavailable", "sessions and history cannot be read at the moment: retry"),
    GENERATORS: ("generators_unavailable", "no generator is available at the moment: retry"),
}
RETRY_WAIT_S = 2.0
# On two busy cores a process starts within three seconds.
RESTART_S_MAX = 4.0
POLL_S = 0.05
ANSWER_S_MAX = 3.0
STOP_S_MAX = 5.0

# The body of a presence request that asks for the readers (PROTOCOL R81).
REPORTS = b"reports"
ERROR_CODE = "Nats-Service-Error-Code"
ERROR = "Nats-Service-Error"
RETRY_AFTER = "Retry-After"
# The further fields of a refusal, as JSON in ASCII.
DETAILS = "Tailrace-Error-Details"
# The status of nats-server's reply to a request that no process serves.
NO_RESPONDERS = "503"
HEADER_CHARS_MAX = 500

# The refusal of a reply that must be requested in parts. An older version has no parts: clients receive the message.
REPLY_TOO_LARGE = "the reply is larger than one message: request fewer items at once"
# In a request: the number of a part, from 0. In a reply: how many parts there are, and the whole reply's SHA-256.
PART, PARTS, REPLY_SHA256 = "Tailrace-Part", "Tailrace-Parts", "Tailrace-Reply-Sha256"
PART_HEADERS_BYTES_MAX = 1024
REPLY_BYTES_MAX = 256 * 1024 * 1024
# How often a reply that has changed between two of its parts is requested from its beginning.
BEGINNINGS_MAX = 3
KEEP_REPLY_S = 10.0


class Endpoints:
    """The queries that a process serves."""

    def __init__(self, service: Service, running: Mapping[asyncio.Task[None], Tenant]) -> None:
        self.id = service.id
        self._service = service
        self._running = running

    async def stop(self) -> None:
        """Answers the queries that have arrived, within `ANSWER_S_MAX`. Later requests go to other processes.

        Returns within `STOP_S_MAX`, also if nats-server does not answer.
        """
        # The connection is closed next, and with it all subscriptions end.
        with suppress(TimeoutError, nats.errors.Error):
            async with asyncio.timeout(STOP_S_MAX):
                await drain_endpoints(self._service)
                if self._running:
                    await asyncio.wait(self._running, timeout=ANSWER_S_MAX)
                await self._service.stop()


def decode_query(query: bytes, kind: type[T]) -> T:
    """Decodes the body of a query. Raises Refused."""
    try:
        return msgspec.json.decode(query, type=kind)
    except DECODE_ERRORS as error:
        raise Refused("request_invalid", f"the query is not a {kind.__name__}") from error


class Rpc:
    """Sends and serves requests over core NATS. Nothing is stored; no reply means that no process serves."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def request(
        self, tenant: Tenant, name: str, query: bytes, *, timeout_s: float, role: str = PERSISTENCE
    ) -> bytes:
        """Sends the query `name` to a process of `role` and returns its reply. Waits while the process is restarted.

        A reply that is larger than one message is requested in parts. `timeout_s` is the time for each part. Raises
        Refused with the reply's code, or with the role's code if none replies in time. Raises EntryTooLarge.
        """
        try:
            return (await self._ask(tenant, name, query, timeout_s, role)).data
        except Refused as refused:
            if refused.message != REPLY_TOO_LARGE:
                raise
        for _ in range(BEGINNINGS_MAX):
            parts = list[bytes]()
            count, sha256 = 1, ""
            while len(parts) < count:
                reply = await self._ask(tenant, name, query, timeout_s, role, {PART: str(len(parts))})
                headers = reply.headers or {}
                if PARTS not in headers or (parts and headers[REPLY_SHA256] != sha256):
                    # An older version has answered this part, or the reply has changed since its first part.
                    break
                count, sha256 = int(headers[PARTS]), headers[REPLY_SHA256]
                parts.append(reply.data)
            else:
                return b"".join(parts)
        raise Refused(*UNAVAILABLE[role], retry_after_s=RETRY_WAIT_S)

    async def _ask(
        self,
        tenant: Tenant,
        name: str,
        query: bytes,
        timeout_s: float,
        role: str,
        headers: dict[str, str] | None = None,
    ) -> Message:
        """Returns the reply to a query, or to a part of one. Raises Refused, EntryTooLarge."""
        deadline = asyncio.get_running_loop().time() + min(timeout_s, RESTART_S_MAX)
        while True:
            try:
                subject = subjects.query(tenant, name)
                reply = await self._connection.request(subject, query, timeout_s=timeout_s, headers=headers)
                break
            except LogUnavailable as error:
                # Only without responders, no process has received the query.
                is_received = not isinstance(error.__cause__, nats.errors.NoRespondersError)
                if is_received or asyncio.get_running_loop().time() > deadline:
                    raise Refused(*UNAVAILABLE[role], retry_after_s=RETRY_WAIT_S) from error
            await asyncio.sleep(POLL_S)
        of_reply = reply.headers or {}
        if (code := of_reply.get(ERROR_CODE)) is not None:
            message = reply.data.decode(errors="replace") or of_reply.get(ERROR, "")
            raise Refused(
                code if code in CODES else "internal",
                message,
                retry_after_s=_seconds(of_reply),
                details=json.loads(of_reply[DETAILS]) if DETAILS in of_reply else None,
            )
        return reply

    async def serve(self, role: str, version: str, handlers: Mapping[str, Handler]) -> Endpoints:
        """Serves queries by name as a NATS service (ADR-32), which `nats micro ls` shows.

        Returns when nats-server routes them here: earlier queries would be refused. Raises LogUnavailable.
        """
        service = await add_service(
            self._connection.client, ServiceConfig(name=role, version=version, queue_group=role)
        )
        running: dict[asyncio.Task[None], Tenant] = {}
        logged = LoggedCauses()
        parts = _PartedReplies(lambda: self._connection.client.max_payload - PART_HEADERS_BYTES_MAX)
        for query, handler in handlers.items():
            endpoint = _run_concurrently(_endpoint(handler, role, logged, parts), role, running)
            config = EndpointConfig(name=query, subject=subjects.every_query(query), handler=endpoint)
            await service.add_endpoint(config)
        await self._connection.flush()
        return Endpoints(service, running)

    async def serve_health(self, role: str, report: Callable[[], bytes | None]) -> None:
        """Serves health requests with `report()`. For None, no reply is sent. Raises LogUnavailable."""

        async def on_request(message: Msg) -> None:
            if (health := report()) is not None:
                await message.respond(health)

        await self._connection.subscribe(subjects.health(role), on_request)

    async def health(self, role: str, *, timeout_s: float) -> bytes | None:
        """Returns the first health report of a process of `role`, or None."""
        try:
            return (await self._connection.request(subjects.health(role), b"", timeout_s=timeout_s)).data
        except LogUnavailable:
            return None

    async def every_health(self, role: str, *, wait_s: float, first_s: float = 0.0) -> list[bytes]:
        """Returns the health reports that all processes of a role send within `wait_s`; at once if none runs.

        If no report has come by then, waits up to `first_s` seconds in all for the first one. Raises LogUnavailable.
        """
        return await self._collect(subjects.health(role), wait_s, first_s=first_s)

    async def _collect(
        self, query: str, wait_s: float, body: bytes = b"", answers: str = "", first_s: float = 0.0
    ) -> list[bytes]:
        """Publishes `query` and returns its replies, or all messages on the subject `answers`, within `wait_s`.

        `first_s`: see `every_health`.
        """
        reports, reply = list[bytes](), "" if answers else self._connection.client.new_inbox()
        unserved, answered = asyncio.Event(), asyncio.Event()

        async def on_report(message: Msg) -> None:
            if message.data:
                reports.append(message.data)
                answered.set()
            elif (message.headers or {}).get("Status") == NO_RESPONDERS:
                unserved.set()

        subscription = await self._connection.subscribe(answers or reply, on_report)
        try:
            await self._connection.publish(query, body, reply=reply)
            if not await is_set_within(unserved, wait_s):
                await is_set_within(answered, first_s - wait_s)
        finally:
            await self._connection.unsubscribe(subscription)
        return reports

    async def serve_presence(self, has_readers: Callable[[TurnKey], bool], readers: Callable[[TurnKey], bytes]) -> None:
        """Answers gateways that ask for the readers of a turn, or whether it has readers, if it has some here.

        Raises LogUnavailable.
        """

        async def on_request(message: Msg) -> None:
            key = _key_of(message)
            if message.data == REPORTS:
                await message.respond(readers(key))
            elif has_readers(key):
                await message.respond(b"")

        await self._connection.subscribe(subjects.EVERY_PRESENCE, on_request)

    async def has_readers(self, key: TurnKey, *, timeout_s: float) -> bool:
        """Returns whether a gateway, this one included, has readers of the turn. No reply means no."""
        try:
            await self._connection.request(subjects.presence(key), b"", timeout_s=timeout_s)
        except LogUnavailable:
            return False
        return True

    async def collect_readers(self, key: TurnKey, *, wait_s: float) -> list[bytes]:
        """Returns the report of each gateway that answers within `wait_s` about a turn's readers.

        Raises LogUnavailable.
        """
        return await self._collect(subjects.presence(key), wait_s, REPORTS)

    async def serve_reader_queries(self, readers: Callable[[TurnKey], bytes]) -> None:
        """Answers `collect_readers_as_admin` with `readers(turn)`, on a subject that only the gateways receive.

        Raises LogUnavailable.
        """

        async def on_query(message: Msg) -> None:
            key = _key_of(message)
            await self._connection.publish(subjects.reader_reply(key), readers(key))

        await self._connection.subscribe(subjects.EVERY_READER_QUERY, on_query)

    async def collect_readers_as_admin(self, key: TurnKey, *, wait_s: float) -> list[bytes]:
        """Returns the same as `collect_readers`, for the NATS user `admin`. Raises LogUnavailable."""
        return await self._collect(subjects.reader_query(key), wait_s, answers=subjects.reader_reply(key))


Endpoint = Callable[[Request], Awaitable[None]]


def _key_of(message: Msg) -> TurnKey:
    """Returns the turn of a request for its readers."""
    _, tenant, turn = message.subject.split(".")
    return TurnKey(Tenant(tenant), TurnId(turn))


def _tenant(request: Request) -> Tenant:
    return Tenant(request.subject.split(".")[1])


def _seconds(headers: Mapping[str, str]) -> float | None:
    return float(headers[RETRY_AFTER]) if RETRY_AFTER in headers else None


async def _refuse(request: Request, refused: Refused) -> None:
    """Sends the message as the body, and in ASCII as a header, for tools."""
    in_ascii = refused.message.encode("ascii", "replace").decode()[:HEADER_CHARS_MAX]
    headers = {} if refused.retry_after_s is None else {RETRY_AFTER: str(refused.retry_after_s)}
    headers |= {} if refused.details is None else {DETAILS: json.dumps(refused.details)}
    await request.respond_error(refused.code, in_ascii, refused.message.encode(), headers)


def _run_concurrently(endpoint: Endpoint, role: str, running: dict[asyncio.Task[None], Tenant]) -> Endpoint:
    """Runs each request in a task: nats-py calls an endpoint for one request at a time."""

    async def handle(request: Request) -> None:
        tenant = _tenant(request)
        # With this limit, slots stay free for the next tenant.
        if sum(each == tenant for each in running.values()) >= QUERIES_MAX - len(running):
            await _refuse(request, Refused(*UNAVAILABLE[role], retry_after_s=RETRY_WAIT_S))
            return
        task = asyncio.ensure_future(endpoint(request))
        running[task] = tenant
        task.add_done_callback(running.pop)

    return handle


class _LargeReply(NamedTuple):
    subject: str
    query: bytes
    data: bytes
    sha256: str


class _PartedReplies:
    """Sends replies in parts, each to a request of its own: a reader that is slow holds one part at most.

    Keeps the last large reply for its further parts. Of several at once, each other reply is made again for each part.
    """

    def __init__(self, part_bytes: Callable[[], int]) -> None:
        self._part_bytes = part_bytes
        self._kept: _LargeReply | None = None
        self._forgetting: asyncio.TimerHandle | None = None

    async def respond(self, request: Request, handler: Handler) -> None:
        """Sends the reply of `handler`, or the part of it that the request names. Raises Refused."""
        number = (request.headers or {}).get(PART)
        if number is None:
            await request.respond(await handler(_tenant(request), request.data))
            return
        part = int(number)
        reply = self._kept
        if not part or reply is None or (reply.subject, reply.query) != (request.subject, request.data):
            data = await handler(_tenant(request), request.data)
            if len(data) > REPLY_BYTES_MAX:
                raise Refused("body_too_large", f"the stored answer is larger than {REPLY_BYTES_MAX} bytes")
            reply = _LargeReply(request.subject, request.data, data, await asyncio.to_thread(_sha256, data))
        size = self._part_bytes()
        count = max(1, -(-len(reply.data) // size))
        self._keep(reply if part + 1 < count else None)
        headers = {PARTS: str(count), REPLY_SHA256: reply.sha256}
        await request.respond(reply.data[part * size : (part + 1) * size], headers)

    def _keep(self, reply: _LargeReply | None) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._kept = reply
        self._forgetting = asyncio.get_running_loop().call_later(KEEP_REPLY_S, self._forget)

    def _forget(self) -> None:
        self._kept = self._forgetting = None


def _sha256(reply: bytes) -> str:
    return hashlib.sha256(reply).hexdigest()


def _endpoint(handler: Handler, role: str, logged: LoggedCauses, parts: _PartedReplies) -> Endpoint:
    async def respond(request: Request) -> None:
        try:
            await parts.respond(request, handler)
            logged.clear()
        except Refused as refused:
            await _refuse(request, refused)
        except nats.errors.MaxPayloadError:
            await _refuse(request, Refused("body_too_large", REPLY_TOO_LARGE))
        except TailraceError as error:
            if logged.add(str(error)):
                logger.warning("query failed", error=str(error))
            await _refuse(request, Refused(*UNAVAILABLE[role], retry_after_s=RETRY_WAIT_S))

    async def handle(request: Request) -> None:
        try:
            await respond(request)
        except nats.errors.Error as error:
            # The connection is lost, and with it the client of the query.
            logger.debug("query reply not sent", error=type(error).__name__)
        except Exception:
            # A bug in one handler must not stop the service.
            logger.exception("query handler failed")
            # ValueError: the query names no subject for a reply.
            with suppress(ValueError, nats.errors.Error):
                await _refuse(request, Refused("internal", "the query failed: the logs have the traceback"))

    return handle
