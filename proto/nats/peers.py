"""Messages by which generators watch one another over core NATS (PROTOCOL R151)."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal

import msgspec
import nats.errors

from tailrace.proto import subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable, PeerAbsent
from tailrace.proto.nats.connection import Connection

# Any user may ask it. Each nats-server answers with its name and id (`registerSystemImports` of nats-server).
SERVERS = "$SYS.REQ.ACCOUNT.PING.STATZ"
ACKS = f"$JS.ACK.{subjects.STREAM}.{subjects.GENERATORS}."


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A delivery that a generator holds: its turn, and the subject on which it is acknowledged."""

    tenant: str
    turn: str
    ack_subject: str


class Server(msgspec.Struct, frozen=True):
    """A nats-server. Its id changes with each start."""

    name: str
    id: str


class Holding(msgspec.Struct, frozen=True):
    """The leases of a generator: all, or the changes since the version in the question."""

    version: int
    server: Server | None = None
    """The nats-server that it is connected to; None if this server is about to end."""
    added: Sequence[Held] = ()
    removed: Sequence[str] = ()
    """The acknowledgement subjects of deliveries that it no longer holds."""
    is_whole: bool = False


class Notice(msgspec.Struct, frozen=True):
    """A message to all generators about the generator `name`.

    `here`: it runs. `left`: it ends, and holds nothing. `gone`: it is dead, and the generator `by` releases its leases.
    """

    kind: Literal["here", "left", "gone"]
    name: str
    by: str = ""


class _ServerReport(msgspec.Struct, frozen=True):
    server: Server


class PeerLink:
    """The questions and notices of one generator."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    async def serve(self, answer: Callable[[int], Holding], receive: Callable[[Notice], None]) -> None:
        """Answers questions with `answer(known version)`, and calls `receive` with each notice, also of this process.

        Both must return at once. Raises LogUnavailable.
        """

        def on_question(_: bytes, __: bytes, payload: bytes, reply: bytes) -> None:
            if reply and payload.isdigit():
                self._connection.client.send_bytes(reply, b"", b"", msgspec.json.encode(answer(int(payload))))

        def on_notice(_: bytes, __: bytes, payload: bytes, ___: bytes) -> None:
            receive(msgspec.json.decode(payload, type=Notice))

        await self._connection.subscribe_directly(subjects.holding(self._name), on_question)
        await self._connection.subscribe_directly(subjects.PEER_NOTICES, on_notice)

    def on_reconnected(self, call: Callable[[], None]) -> None:
        """Calls `call` after each reconnect."""
        self._connection.on_reconnected(call)

    async def notify(self, notice: Notice) -> None:
        """Sends a notice. Raises LogUnavailable, LogDenied."""
        self._connection.raise_if_denied(subjects.PEER_NOTICES)
        await self._connection.publish(subjects.PEER_NOTICES, msgspec.json.encode(notice))

    async def ask(self, name: str, known: int, *, timeout_s: float) -> Holding:
        """Returns what the generator `name` holds, or how that has changed since the version `known`.

        Raises PeerAbsent if nobody serves the question, and LogUnavailable without an answer.
        """
        try:
            reply = await self._connection.request(subjects.holding(name), b"%d" % known, timeout_s=timeout_s)
            return msgspec.json.decode(reply.data, type=Holding)
        except LogUnavailable as error:
            if isinstance(error.__cause__, nats.errors.NoRespondersError):
                raise PeerAbsent(f"the generator {name} does not answer") from error
            raise
        except DECODE_ERRORS as error:
            raise LogUnavailable(f"the answer of the generator {name} is of another version") from error

    @property
    def server(self) -> Server | None:
        """The nats-server of this process; None if the connection to it is about to end."""
        return None if self._connection.is_leaving else Server(*self._connection.client.server)

    def is_settled(self, for_s: float) -> bool:
        """Returns whether the connection is up, has been so for `for_s` seconds, and is not about to end."""
        connection = self._connection
        return connection.is_up and not connection.is_leaving and monotonic() - connection.changed_at >= for_s

    async def is_reached(self, server: Server, *, timeout_s: float) -> bool:
        """Returns whether this nats-server runs, has not been restarted, and can be reached from here."""
        if server == self.server:
            return True
        # Without `include_unused`, a server does not answer after its last client of this account has gone.
        query = msgspec.json.encode({"server_name": server.name, "exact_match": True, "include_unused": True})
        try:
            reply = await self._connection.request(SERVERS, query, timeout_s=timeout_s)
            return msgspec.json.decode(reply.data, type=_ServerReport).server == server
        except (LogUnavailable, *DECODE_ERRORS):
            return False

    async def release(self, held: Held) -> None:
        """Releases a delivery of another generator: nats-server delivers it again at once. Raises LogUnavailable."""
        if held.ack_subject.startswith(ACKS):
            await self._connection.publish(held.ack_subject, b"-NAK")
