"""Leases: entries delivered by a durable pull consumer to one holder at a time. The fence decides who writes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol, Self

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg

from tailrace.proto import entries, subjects
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import LogIncomplete, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId, is_token
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.consumer_pull import Pull
from tailrace.proto.nats.stream_info import StreamInfo
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.subjects import STREAM, WEBHOOKS

logger = structlog.get_logger()

# A restarted server has forgotten the request: nothing is delivered for this long. A stop waits as long, because
# messages to a process that has stopped are lost until their leases expire.
PULL_S = 0.5
AWAY_WAIT_S = 0.25
# Renewals per `ack_wait`: two of them may be lost (PROTOCOL R18).
RENEWALS = 3
# Some leases are renewed with a request. One after the other, thousands of them would take longer than a lease lasts.
RENEWED_AT_ONCE = 64
KEPT_BYTES_MAX = 64 * 1024
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Mark = Callable[[TurnId, bytes], Any]
"""Returns what a holder must know of an entry before it takes it, from the id of its turn and the encoded entry."""


class Delivery:
    """One entry, leased to this process for `ack_wait_s`. Without renewal it is delivered to another process."""

    def __init__(self, message: Msg, ack_wait_s: float, mark: Mark | None = None) -> None:
        self._message = message
        self.ack_wait_s = ack_wait_s
        self.key, self.kind = subjects.parse(message.subject)
        self.seq = Seq(message.metadata.sequence.stream)
        self.at = stored_at(message.reply)
        """When the entry was stored, by the server's clock."""
        self.times = int(message.metadata.num_delivered or 1)
        """How many times the entry was delivered, this delivery included."""
        self.number = int(message.metadata.sequence.consumer)
        """The number of this delivery among all deliveries of the consumer, which counts them from 1 without gaps."""
        self.mark = None if mark is None else mark(self.key.turn, message.data)
        """What `mark` has returned."""
        # A larger entry, of up to 8 MiB, would stay in memory as long as the lease. It is read from the log. Webhooks
        # need no entries, and hold thousands of leases for hours while a receiver is down.
        is_needed = message.metadata.consumer != WEBHOOKS
        is_kept = is_needed and len(message.data) <= KEPT_BYTES_MAX
        self._payload = message.data if is_kept else None
        message.data = b""

    def take_entry(self) -> list[StoredEntry]:
        """Returns the entry, and frees its memory.

        An empty list if the entry was taken or dropped, is large, or is for webhooks: read it from the log.
        """
        payload, self._payload = self._payload, None
        return [] if payload is None else [StoredEntry(self.seq, self.at, entries.decode(self.kind, payload))]

    @property
    def kept_bytes(self) -> int:
        """The memory that `take_entry` or `drop_entry` would free."""
        return 0 if self._payload is None else len(self._payload)

    def drop_entry(self) -> None:
        """Frees the memory of the entry."""
        self._payload = None

    @property
    def ack_subject(self) -> str:
        """The subject of its acknowledgement, by which another process can release it (PROTOCOL R151)."""
        return self._message.reply

    async def renew(self) -> None:
        """Renews the lease. A failed renewal is only logged: the fence shows who owns the turn."""
        try:
            await self._message.in_progress()
        except nats.errors.Error as error:
            logger.debug("lease not renewed", turn=self.key.turn, error=type(error).__name__)

    async def extend(self, lease_s: float) -> None:
        """Keeps the lease for `lease_s` from now on, also longer than `ack_wait_s`. A failure is only logged.

        nats-server delivers an entry again after the delay of a negative acknowledgement. Until then, the lease can
        still be renewed, and the entry acknowledged (`processNak` in consumer.go). nats-py would refuse both.
        """
        try:
            await self._message.respond(b'-NAK {"delay": %d}' % (lease_s * 1e9))
        except nats.errors.Error as error:
            logger.debug("lease not extended", turn=self.key.turn, error=type(error).__name__)

    async def ack(self) -> None:
        """Acknowledges the entry. Only after the turn's `end` was stored or read (PROTOCOL R17).

        A failure is only logged: the entry is then delivered again.
        """
        try:
            await self._message.ack()
        except nats.errors.Error as error:
            logger.debug("not acknowledged, will be delivered again", turn=self.key.turn, error=type(error).__name__)

    async def release(self, delay_s: float = 0.0) -> None:
        """Gives up the lease: the entry is delivered again after `delay_s`.

        A failure is only logged: the lease then expires.
        """
        try:
            await self._message.nak(delay=delay_s or None)
        except nats.errors.Error as error:
            logger.debug("lease not given up, will expire", turn=self.key.turn, error=type(error).__name__)


async def _discard_invalid(delivery: Delivery) -> bool:
    """Acknowledges an entry whose subject names no valid turn. Returns whether it did.

    A compromised process may store an entry under any token, `*` included (ADR 23). Such a turn cannot be read, so the
    entry would be delivered again without end.
    """
    if is_token(delivery.key.tenant) and is_token(delivery.key.turn):
        return False
    logger.error("entry with an invalid subject", tenant=delivery.key.tenant, turn=delivery.key.turn, seq=delivery.seq)
    await delivery.ack()
    return True


def stored_at(reply: str) -> datetime:
    """Returns the time in the reply subject of a delivery, in whole microseconds, as reads of the entry return it.

    `metadata.timestamp` of nats-py is computed with floats, and may be a microsecond later.
    """
    tokens = reply.split(".")
    return EPOCH + timedelta(microseconds=int(tokens[_first_number(tokens) + 3]) // 1000)


def _first_number(tokens: Sequence[str]) -> int:
    """Returns the index of `times` in $JS.ACK.{stream}.{consumer}.{times}.{seq}.{consumer seq}.{ns}.{pending}.

    The newer form has a domain and an account after ACK (ADR-15 of nats-architecture-and-design).
    """
    return 4 if len(tokens) == 9 else 6


class Lease(Protocol):
    """A lease that expires unless it is renewed."""

    async def renew(self) -> None:
        """Renews the lease. Raises nothing if that fails."""


async def keep_renewed(held: Callable[[], Iterable[Lease]], interval_s: float) -> None:
    """Renews the leases that `held()` returns, every `interval_s` seconds until it is cancelled."""
    while True:
        await asyncio.sleep(interval_s)
        leases = tuple(held())
        for start in range(0, len(leases), RENEWED_AT_ONCE):
            await asyncio.gather(*(lease.renew() for lease in leases[start : start + RENEWED_AT_ONCE]))


class Deliveries:
    """A durable pull consumer, used by one process."""

    def __init__(
        self,
        connection: Connection,
        durable: str,
        pull: Pull,
        filters: Sequence[str],
        ack_wait_s: float,
    ) -> None:
        self._connection = connection
        self._durable = durable
        self._pull = pull
        self._filters = filters
        self.ack_wait_s = ack_wait_s
        self._reply = ""
        """The reply subject of the last message."""

    @property
    def renew_every_s(self) -> float:
        """The interval of renewals that keeps a lease."""
        return self.ack_wait_s / RENEWALS

    async def keep_renewed(self, held: Callable[[], Iterable[Delivery]]) -> None:
        """Renews the deliveries that `held()` returns until it is cancelled."""
        await keep_renewed(held, self.renew_every_s)

    @classmethod
    async def open(cls, connection: Connection, durable: str) -> Self:
        """Binds to the consumer `durable`. Raises LogIncomplete if it does not exist, LogUnavailable."""
        jetstream = connection.jetstream
        try:
            info = await jetstream.consumer_info(STREAM, durable)
        except nats.js.errors.NotFoundError as error:
            raise LogIncomplete(f"the consumer {durable!r} does not exist: run `tailrace streams`") from error
        except nats.errors.Error as error:
            raise LogUnavailable(f"the consumer {durable!r} does not answer: {type(error).__name__}") from error
        # nats-server reports a single filter in the older field `filter_subject`.
        filters = info.config.filter_subjects or [str(info.config.filter_subject)]
        pull = await Pull.open(connection, STREAM, durable)
        return cls(connection, durable, pull, filters, float(info.config.ack_wait or PULL_S))

    async def next(self, most: int = 1, mark: Mark | None = None) -> list[Delivery]:
        """Returns the available deliveries, at most `most`; without any, waits at most `PULL_S` for the first one.

        Each has the `mark` of its entry, also of a large one, whose bytes are not kept.

        Callers fetch only what they can start at once, because leases also expire while entries wait in the process. An
        empty list also means that the log is unavailable: call again.
        """
        try:
            messages = await self._pull.fetch(most, PULL_S)
        except LogUnavailable as error:
            # No connection or no leader. Nothing is lost: entries without acknowledgement are delivered again.
            logger.debug("no deliveries", durable=self._durable, why=str(error))
            await asyncio.sleep(AWAY_WAIT_S)
            return []
        if messages:
            self._reply = messages[-1].reply
        found = [Delivery(message, self.ack_wait_s, mark) for message in messages]
        return [delivery for delivery in found if not await _discard_invalid(delivery)]

    async def resume(self, seq: Seq) -> Delivery | None:
        """Returns a delivery that this process has received, extended and not kept, before it is delivered again.

        None if the log does not have the entry any more. Raises LogUnavailable.
        """
        found = await Leader(self._connection, STREAM).first(subjects.EVERY_TURN, seq)
        if found is None or found.seq != seq:
            return None
        delivery = Delivery(Msg(self._connection.client, found.subject, self._reply_of(seq)), self.ack_wait_s)
        delivery.at = found.time
        return delivery

    async def release(self, seqs: Iterable[Seq]) -> None:
        """Gives up leases that this process has extended: the entries are delivered again at once, in this order.

        A failure is only logged: the other leases then expire.
        """
        try:
            for seq in seqs:
                await self._connection.publish(self._reply_of(seq), b"-NAK")
        except LogUnavailable as error:
            logger.debug("leases not given up, will expire", durable=self._durable, why=str(error))

    def _reply_of(self, seq: Seq) -> str:
        """Returns a reply subject for a delivery of the entry.

        Two deliveries of an entry have different numbers in it, which nats-server does not compare (`processAckMsg` and
        `processNak` in consumer.go).
        """
        tokens = self._reply.split(".")
        tokens[_first_number(tokens) + 1] = str(seq)
        return ".".join(tokens)

    async def backlog(self) -> "Backlog":
        """Returns the consumer's backlog. Raises LogUnavailable."""
        return await consumer_backlog(self._connection, self._durable)

    async def progress(self) -> "Progress":
        """Returns how far the entries of this consumer are delivered and acknowledged. Raises LogUnavailable.

        The server's count of pending entries lags: of 3,000 entries, two were not counted yet right after they were
        stored (with three replicas, 43 of 1,500). So the stream's leader is asked for entries after the last delivered
        one.
        """
        last = await self.last_seq()
        backlog = await self.backlog()
        reached = max(last, backlog.delivered)
        if backlog.delivered < last:
            later = await asyncio.gather(*(self._next_after(backlog.delivered, subject) for subject in self._filters))
            reached = min((Seq(seq - 1) for seq in later if seq != BEFORE_FIRST), default=reached)
        return Progress(last, reached, backlog.delivered, backlog.number, backlog.floor, backlog.leased)

    async def is_drained(self) -> bool:
        """Returns whether every stored entry of this consumer is acknowledged. Raises LogUnavailable."""
        progress = await self.progress()
        return not progress.leased and progress.has_acknowledged(progress.last)

    async def can_continue_after(self, read_recorded_upto: Callable[[], Awaitable[Seq]]) -> bool:
        """Returns whether the next deliveries continue a database that has recorded the log up to a sequence.

        False if the database lacks an entry that is acknowledged and that the stream still has, or if the stream never
        reached that sequence: the database was restored from a backup. The sequence is read after the acknowledgements,
        because another process may be recording, and records before it acknowledges. Raises LogUnavailable.
        """
        floor = (await self.backlog()).floor
        seq = await read_recorded_upto()
        later = await asyncio.gather(*(self._next_after(seq, subject) for subject in self._filters))
        return await self.last_seq() >= seq and not any(BEFORE_FIRST < one <= floor for one in later)

    async def first_seq(self) -> Seq:
        """Returns the stream's first sequence, or its next sequence if it is empty. Raises LogUnavailable."""
        return (await self.stream_info()).state.first_seq

    async def stream_info(self) -> StreamInfo:
        """Returns the state of the stream, from its leader. Raises LogUnavailable."""
        return await self._connection.stream_info(STREAM)

    async def last_seq(self) -> Seq:
        """Returns the stream's last sequence from its leader, so that no acknowledged entry is after it.

        Raises LogUnavailable.
        """
        return (await self.stream_info()).state.last_seq

    async def reset(self) -> None:
        """Makes the server deliver all entries again, from the oldest one in the log. Raises LogUnavailable.

        Resets the consumer (ADR-60 of nats-architecture-and-design) and does not create it anew: it must always exist.
        """
        try:
            await self._connection.jetstream.reset_consumer(STREAM, self._durable, seq=1)
        except nats.errors.Error as error:
            raise LogUnavailable(f"the consumer {self._durable!r} cannot be reset: {error}") from error

    async def _next_after(self, seq: Seq, subject: str) -> Seq:
        """Returns the sequence of the entry after `seq` from the stream's leader, or BEFORE_FIRST if there is none."""
        found = await Leader(self._connection, STREAM).first(subject, seq + 1)
        return BEFORE_FIRST if found is None else found.seq


class Backlog(NamedTuple):
    """The entries that a consumer has not acknowledged."""

    waiting: int
    """Not delivered yet."""
    leased: int
    """Delivered, not acknowledged."""
    delivered: Seq
    """The last delivered entry."""
    floor: Seq
    """All entries up to this sequence are acknowledged. Entries of other kinds do not move it."""
    number: int = 0
    """How many deliveries there were: the number of the last one."""


class Progress(NamedTuple):
    """How far the entries of a consumer are delivered and acknowledged."""

    last: Seq
    """The last entry of the log, of any kind, when this was read."""
    reached: Seq
    """All entries up to this sequence are delivered."""
    delivered: Seq
    """The last delivered entry."""
    number: int
    """The number of the last delivery."""
    floor: Seq
    """All entries up to this sequence are acknowledged. Entries of other kinds do not move it."""
    leased: int
    """How many entries are delivered, and not acknowledged."""

    def has_acknowledged(self, upto: Seq) -> bool:
        """Returns whether all entries up to `upto` are acknowledged."""
        return self.floor >= upto or (self.reached >= upto and not self.leased)


async def consumer_backlog(connection: Connection, durable: str) -> Backlog:
    """Returns the backlog of a consumer. Raises LogUnavailable."""
    try:
        info = await connection.jetstream.consumer_info(STREAM, durable)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the consumer {durable!r} does not answer: {type(error).__name__}") from error
    floor = info.ack_floor.stream_seq if info.ack_floor else 0
    delivered = info.delivered.stream_seq if info.delivered else 0
    number = info.delivered.consumer_seq if info.delivered else 0
    return Backlog(info.num_pending or 0, info.num_ack_pending or 0, Seq(delivered), Seq(floor), number)


async def oldest_request_at(connection: Connection, after: Seq) -> datetime | None:
    """Returns when the first request after the sequence `after` was stored; None without any. Raises LogUnavailable."""
    found = await Leader(connection, STREAM).first(subjects.EVERY_REQUEST, after + 1)
    return None if found is None else found.time
