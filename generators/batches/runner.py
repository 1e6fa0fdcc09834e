"""Carries one batch to its end: has each of its inputs asked, as a turn of its own, and appends how far it has come.

It calls no model and holds no list of what was asked: a turn's id is made of the batch's and its number, and its
request is appended expecting nothing before it. Whoever takes a batch over goes through all of it again, and what was
asked is found asked (PROTOCOL R63). What Anthropic's Message Batches are to answer is handed to submissions.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from tailrace.generators import metrics
from tailrace.generators.attempt import appended, stored
from tailrace.generators.backends.message_batches_api import MessageBatches
from tailrace.generators.batches.message_batches import MessageBatchSubmitter
from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto import batch
from tailrace.proto.blobs import Blob
from tailrace.proto.chain import START, Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Batch, End, Entry, Failure, Outcome, Progress
from tailrace.proto.errors import BackendError, BlobUnknown, EntryTooLarge, FenceLost, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.nats import BlobStore, Counters, Tombstones, TurnLog
from tailrace.proto.nats.settlement import give_back
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

BACKEND = "batch"
NO_MESSAGE_BATCHES = "message batches want the backend `claude`, which this generator does not have"
# The log keeps its turns for a day: what was asked last still has hours to end in it, and to be read.
LIFE = timedelta(hours=20)
# A batch waits before gateways refuse what people ask (TAILRACE_FULL_AT).
FULL_AT = 0.8
FULL_WAIT_S = 1.0
# An end that nobody heard of is found this much later.
LOOK_AGAIN_S = 5.0
STALE_WAIT_S = 0.02
STOPPED_AT_ONCE = 16


class BatchRunner:
    """`places`: how many turns all the batches of this process have in the queue at once, so that others are let by."""

    def __init__(
        self,
        log: TurnLog,
        bodies: BlobStore,
        tombstones: Tombstones,
        counters: Counters,
        fullness: Callable[[], Awaitable[float]],
        *,
        name: str,
        places: int,
        message_batches: MessageBatches | None = None,
        blobs: BlobLoader | None = None,
    ) -> None:
        self._log = log
        self._bodies = bodies
        self._tombstones = tombstones
        self._counters = counters
        self._fullness = fullness
        self._submissions: MessageBatchSubmitter | None = None
        if message_batches is not None and blobs is not None:
            self._submissions = MessageBatchSubmitter(log, tombstones, blobs, message_batches, self._room)
        self._name = name
        self._places = asyncio.Semaphore(places)

    async def carry(self, key: TurnKey) -> Turn:
        """Works on a batch until its log holds an `end`, and all that it has asked is ended, too; its fold with it.

        Raises FenceLost when another has it, LogUnavailable, TurnUnknown.
        """
        turn = await self._log.turn(key)
        assert turn.request is not None  # noqa: S101  # a fold from the log has one, or TurnUnknown was raised
        asked = turn.request.batch
        assert asked is not None  # noqa: S101  # the delivery said so
        try:
            lines = batch.split_inputs(await self._bodies.read(key.tenant, Blob(asked.sha256, asked.bytes)))
        except BlobUnknown:
            failure = Failure("blob_expired", "the inputs of the batch have expired")
            return turn if turn.end is not None else await self._end(key, turn, "failed", failure)
        tally = BatchTally(turn.progress, len(lines), was_begun=turn.attempt > 0)
        if turn.end is None:
            try:
                turn = await self._run(key, turn, asked, lines, tally)
            except FenceLost:
                # Cancelled, or taken over. Who reads it too early is given the batch once more.
                turn = await self._log.turn(key, turn)
                await self._leave(key, turn, tally)
                if turn.end is None:
                    raise
        if turn.outcome != "completed":
            is_told = True
            if is_handed_on(turn) and self._submissions is not None:
                is_told = await self._submissions.stop(key, turn, lines, tally)
            await self._stop(key, lines, is_told=is_told)
        return turn

    async def _leave(self, key: TurnKey, turn: Turn, tally: "BatchTally") -> None:
        """Cancels a message batch that nobody reads: the batch's new holder has another, or it was deleted."""
        mine = tally.message_batch
        if self._submissions is None or mine is None:
            return
        named = turn.progress.message_batch if turn.progress is not None else None
        if named not in (None, mine) or (turn.end is None and not await self._log.is_known(key)):
            with suppress(BackendError):
                await self._submissions.cancel(mine)

    async def _run(self, key: TurnKey, turn: Turn, asked: Batch, lines: Sequence[bytes], tally: "BatchTally") -> Turn:
        assert turn.asked_at is not None  # noqa: S101
        taken = Attempt(
            prev=turn.chain.last, attempt=turn.attempt + 1, generator=self._name, backend=BACKEND, mode="fresh"
        )
        chain = await appended(self._log.append, key, turn.chain, taken)
        logger.info("batch", turn=key.turn, of=len(lines), attempt=taken.attempt)
        numbers = iter(range(len(lines)))
        left = turn.asked_at + LIFE - datetime.now(UTC)
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())), asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(key))
                telling = group.create_task(self._tell(key, chain, tally))
                if is_handed_on(turn):
                    group.create_task(self._hand_on(key, turn, taken.attempt, lines, tally))
                else:
                    for _ in range(asked.parallel):
                        group.create_task(self._ask(key, numbers, lines, tally, is_first=taken.attempt == 1))
                chain = await telling
                watching.cancel()
        except TimeoutError:
            failure = Failure("deadline_exceeded", "the batch was not finished in time")
            return await self._end(key, await self._log.turn(key, turn), "failed", failure)
        except ExceptionGroup as several:
            # The watcher and the writer fail for one reason: the batch is not ours any more.
            first = several.exceptions[0]
            if not isinstance(first, BackendError):
                raise first from several
            failure = Failure(first.code, first.message, first.retry_after_s)
            return await self._end(key, await self._log.turn(key, turn), "failed", failure)
        return await self._end(key, msgspec.structs.replace(turn, chain=chain), "completed")

    async def _ask(
        self, key: TurnKey, numbers: Iterator[int], lines: Sequence[bytes], tally: "BatchTally", *, is_first: bool
    ) -> None:
        """One of the `parallel`: asks the next input once the one before it has ended."""
        for number in numbers:
            async with self._places:
                await self._room()
                child = batch.child_key(key, number)
                # What was deleted meanwhile does not come back.
                is_gone = not is_first and await self._tombstones.exists(child)
                tally.add(None if is_gone else await self._answered(key, child, lines[number]))

    async def _hand_on(
        self, key: TurnKey, turn: Turn, attempt: int, lines: Sequence[bytes], tally: "BatchTally"
    ) -> None:
        if self._submissions is None:
            raise BackendError("backend_refused_request", NO_MESSAGE_BATCHES)
        await self._submissions.answer(key, turn, attempt, lines, tally)

    async def _room(self) -> None:
        """Returns once the log takes more."""
        while await self._fullness() >= FULL_AT:  # noqa: ASYNC110  # NATS has no event for it
            await asyncio.sleep(FULL_WAIT_S)

    async def _answered(self, key: TurnKey, child: TurnKey, line: bytes) -> End | None:
        """The end of one input's turn, which is asked if it was not; None when there is none, for it was deleted."""
        # Before it is asked: an end that comes at once is heard.
        hearing = asyncio.create_task(self._log.until_ended(child))
        await asyncio.sleep(0)
        try:
            await self._append(key, child, line)
            turn = EMPTY_TURN
            while True:
                turn = await self._log.turn(child, turn)
                if turn.end is not None:
                    return turn.end
                if hearing.done():
                    hearing.result()
                    await asyncio.sleep(STALE_WAIT_S)
                elif not (await asyncio.wait({hearing}, timeout=LOOK_AGAIN_S))[0]:
                    await self._require_known(child)
        except (TurnUnknown, EntryTooLarge) as error:
            logger.warning("a turn of a batch is gone", turn=child.turn, error=str(error))
            return None
        finally:
            hearing.cancel()

    async def _append(self, key: TurnKey, child: TurnKey, line: bytes) -> None:
        # Lost: by this process or another, before. It is the same turn.
        with suppress(FenceLost):
            await appended(self._to_its_end, child, START, batch.child_request(key, line))

    async def _to_its_end(self, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        """Appends. What is given up meanwhile may be stored, and who stops the batch is to find it."""
        appending = asyncio.create_task(self._log.append(key, chain, entry))
        try:
            return await asyncio.shield(appending)
        except asyncio.CancelledError:
            await asyncio.wait({appending})
            raise

    async def _require_known(self, child: TurnKey) -> None:
        if not await self._log.is_known(child):
            raise TurnUnknown(f"the log has no turn {child.turn}")

    async def _tell(self, key: TurnKey, chain: Chain, tally: "BatchTally") -> Chain:
        """Appends how far the batch has come until all have ended; what ends meanwhile is joined in the next."""
        while not tally.is_whole:
            await tally.changed.wait()
            tally.changed.clear()
            if (progress := tally.news(chain)) is not None:
                chain = await appended(self._log.append, key, chain, progress)
        return chain

    async def _watch(self, key: TurnKey) -> None:
        await self._log.until_ended(key)
        raise FenceLost(f"{key.turn} was ended by somebody else")

    async def _end(self, key: TurnKey, turn: Turn, outcome: Outcome, error: Failure | None = None) -> Turn:
        end = build_end(turn, outcome, error)
        chain = await appended(self._log.append, key, turn.chain, end)
        metrics.ENDS.labels(outcome).inc()
        return fold([stored(chain, turn, end)], turn)

    async def _stop(self, key: TurnKey, lines: Sequence[bytes], *, is_told: bool) -> None:
        """Cancels what runs of a batch that has ended, and gives back what was held for what was never asked.

        That stays held unless `is_told`, when the log has all that was answered: it may be paid for.
        """
        for first in range(0, len(lines), STOPPED_AT_ONCE):
            numbers = range(first, min(first + STOPPED_AT_ONCE, len(lines)))
            await asyncio.gather(*(self._stop_one(batch.child_key(key, n), lines[n], is_told=is_told) for n in numbers))

    async def _stop_one(self, child: TurnKey, line: bytes, *, is_told: bool) -> None:
        """One that runs is cancelled, and settles its own."""
        try:
            turn = await self._log.turn(child)
            while turn.end is None:
                with suppress(FenceLost):
                    await self._log.append(child, turn.chain, build_end(turn, "cancelled"))
                turn = await self._log.turn(child, turn)
        except TurnUnknown:
            if is_told:
                await give_back(self._tombstones, self._counters, child, line)


def is_handed_on(turn: Turn) -> bool:
    """Whether Anthropic's Message Batches answer the batch."""
    return turn.request is not None and turn.request.via == "message_batches"


class BatchTally:
    """How many of a batch's turns have ended, counted anew by each who takes it over; told only when it is more.

    And under which id Anthropic's Message Batches have it, if they do.
    """

    def __init__(self, told: Progress | None, of: int, *, was_begun: bool = False) -> None:
        """`was_begun`: whether somebody has carried it before."""
        self._told = told.done + told.failed if told else 0
        self._told_id = self.message_batch = told.message_batch if told else None
        self.is_unclear = was_begun and self.message_batch is None
        self._of = of
        self._done = self._failed = self._cost_nano_usd = 0
        self.changed = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        return self._told == self._of == self._done + self._failed

    def add(self, end: End | None) -> None:
        is_done = end is not None and end.outcome == "completed"
        self._done += is_done
        self._failed += not is_done
        self._cost_nano_usd += end.cost_nano_usd if end is not None else 0
        self.changed.set()

    def submitted(self, message_batch: str) -> None:
        self.message_batch, self.is_unclear = message_batch, False
        self.changed.set()

    def news(self, chain: Chain) -> Progress | None:
        """The entry that follows `chain`, if there is more to tell than was told."""
        if self._done + self._failed <= self._told and self.message_batch == self._told_id:
            return None
        self._told, self._told_id = self._done + self._failed, self.message_batch
        return Progress(
            prev=chain.last,
            attempt=chain.attempt,
            done=self._done,
            failed=self._failed,
            of=self._of,
            cost_nano_usd=self._cost_nano_usd,
            message_batch=self.message_batch,
        )
