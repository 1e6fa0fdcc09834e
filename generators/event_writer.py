"""EventWriter: appends the events of an answer to a turn's log, one at a time, and folds each."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from tailrace.generators import metrics
from tailrace.generators.delta_buffer import DeltaBuffer
from tailrace.proto import events
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Attempt, Entry, Event, StoredEntry
from tailrace.proto.errors import LogFull
from tailrace.proto.fold import Folding
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog

logger = structlog.get_logger()

FULL_WAIT_S = 1.0
# After an append that took this long, the next delta waits for others until JOIN_S after that append began. So slow
# appends, of a busy disk or process, become fewer, each with more deltas. On an idle machine an append takes 1 ms, and
# 7 ms with an fsync for each.
SLOW_APPEND_S = 0.02
JOIN_S = 0.05
# An entry has the event twice then, and once as a JSON string: together below 1 MB.
ORIGINAL_CHARS_MAX = 300_000

Append = Callable[[TurnKey, Chain, Entry], Awaitable[Chain]]


class EventWriter:
    """Appends the entries of attempts. The deadline of a model call never cancels an append."""

    def __init__(self, log: TurnLog, delta_interval_s: float) -> None:
        """`delta_interval_s` is the time after an append of a delta in which the next deltas wait for others."""
        self._log = log
        self._delta_interval_s = delta_interval_s

    async def write(self, key: TurnKey, folding: Folding, buffer: DeltaBuffer) -> None:
        """Appends the buffer's events until it is closed and empty, and adds each to `folding`.

        Raises as TurnLog.append does.
        """
        loop, join_until = asyncio.get_running_loop(), 0.0
        while (event := await buffer.next(join_until)) is not None:
            entry = Event(
                prev=folding.chain.last,
                attempt=folding.chain.attempt,
                event=event.raw,
                is_hidden=event.is_hidden,
                left_out=event.left_out,
                original=event.original if 0 < len(event.original) <= ORIGINAL_CHARS_MAX else None,
            )
            # `buffer.next` waits by the loop's clock. In uvloop, it counts milliseconds and stands still between two
            # awaits, which is too coarse for the metrics: they use `time.monotonic`.
            began, put_at, append_began_at = loop.time(), buffer.put_at, time.monotonic()
            chain = await append_when_not_full(self._log.append, key, folding.chain, entry)
            stored_at = time.monotonic()
            metrics.APPEND_S.observe(stored_at - append_began_at)
            # A delta after another event does not wait.
            join_until = 0.0
            if type(event.event) is events.BlockDelta:
                join_s = max(JOIN_S if loop.time() - began >= SLOW_APPEND_S else 0.0, self._delta_interval_s)
                join_until = began + join_s if join_s else 0.0
                metrics.DELTA_STORED_S.observe(stored_at - put_at)
            folding.add(as_stored(chain, entry), event.event)

    async def append_attempt(self, key: TurnKey, folding: Folding, attempt: Attempt) -> None:
        """Appends an `attempt` entry and adds it to `folding`. Raises as TurnLog.append does."""
        chain = await append_when_not_full(self._log.append, key, folding.chain, attempt)
        metrics.ATTEMPTS.labels(attempt.mode).inc()
        folding.add(as_stored(chain, attempt))


async def append_when_not_full(append: Append, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
    """Appends `entry`, waiting as long as the log is full; returns the chain with it."""
    while True:
        try:
            return await append(key, chain, entry)
        except LogFull:
            # Gateways refuse new turns before the log is full, to keep a reserve for running ones. This reserve is used
            # up: an operator must act, or old turns must expire. Meanwhile the buffer joins the model's deltas.
            logger.error("the log is full; a running turn waits", turn=key.turn)  # noqa: TRY400
            await asyncio.sleep(FULL_WAIT_S)


def as_stored(chain: Chain, entry: Entry) -> StoredEntry:
    """Returns an entry just appended, for the fold, with the time of this machine's clock."""
    return StoredEntry(chain.last, datetime.now(UTC), entry)
