"""Batched direct reads of a stream (JetStream Direct Batch Get): one request, many messages, a final status.

nats-py has no call for it. Request: `$JS.API.DIRECT.GET.TURNS` with `{seq, next_by_subj, batch, max_bytes}` (ADR-31 of
nats-architecture-and-design). All reads of a process share one wildcard inbox.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import msgspec
from nats.aio.subscription import Subscription

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.log_server import PAGE_MAX
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.subjects import STREAM

# A frozen follower never answers, so the request is repeated soon; the servers distribute requests over the replicas,
# so one of three goes to the frozen one. A busy server answers later. The timeout grows, so that such a server does not
# receive many requests twice.
TRY_TIMEOUTS_S = (0.25, 0.25, 0.5, 0.5, 1.0, 1.0)
RETRY_WAIT_S = 0.05
# The server answers reads one after another, also those that this client has given up: while sixty long turns were read
# at once, no read was answered in time. And it closes a connection with 64 MB of unsent replies. So a page has at most
# this many bytes (plus its last message), and at most READS_MAX reads of a DirectReader run at once, fairly by tenant.
# With 8 at once, thirty turns of 3,000 entries took 235 to 329 requests instead of 180 on a busy machine, because
# replies came after the timeout; with 4 they took 180, in less time.
PAGE_BYTES_MAX = 256 * 1024
READS_MAX = 4
# A read of a few entries counts as a quarter of a read: while the server stores many entries, each reply takes 100 ms.
FEW = 4
FEW_PER_READ = 4
SLOT_WAIT_S = 30.0
# A read of the last messages on subjects has no more results (`maxAllowedResponses` in stream.go).
LAST_MAX = 1024
# The status of a read that would have more.
TOO_MANY = b"413"


class MessagePage(NamedTuple):
    """Consecutive stored messages of a subject filter. `is_last`: no message followed when they were read."""

    messages: list[Message]
    is_last: bool
    following: int = 0
    """How many messages followed."""


class LastMessages(NamedTuple):
    """The last message on each subject, in their order in the stream, as it was at the sequence `upto`."""

    messages: list[Message]
    upto: Seq


class _Batch:
    """The replies to one request so far. Sets the event `arrived` at each."""

    def __init__(self, arrived: asyncio.Event) -> None:
        self.messages: list[Message] = []
        self.last = 0
        self.has_gap = False
        self.status: bytes | None = None
        self.pending = 0
        self.upto = BEFORE_FIRST
        self._arrived = arrived

    @property
    def is_complete(self) -> bool:
        return self.status in (b"204", b"404", TOO_MANY) and not self.has_gap

    def add(self, message: Message) -> None:
        if sequence := message.header(b"Nats-Sequence"):
            # Each message has the sequence of the one before it in the batch, which shows lost messages.
            self.has_gap |= int(message.header(b"Nats-Last-Sequence") or 0) != self.last
            self.last = int(sequence)
            self.messages.append(message)
        else:
            # The first line is `NATS/1.0 204 EOB`.
            self.status = message.header_block[9:12] or self.status
            self.pending = int(message.header(b"Nats-Num-Pending") or 0)
            self.upto = Seq(int(message.header(b"Nats-UpTo-Sequence") or 0))
        self._arrived.set()


class DirectReader:
    """Reads pages of one stream. Each request has its own inbox token."""

    def __init__(self, connection: Connection, stream: str = STREAM) -> None:
        self._connection = connection
        self._stream = stream
        self._inbox = connection.client.new_inbox()
        self._batches: dict[bytes, _Batch] = {}
        self._subscription: Subscription | None = None
        self._made = 0
        self._opening = asyncio.Lock()
        self._slots = FairSemaphore(FEW_PER_READ * READS_MAX)

    async def page(self, subject: str, first: Seq, limit: int = PAGE_MAX) -> MessagePage:
        """Returns up to `limit` messages on `subject` from sequence `first` on, or fewer if they are long.

        A lagging follower may answer: an empty page does not prove that nothing is stored. Raises LogUnavailable.
        """
        query = {"seq": first, "next_by_subj": subject, "batch": limit, "max_bytes": PAGE_BYTES_MAX}
        # In a bucket's subject, the name of the bucket stands in place of the tenant.
        batch = await self._request(query, subject.split(".", 2)[1], 1 if limit <= FEW else FEW_PER_READ)
        return MessagePage(batch.messages, batch.pending == 0, batch.pending)

    async def last(self, subjects: Sequence[str], first: Seq) -> LastMessages | None:
        """Returns the last message on each of `subjects`, which may have wildcards, if its sequence is `first` or more.

        None: the stream has more than LAST_MAX such subjects, also with earlier messages. A lagging follower may
        answer: see `upto`. Raises LogUnavailable.
        """
        query = {"seq": max(first, 1), "multi_last": subjects, "batch": LAST_MAX}
        batch = await self._request(query, "", FEW_PER_READ)
        return None if batch.status == TOO_MANY else LastMessages(batch.messages, batch.upto)

    async def _request(self, query: Mapping[str, Any], tenant: str, size: int) -> _Batch:
        """Returns the first complete reply to any of the requests, so that a late server's reply still counts."""
        if self._subscription is None:
            await self._open()
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(SLOT_WAIT_S):
                    await held.enter_async_context(self._slots.reserve(size, tenant=tenant))
            except TimeoutError as error:
                raise LogUnavailable(
                    "the log cannot be read, because too many other reads are waiting: retry"
                ) from error
            subject, encoded = f"$JS.API.DIRECT.GET.{self._stream}", msgspec.json.encode(query)
            arrived = asyncio.Event()
            tries: dict[bytes, _Batch] = {}
            try:
                for timeout_s in TRY_TIMEOUTS_S:
                    self._made += 1
                    inbox = f"{self._inbox}.{self._made}"
                    batch = tries[inbox.encode()] = self._batches[inbox.encode()] = _Batch(arrived)
                    try:
                        await self._connection.publish(subject, encoded, reply=inbox)
                        while batch.status is None:
                            async with asyncio.timeout(timeout_s):
                                await arrived.wait()
                            arrived.clear()
                            if whole := next((one for one in tries.values() if one.is_complete), None):
                                return whole
                    except TimeoutError:
                        continue
                    except LogUnavailable:
                        pass
                    await asyncio.sleep(RETRY_WAIT_S)
            finally:
                for name in tries:
                    del self._batches[name]
            raise LogUnavailable("the log cannot be read, because no server answers for the stream: retry")

    async def _open(self) -> None:
        async with self._opening:
            if self._subscription is None:
                self._subscription = await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_message)

    def _on_message(self, subject: bytes, headers: bytes, payload: bytes, _reply: bytes) -> None:
        batch = self._batches.get(subject)
        if batch is not None:
            batch.add(Message(subject, headers, payload))
