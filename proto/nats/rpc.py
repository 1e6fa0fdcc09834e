"""Requests between processes: queries to persistence or a generator, health, and whether anybody reads a turn."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, Service, ServiceConfig

from tailrace.proto import subjects
from tailrace.proto.errors import CODES, LogUnavailable, Refused, TailraceError
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, TurnKey

logger = structlog.get_logger()

Answer = Callable[[Tenant, bytes], Awaitable[bytes]]

# Questions that are being answered at once. Who comes after that may try again.
ANSWERS_MAX = 256
# What is said when nobody of that role answers, or whoever does is not able to.
AWAY = {
    PERSISTENCE: ("persistence_unavailable", "the history cannot be read just now: try again"),
    GENERATORS: ("generators_unavailable", "nobody can ask the model just now: try again"),
}
RETRY_WAIT_S = 2.0

ERROR_CODE = "Nats-Service-Error-Code"
ERROR = "Nats-Service-Error"
RETRY_AFTER = "Retry-After"
HEADER_CHARS_MAX = 500


class Rpc:
    """Asks and answers over core NATS. Nothing here is stored; whoever does not answer is not there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def request(
        self, tenant: Tenant, name: str, question: bytes, *, timeout_s: float, role: str = PERSISTENCE
    ) -> bytes:
        """The answer of a process of that role to the query `name`.

        Raises Refused: with the answer's code, or with the role's own when nobody answers in time; EntryTooLarge.
        """
        try:
            reply = await self._connection.request(subjects.query(tenant, name), question, timeout_s=timeout_s)
        except LogUnavailable as error:
            raise Refused(*AWAY[role], retry_after_s=RETRY_WAIT_S) from error
        headers = reply.headers or {}
        if (code := headers.get(ERROR_CODE)) is not None:
            said = reply.data.decode(errors="replace") or headers.get(ERROR, "")
            raise Refused(code if code in CODES else "internal", said, retry_after_s=_seconds(headers))
        return reply.data

    async def serve(self, role: str, version: str, answers: Mapping[str, Answer]) -> Service:
        """Serves the queries in `answers` as a NATS service (ADR-32), which `nats micro ls` shows."""
        service = await add_service(
            self._connection.client, ServiceConfig(name=role, version=version, queue_group=role)
        )
        under_way: set[asyncio.Task[None]] = set()
        for query, answer in answers.items():
            handler = _concurrent(_handler(answer, role), role, under_way)
            await service.add_endpoint(EndpointConfig(name=query, subject=subjects.every_query(query), handler=handler))
        return service

    async def serve_health(self, role: str, report: Callable[[], bytes | None]) -> None:
        """Answers everybody who asks how this process is; None is silence."""

        async def heard(message: Msg) -> None:
            if (told := report()) is not None:
                await message.respond(told)

        await self._connection.subscribe(subjects.health(role), heard)

    async def health(self, role: str, *, timeout_s: float) -> bytes | None:
        """The first report of a process of that role; None when none answers."""
        try:
            return (await self._connection.request(subjects.health(role), b"", timeout_s=timeout_s)).data
        except LogUnavailable:
            return None

    async def announce_readers(self, is_read: Callable[[TurnKey], bool]) -> None:
        """Tells other gateways, when they ask, that a turn is being read here."""

        async def heard(message: Msg) -> None:
            _, tenant, turn = message.subject.split(".")
            if is_read(TurnKey(Tenant(tenant), turn)):  # type: ignore[arg-type]
                await message.respond(b"")

        await self._connection.subscribe(subjects.EVERY_PRESENCE, heard)

    async def has_readers(self, key: TurnKey, *, timeout_s: float) -> bool:
        """Whether any gateway reads the turn; silence is a no."""
        try:
            await self._connection.request(subjects.presence(key), b"", timeout_s=timeout_s)
        except LogUnavailable:
            return False
        return True


Handler = Callable[[Request], Awaitable[None]]


def _seconds(headers: Mapping[str, str]) -> float | None:
    return float(headers[RETRY_AFTER]) if RETRY_AFTER in headers else None


async def _refuse(request: Request, refused: Refused) -> None:
    """The sentence is the body: a header is for tools, and not every character survives in one."""
    in_ascii = refused.message.encode("ascii", "replace").decode()[:HEADER_CHARS_MAX]
    again = {} if refused.retry_after_s is None else {RETRY_AFTER: str(refused.retry_after_s)}
    await request.respond_error(refused.code, in_ascii, refused.message.encode(), again)


def _concurrent(handler: Handler, role: str, under_way: set[asyncio.Task[None]]) -> Handler:
    """An endpoint hears one request at a time: a question that has to wait would keep all later ones waiting."""

    async def handle(request: Request) -> None:
        if len(under_way) >= ANSWERS_MAX:
            await _refuse(request, Refused(*AWAY[role], retry_after_s=RETRY_WAIT_S))
            return
        task = asyncio.ensure_future(handler(request))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    return handle


def _handler(answer: Answer, role: str) -> Handler:
    async def respond(request: Request) -> None:
        tenant = Tenant(request.subject.split(".")[1])
        try:
            await request.respond(await answer(tenant, request.data))
        except Refused as refused:
            await _refuse(request, refused)
        except nats.errors.MaxPayloadError:
            too_large = "the answer is larger than one message: ask for less at once"
            await _refuse(request, Refused("body_too_large", too_large))
        except TailraceError as error:
            logger.warning("query failed", error=str(error))
            await _refuse(request, Refused(*AWAY[role], retry_after_s=RETRY_WAIT_S))

    async def handle(request: Request) -> None:
        try:
            await respond(request)
        except nats.errors.Error as error:
            # The connection went away: so did whoever asked.
            logger.debug("query not answered", error=type(error).__name__)
        except Exception:
            # The edge of one question: a mistake of ours in answering it is no reason to answer no other.
            logger.exception("query broke")
            await _refuse(request, Refused("internal", "the question could not be answered"))

    return handle
