"""Carries one batch to its end: has each of its inputs asked, as a turn of its own, and appends how far it has come.

It calls no model and holds no list of what was asked: a turn's id is made of the batch's and its number, and its
request is appended expecting nothing before it. Whoever takes a batch over goes through all of it again, and what was
asked is found asked (PROTOCOL R63).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from generators import metrics
from generators.attempt import appended, stored
from proto import batch
from proto.blobs import Blob
from proto.chain import START, Chain
from proto.ending import ending
from proto.entries import Attempt, Batch, End, Failure, Hold, Outcome, Progress
from proto.errors import BlobUnknown, EntryTooLarge, FenceLost, TurnUnknown
from proto.fold import NOBODY, Turn, fold
from proto.log import Bodies, Counters, Tombstones, TurnLog
from proto.subjects import TurnKey

logger = structlog.get_logger()

BACKEND = "batch"
# The log keeps its turns for a day: what was asked last still has hours to end in it, and to be read.
LIFE = timedelta(hours=20)
# A batch waits before gateways refuse what people ask (TAILRACE_FULL_AT).
FULL_AT = 0.8
FULL_WAIT_S = 1.0
# An end that nobody heard of is found this much later.
LOOK_AGAIN_S = 5.0
STALE_WAIT_S = 0.02
STOPPED_AT_ONCE = 16


class Batches:
    """`places`: how many turns all the batches of this process have in the queue at once, so that others are let by."""

    def __init__(
        self,
        log: TurnLog,
        bodies: Bodies,
        tombstones: Tombstones,
        counters: Counters,
        fullness: Callable[[], Awaitable[float]],
        *,
        name: str,
        places: int,
    ) -> None:
        self._log = log
        self._bodies = bodies
        self._tombstones = tombstones
        self._counters = counters
        self._fullness = fullness
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
            lines = batch.lines(await self._bodies.read(key.tenant, Blob(asked.sha256, asked.bytes)))
        except BlobUnknown:
            failure = Failure("blob_expired", "the inputs of the batch have expired")
            return turn if turn.end is not None else await self._end(key, turn, "failed", failure)
        if turn.end is None:
            try:
                turn = await self._run(key, turn, asked, lines)
            except FenceLost:
                # Cancelled, or taken over. Who reads it too early is given the batch once more.
                turn = await self._log.turn(key, turn)
                if turn.end is None:
                    raise
        if turn.outcome != "completed":
            await self._stop(key, lines)
        return turn

    async def _run(self, key: TurnKey, turn: Turn, asked: Batch, lines: Sequence[bytes]) -> Turn:
        assert turn.asked_at is not None  # noqa: S101
        taken = Attempt(
            prev=turn.chain.last, attempt=turn.attempt + 1, generator=self._name, backend=BACKEND, mode="fresh"
        )
        chain = await appended(self._log, key, turn.chain, taken)
        logger.info("batch", turn=key.turn, of=len(lines), attempt=taken.attempt)
        tally, numbers = Tally(turn.progress, len(lines)), iter(range(len(lines)))
        left = turn.asked_at + LIFE - datetime.now(UTC)
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())), asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(key))
                telling = group.create_task(self._tell(key, chain, tally))
                for _ in range(asked.parallel):
                    group.create_task(self._ask(key, numbers, lines, tally, is_first=taken.attempt == 1))
                chain = await telling
                watching.cancel()
        except TimeoutError:
            failure = Failure("deadline_exceeded", "the batch was not finished in time")
            return await self._end(key, await self._log.turn(key, turn), "failed", failure)
        except ExceptionGroup as several:
            # The watcher and the writer fail for one reason: the batch is not ours any more.
            raise several.exceptions[0] from several
        return await self._end(key, msgspec.structs.replace(turn, chain=chain), "completed")

    async def _ask(
        self, key: TurnKey, numbers: Iterator[int], lines: Sequence[bytes], tally: "Tally", *, is_first: bool
    ) -> None:
        """One of the `parallel`: asks the next input once the one before it has ended."""
        for number in numbers:
            async with self._places:
                while await self._fullness() >= FULL_AT:  # noqa: ASYNC110  # NATS has no event for it
                    await asyncio.sleep(FULL_WAIT_S)
                child = batch.child(key, number)
                # What was deleted meanwhile does not come back.
                is_gone = not is_first and await self._tombstones.stands(child)
                tally.add(None if is_gone else await self._answered(key, child, lines[number]))

    async def _answered(self, key: TurnKey, child: TurnKey, line: bytes) -> End | None:
        """The end of one input's turn, which is asked if it was not; None when there is none, for it was deleted."""
        # Before it is asked: an end that comes at once is heard.
        hearing = asyncio.create_task(self._log.until_ended(child))
        await asyncio.sleep(0)
        try:
            await self._append(key, child, line)
            turn = NOBODY
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
        appending = asyncio.create_task(appended(self._log, child, START, batch.asked(key, line)))
        try:
            await asyncio.shield(appending)
        except FenceLost:
            # By this process or another, before: it is the same turn.
            return
        except asyncio.CancelledError:
            # It may be stored while it is given up, and who stops the batch is to find it.
            await asyncio.wait({appending})
            raise

    async def _require_known(self, child: TurnKey) -> None:
        if not await self._log.is_known(child):
            raise TurnUnknown(f"the log has no turn {child.turn}")

    async def _tell(self, key: TurnKey, chain: Chain, tally: "Tally") -> Chain:
        """Appends how far the batch has come until all have ended; what ends meanwhile is joined in the next."""
        while not tally.is_whole:
            await tally.changed.wait()
            tally.changed.clear()
            if (progress := tally.news(chain)) is not None:
                chain = await appended(self._log, key, chain, progress)
        return chain

    async def _watch(self, key: TurnKey) -> None:
        await self._log.until_ended(key)
        raise FenceLost(f"{key.turn} was ended by somebody else")

    async def _end(self, key: TurnKey, turn: Turn, outcome: Outcome, error: Failure | None = None) -> Turn:
        end = ending(turn, outcome, error)
        chain = await appended(self._log, key, turn.chain, end)
        metrics.ENDS.labels(outcome).inc()
        return fold([stored(chain, turn, end)], turn)

    async def _stop(self, key: TurnKey, lines: Sequence[bytes]) -> None:
        """Cancels what runs of a batch that has ended, and gives back what was held for what was never asked."""
        unused: Counter[str] = Counter()
        for first in range(0, len(lines), STOPPED_AT_ONCE):
            numbers = range(first, min(first + STOPPED_AT_ONCE, len(lines)))
            stopped = await asyncio.gather(*(self._stopped(batch.child(key, n), lines[n]) for n in numbers))
            for hold in (hold for holds in stopped for hold in holds):
                unused[hold.subject] += hold.amount
        for subject, amount in unused.items():
            await self._counters.add_once(subject, -amount, key.turn)

    async def _stopped(self, child: TurnKey, line: bytes) -> list[Hold]:
        """What a turn holds that was never asked; one that runs is cancelled, and settles its own."""
        try:
            turn = await self._log.turn(child)
        except TurnUnknown:
            return [] if await self._tombstones.stands(child) else (batch.read(line).holds or [])
        while turn.end is None:
            with suppress(FenceLost):
                await self._log.append(child, turn.chain, ending(turn, "cancelled"))
            turn = await self._log.turn(child, turn)
        return []


class Tally:
    """How many of a batch's turns have ended, counted anew by each who takes it over; told only when it is more."""

    def __init__(self, told: Progress | None, of: int) -> None:
        self._told = told.done + told.failed if told else 0
        self._of = of
        self._done = self._failed = self._cost_nusd = 0
        self.changed = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        return self._told == self._of == self._done + self._failed

    def add(self, end: End | None) -> None:
        is_done = end is not None and end.outcome == "completed"
        self._done += is_done
        self._failed += not is_done
        self._cost_nusd += end.cost_nusd if end is not None else 0
        self.changed.set()

    def news(self, chain: Chain) -> Progress | None:
        """The entry that follows `chain`, if there is more to tell than was told."""
        if self._done + self._failed <= self._told:
            return None
        self._told = self._done + self._failed
        return Progress(
            prev=chain.last,
            attempt=chain.attempt,
            done=self._done,
            failed=self._failed,
            of=self._of,
            cost_nusd=self._cost_nusd,
        )
