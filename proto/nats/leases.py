"""Entries handed out by a durable consumer, one holder at a time: a lease. The log decides who writes."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Self

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import StreamState

from tailrace.proto import subjects
from tailrace.proto.batch import is_batch
from tailrace.proto.errors import LogMisconfigured, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.connection import Connection, raise_if_cancelled
from tailrace.proto.subjects import STREAM, TurnKey

logger = structlog.get_logger()

# A server that restarted has forgotten the pull: this is for how long nothing would be delivered. And it is what a stop
# waits for: a fetch that is broken off loses what was just being handed out, until its lease has run out.
PULL_S = 0.5
AWAY_WAIT_S = 0.25
# In each `ack_wait`: two renewals may be lost (PROTOCOL R18).
RENEWALS = 3


class Delivery:
    """One entry, leased to this process for `ack_wait_s`. Who does nothing with it lets another have it."""

    def __init__(self, message: Msg, ack_wait_s: float) -> None:
        self._message = message
        self.ack_wait_s = ack_wait_s
        self.key, self.kind = subjects.parse(message.subject)
        self.lease = message.reply
        """Where it is renewed and acknowledged: whoever knows that may do so, too."""
        self.seq = Seq(message.metadata.sequence.stream)
        self.times = int(message.metadata.num_delivered or 1)

    @property
    def is_batch(self) -> bool:
        """Whether it is a request whose turn has others asked (PROTOCOL R63)."""
        return is_batch(self._message.data)

    async def renew(self) -> None:
        """Renews the lease. A renewal that fails is not an error: the log will tell who holds the turn."""
        try:
            await self._message.in_progress()
        except nats.errors.Error as error:
            logger.debug("lease not renewed", turn=self.key.turn, error=type(error).__name__)

    async def ack(self) -> None:
        """Acknowledges. Only after the turn's `end` was stored or read: see PROTOCOL R17."""
        try:
            await self._message.ack()
        except nats.errors.Error as error:
            logger.debug("not acknowledged, comes again", turn=self.key.turn, error=type(error).__name__)

    async def release(self, delay_s: float = 0.0) -> None:
        """Lets another have it, after `delay_s`."""
        try:
            await self._message.nak(delay=delay_s or None)
        except nats.errors.Error as error:
            logger.debug("not given back, comes again", turn=self.key.turn, error=type(error).__name__)


class Deliveries:
    """A durable consumer's deliveries, for one process of that role."""

    def __init__(
        self,
        client: Client,
        jetstream: JetStreamContext,
        durable: str,
        pull: JetStreamContext.PullSubscription,
        filters: Sequence[str],
        ack_wait_s: float,
    ) -> None:
        self._client = client
        self._jetstream = jetstream
        self._durable = durable
        self._pull = pull
        self._filters = filters
        self.ack_wait_s = ack_wait_s

    @property
    def renew_every_s(self) -> float:
        """How often a lease is renewed that is to be kept."""
        return self.ack_wait_s / RENEWALS

    @classmethod
    async def open(cls, connection: Connection, durable: str) -> Self:
        """Raises LogMisconfigured when there is no such consumer, LogUnavailable."""
        jetstream = connection.jetstream
        try:
            info = await jetstream.consumer_info(STREAM, durable)
            pull = await jetstream.pull_subscribe_bind(consumer=durable, stream=STREAM)
        except nats.js.errors.NotFoundError as error:
            raise LogMisconfigured(f"the consumer {durable!r} is not there: run `tailrace streams`") from error
        except nats.errors.Error as error:
            raise LogUnavailable(f"the consumer {durable!r} does not answer: {type(error).__name__}") from error
        # A consumer with one filter comes back with the older, singular setting.
        filters = info.config.filter_subjects or [str(info.config.filter_subject)]
        return cls(connection.client, jetstream, durable, pull, filters, float(info.config.ack_wait or PULL_S))

    async def next(self, most: int = 1) -> list[Delivery]:
        """What is there, at most `most`; waits at most `PULL_S` for the first. Empty when nothing came.

        Ask for no more than can be begun at once: what waits in a process waits for its lease to run out, too.
        """
        try:
            messages = await self._pull.fetch(batch=most, timeout=PULL_S)
        except (nats.errors.TimeoutError, TimeoutError):
            return []
        except nats.errors.Error as error:
            # Away, or without a leader. Nothing is lost: what is not acknowledged comes again.
            logger.debug("no deliveries", durable=self._durable, error=type(error).__name__)
            await asyncio.sleep(AWAY_WAIT_S)
            return []
        finally:
            raise_if_cancelled()
        return [Delivery(message, self.ack_wait_s) for message in messages]

    def from_lease(self, key: TurnKey, lease: str) -> Delivery:
        """The delivery of a turn's request that another process has told us the lease of: both hold it.

        Raises LogUnavailable when that is no lease of this consumer's.
        """
        message = Msg(self._client, subject=subjects.entry(key, "request"), reply=lease)
        try:
            given = message.metadata
        except nats.errors.Error as error:
            raise LogUnavailable(f"{lease!r} is no lease") from error
        if (given.stream, given.consumer) != (STREAM, self._durable):
            raise LogUnavailable(f"{lease!r} is no lease of {self._durable}")
        return Delivery(message, self.ack_wait_s)

    async def backlog(self) -> "Backlog":
        """How far the consumer is behind; raises LogUnavailable."""
        return await _backlog(self._jetstream, self._durable)

    async def is_drained(self) -> bool:
        """Whether every entry of this consumer that anybody was told is stored is acknowledged. Raises LogUnavailable.

        The server's count of what waits follows the store by a moment: of 3,000 entries, asked for right after their
        own acknowledgement, two were not counted yet (with three copies, 43 of 1,500). So the stream's leader is asked
        for one after the last delivered.
        """
        backlog = await self.backlog()
        if backlog.waiting or backlog.leased:
            return False
        later = await asyncio.gather(*(self._next_after(backlog.delivered, subject) for subject in self._filters))
        return not any(later)

    async def may_have_ended_at(self, seq: Seq) -> bool:
        """Whether the entry at `seq` can be the last that this consumer has acknowledged. Raises LogUnavailable.

        No, when a later one is acknowledged that the stream still has, or the stream has never come so far.
        """
        floor = (await self.backlog()).floor
        later = await asyncio.gather(*(self._next_after(seq, subject) for subject in self._filters))
        return await self.last() >= seq and not any(BEFORE_FIRST < one <= floor for one in later)

    async def first(self) -> Seq:
        """The first sequence that the stream still has; the next one when it is empty. Raises LogUnavailable."""
        return Seq((await self._state()).first_seq)

    async def last(self) -> Seq:
        """The last sequence of the stream, from its leader: what anybody has been told is stored is not after it.

        Raises LogUnavailable.
        """
        return Seq((await self._state()).last_seq)

    async def reset(self) -> None:
        """Has everything delivered again, from the oldest entry that the log still has. Raises LogUnavailable.

        A reset (ADR-60), not a new consumer: between deleting and creating there would be none.
        """
        try:
            await self._jetstream.reset_consumer(STREAM, self._durable, seq=1)
        except nats.errors.Error as error:
            raise LogUnavailable(f"the consumer {self._durable!r} cannot begin again: {error}") from error

    async def _state(self) -> StreamState:
        try:
            return (await self._jetstream.stream_info(STREAM)).state
        except nats.errors.Error as error:
            raise LogUnavailable(f"the stream does not answer: {type(error).__name__}") from error

    async def _next_after(self, seq: Seq, subject: str) -> Seq:
        """The next entry after `seq`, by the stream's leader; BEFORE_FIRST: there is none."""
        try:
            message = await self._jetstream.get_msg(STREAM, seq=seq + 1, subject=subject, next=True)
        except nats.js.errors.NotFoundError:
            return BEFORE_FIRST
        except nats.errors.Error as error:
            raise LogUnavailable(f"the stream does not answer: {type(error).__name__}") from error
        return Seq(message.seq or BEFORE_FIRST)


class Backlog(NamedTuple):
    """What a consumer has not finished."""

    waiting: int
    """Not delivered yet."""
    leased: int
    """Delivered and not acknowledged."""
    delivered: Seq
    """The last entry that was handed out."""
    floor: Seq
    """All up to this sequence of the stream is acknowledged. It does not move over entries of other kinds."""


async def consumer_backlog(connection: Connection, durable: str) -> Backlog:
    """How far a consumer is behind, for who takes nothing from it; raises LogUnavailable."""
    return await _backlog(connection.jetstream, durable)


async def _backlog(jetstream: JetStreamContext, durable: str) -> Backlog:
    try:
        info = await jetstream.consumer_info(STREAM, durable)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the consumer {durable!r} does not answer: {type(error).__name__}") from error
    finally:
        raise_if_cancelled()
    floor = info.ack_floor.stream_seq if info.ack_floor else 0
    delivered = info.delivered.stream_seq if info.delivered else 0
    return Backlog(info.num_pending or 0, info.num_ack_pending or 0, Seq(delivered), Seq(floor))
