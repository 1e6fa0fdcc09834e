"""Batched direct reads of a stream: one request, one message an entry, one status that ends them.

nats-py has no call for it. All reads of a process share one wildcard inbox. `$JS.API.DIRECT.GET.TURNS` with
`{seq, next_by_subj, batch, max_bytes}`: ADR-31 of nats-architecture-and-design, "JetStream Direct Batch Get".
"""

import asyncio
from contextlib import AsyncExitStack
from typing import NamedTuple

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.step import BATCH
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.subjects import STREAM, tenant_of

# A frozen follower never answers, and another one would have: ask again soon. Whichever server we are connected to may
# pass a try on to that one: of three, a third of the tries go there. A busy one answers later.
TRY_TIMEOUTS_S = (*6 * (0.25,), 1.0, 1.0)
RETRY_WAIT_S = 0.05
# The server answers one read after another, and what was given up here, too. Of sixty long turns that were asked for at
# once none came in time, and nobody else's; and behind whom 64 MB wait, the connection is closed. So a page has no
# more bytes than this, but for its last message, and so many are under way at once, of all tenants in turn.
PAGE_BYTES_MAX = 256 * 1024
READS_MAX = 8
SLOT_WAIT_S = 30.0


class Page(NamedTuple):
    """Consecutive messages of one subject filter, as the server stored them; `is_last`: none followed when read."""

    messages: list[Msg]
    is_last: bool


def stored_subject(message: Msg) -> str:
    """The subject that a message read or republished was stored on, as the server says; "": it comes from no stream."""
    return (message.headers or {}).get("Nats-Subject", "")


def is_stored_below(message: Msg, entries: str) -> bool:
    """Whether it was stored on one of the subjects `entries`, which ends in `>`.

    Where the log republishes, whatever somebody asks of NATS can be answered, too, if he says so: that has another one.
    """
    return stored_subject(message).startswith(entries[:-1])


class _Batch:
    """The answers to one try of a read, as they come in; each is said to `heard`."""

    def __init__(self, heard: asyncio.Event) -> None:
        self.messages: list[Msg] = []
        self.last = 0
        self.has_hole = False
        self.status: str | None = None
        self.pending = 0
        self._heard = heard

    @property
    def is_whole(self) -> bool:
        return self.status in ("204", "404") and not self.has_hole

    def add(self, message: Msg) -> None:
        headers = message.headers or {}
        if (status := headers.get("Status")) is not None:
            self.status = status
            self.pending = int(headers.get("Nats-Num-Pending", "0"))
        else:
            # Each message names the one before it in its batch: what the inbox lost is seen here.
            self.has_hole |= int(headers.get("Nats-Last-Sequence", "0")) != self.last
            self.last = int(headers["Nats-Sequence"])
            self.messages.append(message)
        self._heard.set()


class DirectReader:
    """Reads under way, each try with an inbox token of its own."""

    def __init__(self, connection: Connection, stream: str = STREAM) -> None:
        self._connection = connection
        self._stream = stream
        self._inbox = connection.client.new_inbox()
        self._batches: dict[str, _Batch] = {}
        self._subscription: Subscription | None = None
        self._made = 0
        self._opening = asyncio.Lock()
        self._places = FairSemaphore(READS_MAX)

    async def page(self, subject: str, first: Seq, batch: int = BATCH) -> Page:
        """Up to `batch` messages on `subject` from sequence `first` on, or fewer long ones; raises LogUnavailable.

        A follower may answer, and may be behind: an empty page means "nothing seen", not "nothing there".
        """
        await self._open()
        query = msgspec.json.encode(
            {"seq": first, "next_by_subj": subject, "batch": batch, "max_bytes": PAGE_BYTES_MAX}
        )
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(SLOT_WAIT_S):
                    await held.enter_async_context(self._places.slot(tenant_of(subject)))
            except TimeoutError as error:
                raise LogUnavailable("the log cannot be read: too many others read it") from error
            answers = await self._answered(query)
            return Page(answers.messages, is_last=answers.pending == 0)

    async def _answered(self, query: bytes) -> _Batch:
        """The first whole answer to any of the tries: a server that is only late is not asked in vain each time."""
        heard = asyncio.Event()
        tries: dict[str, _Batch] = {}
        try:
            for timeout_s in TRY_TIMEOUTS_S:
                self._made += 1
                token = str(self._made)
                tries[token] = self._batches[token] = _Batch(heard)
                try:
                    await self._connection.publish(
                        f"$JS.API.DIRECT.GET.{self._stream}", query, reply=f"{self._inbox}.{token}"
                    )
                    while tries[token].status is None:
                        async with asyncio.timeout(timeout_s):
                            await heard.wait()
                        heard.clear()
                        if whole := next((batch for batch in tries.values() if batch.is_whole), None):
                            return whole
                except TimeoutError:
                    continue
                except LogUnavailable:
                    pass
                await asyncio.sleep(RETRY_WAIT_S)
        finally:
            for token in tries:
                del self._batches[token]
        raise LogUnavailable("the log cannot be read: no server answers for the stream")

    async def _open(self) -> None:
        async with self._opening:
            if self._subscription is None:
                self._subscription = await self._connection.subscribe(f"{self._inbox}.*", self._heard)

    async def _heard(self, message: Msg) -> None:
        batch = self._batches.get(message.subject.rpartition(".")[2])
        if batch is not None:
            batch.add(message)
