"""EventWriter: appends the events of an answer to a turn's log, one at a time, and folds them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple
from zlib import crc32

import structlog

from tailrace.generators import metrics
from tailrace.generators.backends.model_event import ModelEvent, events_lost
from tailrace.generators.delta_buffer import DeltaBuffer
from tailrace.generators.delta_ticks import DeltaTicks
from tailrace.proto import events
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Event, StoredEntry
from tailrace.proto.errors import LogFull
from tailrace.proto.fold import Folding
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.log_server import PublishUnclear

logger = structlog.get_logger()

FULL_WAIT_S = 1.0
# With `original`, an entry has the event twice, one of them as a JSON string: together below 1 MB.
ORIGINAL_CHARS_MAX = 300_000


Append = Callable[[TurnKey, Chain, Entry], Awaitable[Chain]]


class _Appending(NamedTuple):
    """An append in flight. Its times are those of `time.monotonic`, but `began_at` is in the loop's time.

    In uvloop, the loop's time counts milliseconds and stands still between two awaits, which is too coarse for metrics.
    """

    entry: Event
    event: ModelEvent
    put_at: float
    published_at: float
    began_at: float


def extend_checksum(checksum: int, event: ModelEvent) -> int:
    """Returns the CRC-32 of all events so far, of which `event` is the last and `checksum` is that of the others.

    Of a delta, only its text counts: joined deltas have the same checksum as their parts.
    """
    match event.event:
        # Most events; the comparison of types takes a quarter of the time of the patterns.
        case inner if type(inner) is events.BlockDelta and type(inner.delta) is events.TextDelta:
            return crc32(inner.delta.text.encode(), checksum)
        case events.BlockDelta(_, events.ThinkingDelta(part) | events.InputJsonDelta(part)):
            return crc32(part.encode(), checksum)
    return crc32(event.raw, checksum)


class EventWriter:
    """Appends events of one turn. At most one append is in flight; events put meanwhile wait, and deltas are joined.

    `put` publishes an event, and each acknowledgement publishes the next event. Both return at once. Everything else is
    done by the task of `run`: an append that needs a wait, or that gets no acknowledgement. The deadline of a model
    call never cancels an append.

    The writer compares the checksums of the events that were put and of those that were stored, before it publishes the
    event that completes the message, and at its end.
    """

    def __init__(self, log: TurnLog, key: TurnKey, folding: Folding, ticks: DeltaTicks) -> None:
        """Each stored event is added to `folding`. `ticks` is the same for all writers of the process."""
        self._log = log
        self._key = key
        self._folding = folding
        self._ticks = ticks
        self._loop = asyncio.get_running_loop()
        self._buffer = DeltaBuffer()
        self._appending: _Appending | None = None
        self._join_until = 0.0
        """Until when a delta waits for others, in the loop's time."""
        self._calls_at = 0.0
        """When `ticks` calls this writer, if a delta waits."""
        self._follows_delta = False
        """Whether the event that was stored last is a delta."""
        self._is_closed = False
        self._is_over = False
        self._is_unsent = False
        """Whether `run` must append the entry in flight."""
        self._failed: Exception | None = None
        """The outcome of its publish, if that was no acknowledgement; or an error that `run` raises."""
        self._changed: asyncio.Future[None] | None = None
        """What `run` waits for."""
        self._drained: asyncio.Future[None] | None = None
        self._put_checksum = self._stored_checksum = 0

    def put(self, event: ModelEvent) -> None:
        """Adds an event, and publishes it at once if no other event is in flight.

        Raises BackendError (`events_lost`) if an event that was put before is not stored.
        """
        self._put_checksum = extend_checksum(self._put_checksum, event)
        is_busy = type(event.event) is events.BlockDelta and self._ticks.count_delta(self._loop.time())
        if self._appending is None and not self._join_until and not self._is_over:
            if not is_busy or not self._follows_delta:
                self._publish(event, time.monotonic())
                return
            self._join_until = self._ticks.next_tick(self._loop.time())
        self._buffer.put(event, time.monotonic())
        if self._appending is None:
            self._append_next()

    def close(self) -> None:
        """Marks the end: no event follows."""
        self._is_closed = True
        if self._appending is None:
            self._append_next()

    async def drained(self) -> None:
        """Returns when all events that were put are stored."""
        if self._buffer.waiting or self._appending is not None:
            self._drained = self._loop.create_future()
            await self._drained

    async def run(self) -> None:
        """Returns when the writer is closed and all events are stored.

        Raises as TurnLog.append does, and BackendError (`events_lost`) if what is stored is not what was put.
        """
        try:
            while True:
                if self._is_unsent:
                    await self._append_slowly()
                elif self._failed is not None:
                    raise self._take_error()
                elif self._is_closed and self._appending is None and not self._buffer.waiting:
                    return self._require_whole(self._stored_checksum)
                else:
                    self._changed = self._loop.create_future()
                    await self._changed
        finally:
            self._is_over = True

    def _take_error(self) -> Exception:
        # The error refers to this writer, so the writer must not refer to the error (error_frames.py).
        error, self._failed = self._failed, None
        assert error is not None  # noqa: S101  # checked by the caller
        return error

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _append_next(self) -> None:
        """Publishes the next event, unless it is a delta that waits for others."""
        if self._is_over:
            return
        if not self._buffer.waiting:
            if self._is_closed:
                self._wake()
            if self._drained is not None and not self._drained.done():
                self._drained.set_result(None)
        elif not self._join_until or not self._waits_for_others():
            self._publish(*self._buffer.take())

    def _require_whole(self, checksum: int) -> None:
        """Raises BackendError unless the stored events, with this checksum, are those that were put."""
        if checksum != self._put_checksum:
            raise events_lost("were not stored as the model sent them")

    def _publish(self, event: ModelEvent, put_at: float) -> None:
        if type(event.event) is events.MessageDelta and not self._buffer.waiting:
            # It may complete the message: nothing may be missing before it.
            self._require_whole(extend_checksum(self._stored_checksum, event))
        chain = self._folding.chain
        entry = Event(
            prev=chain.last,
            attempt=chain.attempt,
            event=event.raw,
            is_hidden=event.is_hidden,
            left_out=event.left_out,
            original=event.original if 0 < len(event.original) <= ORIGINAL_CHARS_MAX else None,
            prefix=event.prefix,
        )
        self._appending = _Appending(entry, event, put_at, time.monotonic(), self._loop.time())
        if not self._log.publish_soon(self._key, entry, chain.last, self._finish):
            self._is_unsent = True
            self._wake()

    def _waits_for_others(self) -> bool:
        """Returns whether the next event is a delta that still waits. Another event, or the close, ends its wait."""
        if self._is_closed or not self._buffer.is_one_delta or self._loop.time() >= self._join_until:
            return False
        if self._calls_at != self._join_until:
            self._calls_at = self._join_until
            self._ticks.call_at(self._loop, self._join_until, self._end_wait)
        return True

    def _end_wait(self, until: float) -> None:
        """Ends the wait until `until`, in the loop's time, unless another event or the close has ended it."""
        if self._appending is not None or self._join_until != until:
            return
        # The loop may call a little before the time.
        self._join_until = 0.0
        try:
            self._append_next()
        except Exception as error:  # noqa: BLE001  # `run` raises it
            self._fail(error)

    def _finish(self, outcome: Seq | Exception) -> None:
        """Goes on after a publish; `outcome` is the entry's sequence or an error."""
        if self._is_over:
            return
        if isinstance(outcome, Exception):
            self._is_unsent, self._failed = True, outcome
            self._wake()
            return
        try:
            self._store(outcome)
            if self._buffer.waiting or self._is_closed or self._drained is not None:
                self._append_next()
        except Exception as error:  # noqa: BLE001  # `run` raises it; it must not end the connection to NATS
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Ends the writer with `error`. Until `run` wakes, nothing is published whose outcome would replace it."""
        self._is_over, self._failed = True, error
        self._wake()

    async def _append_slowly(self) -> None:
        """Appends the entry in flight in this task, and goes on with the next one."""
        assert self._appending is not None  # noqa: S101  # it is unsent
        append: Append = self._log.append
        if isinstance(self._failed, PublishUnclear):
            append = partial(self._log.append, failed=self._failed)
        self._failed, self._is_unsent = None, False
        extended = await append_when_not_full(append, self._key, self._folding.chain, self._appending.entry)
        self._store(extended.last)
        self._append_next()

    def _store(self, seq: Seq) -> None:
        """Adds the entry in flight to the fold, as stored at `seq`."""
        assert self._appending is not None  # noqa: S101
        entry, event, put_at, published_at, began_at = self._appending
        self._appending = None
        self._stored_checksum = extend_checksum(self._stored_checksum, event)
        stored_at = time.monotonic()
        metrics.APPEND_S.observe(stored_at - published_at)
        # A delta after another event does not wait.
        self._join_until = 0.0
        self._follows_delta = type(event.event) is events.BlockDelta
        if self._follows_delta:
            self._join_until = self._ticks.wait_after(
                began_at, self._loop.time(), is_waiting=bool(self._buffer.waiting)
            )
            metrics.DELTA_STORED_S.observe(stored_at - put_at)
        self._folding.add(StoredEntry(seq, datetime.now(UTC), entry), event.event)


async def write_all(log: TurnLog, key: TurnKey, folding: Folding, several: Iterable[ModelEvent]) -> None:
    """Appends events, and adds each to `folding`. Raises as TurnLog.append does."""
    writer = EventWriter(log, key, folding, DeltaTicks())
    for event in several:
        writer.put(event)
    writer.close()
    await writer.run()


async def append_when_not_full(append: Append, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
    """Appends `entry`, waiting as long as the log is full; returns the chain with it."""
    while True:
        try:
            return await append(key, chain, entry)
        except LogFull:
            # Gateways refuse new turns before the log is full, to keep a reserve for running turns. This reserve is
            # used up: an operator must act, or old turns must expire. Meanwhile the buffer joins the model's deltas.
            logger.error("the log is full; a running turn waits", turn=key.turn)  # noqa: TRY400
            await asyncio.sleep(FULL_WAIT_S)


def as_stored(chain: Chain, entry: Entry) -> StoredEntry:
    """Returns an entry just appended, for the fold, with the time of this machine's clock."""
    return StoredEntry(chain.last, datetime.now(UTC), entry)
