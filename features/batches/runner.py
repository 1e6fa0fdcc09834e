"""Runs batches: submits each input as a turn of its own, and appends the batch's progress until all have ended.

Makes no model call and keeps no list of submitted inputs: a turn's id is derived from the batch's id and the input's
number, and its request is appended as the turn's first entry. A runner that takes over goes through all inputs again
and finds the submitted ones (PROTOCOL R63). Batches for Anthropic's Message Batches go to message_batches.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta

import msgspec
import structlog

from tailrace.features.batches import input_lines
from tailrace.features.batches.input_span import input_span
from tailrace.features.batches.message_batches import MessageBatchSubmitter, read_own
from tailrace.features.batches.message_batches_api import MessageBatchesApi
from tailrace.features.batches.tally import BatchTally
from tailrace.generators import metrics
from tailrace.generators.attempt_runner import TurnEnded
from tailrace.generators.backend_order import BackendOrders
from tailrace.generators.event_writer import append_when_not_full, as_stored
from tailrace.generators.feature import Hooks
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.worker import Place
from tailrace.proto.blobs import Blob
from tailrace.proto.chain import START, Chain
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Batch, End, Entry, Failure, Outcome
from tailrace.proto.errors import BackendError, BlobUnknown, EntryTooLarge, FenceLost, LogError, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import Tenant, TurnId, TurnKey, is_child_id
from tailrace.proto.nats import BlobStore, Tombstones, TurnLog
from tailrace.proto.nats.step_records import StepRecord, StepRecords
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.gather import gather_limited

logger = structlog.get_logger()

BACKEND = "batch"
NO_MESSAGE_BATCHES = "message batches need the backend `claude`, which this generator does not have"
INPUT_FILE_INVALID = "the input file has lines that are not requests of the batch's endpoint"
EXPIRED = Failure("blob_expired", "the inputs of the batch have expired")
LATE = Failure("deadline_exceeded", "the batch was not finished in time")
BROKEN = Failure("internal", "the batch cannot be run: the logs of the generators have the traceback")
# A batch fails this long after its request. The log keeps a turn for a day, so clients can read the results for some
# hours after that.
RUN_MAX = timedelta(hours=20)
# A batch waits before the log is so full that gateways refuse interactive turns (TAILRACE_FULL_AT).
FULL_AT = 0.8
FULL_WAIT_S = 1.0
# If the live feed has lost the `end` of an input, the log is read after this time.
REREAD_S = 5.0
# The wait between two reads if the feed has shown an end that the read did not find.
STALE_WAIT_S = 0.02
STOPPED_AT_ONCE = 16
# Each running batch has its inputs in memory, up to the size of a request body.
BATCHES_MAX = 8
# Batches of one tenant that wait a day for Anthropic must not keep other tenants' batches waiting.
BATCHES_TENANT_MAX = BATCHES_MAX // 2


class _Head(msgspec.Struct):
    """The part of a request that shows whether it is a batch, or one of a batch's turns."""

    batch: msgspec.Raw = msgspec.Raw()
    parent: str | None = None


_head = msgspec.json.Decoder(_Head)


class BatchLane:
    """The worker's lane for batches. See worker.Lane."""

    def __init__(self, runner: "BatchRunner") -> None:
        self._runner = runner
        self._running: list[Tenant] = []

    def place(self, turn: TurnId, request: bytes) -> Place | None:
        """Returns `lane` for a batch, `last` for one of a batch's turns. See worker.Lane."""
        try:
            head = _head.decode(request)
        except DECODE_ERRORS:
            return None
        if bytes(head.batch) not in (b"", b"null"):
            return "lane"
        return "last" if head.parent is not None and is_child_id(turn, TurnId(head.parent)) else None

    def reserve(self, tenant: Tenant) -> bool:
        """Reserves a slot; False if BATCHES_MAX batches run, or BATCHES_TENANT_MAX of the tenant."""
        if len(self._running) >= BATCHES_MAX or self._running.count(tenant) >= BATCHES_TENANT_MAX:
            return False
        self._running.append(tenant)
        return True

    def release(self, tenant: Tenant) -> None:
        self._running.remove(tenant)

    async def run(self, key: TurnKey) -> Turn | None:
        """Runs a batch to its end and returns its turn, or None if another generator has taken the batch over."""
        try:
            return await self._runner.run(key)
        except FenceLost as lost:
            # A batch is not acknowledged even if it has ended: the next runner ends the turns that this one submitted.
            metrics.LOST.inc()
            logger.info("batch left", turn=key.turn, why=str(lost))
            return None


class BatchRunner:
    """Runs the batches of one process."""

    def __init__(
        self,
        log: TurnLog,
        blob_store: BlobStore,
        tombstones: Tombstones,
        step_records: StepRecords,
        fullness: Callable[[], Awaitable[float]],
        *,
        name: str,
        concurrency: int,
        attempts_max: int,
        message_batches: MessageBatchesApi | None,
        hooks: Hooks,
        blobs: BlobLoader,
        orders: BackendOrders,
    ) -> None:
        """At most `concurrency` turns of batches run or wait for a generator at once, so that other turns can start.

        Without `message_batches`, batches for Anthropic's Message Batches fail. A batch that has had `attempts_max`
        attempts in a row without progress fails at the next unexpected error. `hooks` apply to the calls and answers
        of a message batch.
        """
        self._log = log
        self._blob_store = blob_store
        self._tombstones = tombstones
        self._step_records = step_records
        self._fullness = fullness
        self._submitter: MessageBatchSubmitter | None = None
        if message_batches is not None:
            self._submitter = MessageBatchSubmitter(
                log, tombstones, hooks, blobs, message_batches, orders, self._wait_until_not_full
            )
        self._name = name
        self._slots = asyncio.Semaphore(concurrency)
        self._attempts_max = attempts_max

    async def run(self, key: TurnKey) -> Turn:
        """Runs a batch until its log holds an `end` and all turns that it submitted have ended; returns its fold.

        Raises FenceLost when another process has the batch, LogUnavailable, TurnUnknown.
        """
        turn = await self._log.read_turn(ScopedKey.whole(key))
        assert turn.request is not None  # noqa: S101  # a fold from the log has one, or TurnUnknown was raised
        spec = turn.request.batch
        assert spec is not None  # noqa: S101  # the delivery is a batch's
        try:
            lines = input_lines.split_inputs(await self._blob_store.read(key.tenant, Blob(spec.sha256, spec.bytes)))
        except BlobUnknown:
            if turn.end is None:
                turn = await self._end(key, turn, "failed", EXPIRED)
            if turn.outcome != "completed":
                await self._stop_without_inputs(key, turn, spec.count)
            return turn
        inputs = lines[: spec.count]
        if turn.end is None and not inputs:
            if spec.source is not None and spec.source.is_invalid:
                return await self._end(key, turn, "failed", Failure("request_invalid", INPUT_FILE_INVALID))
            return await self._end(key, turn, "completed")
        tally = BatchTally(turn.progress, len(inputs), was_begun=turn.attempt > 0)
        if turn.end is None:
            try:
                turn = await self._run_inputs(key, turn, spec, inputs, tally)
            except (FenceLost, TurnUnknown):
                # Cancelled, taken over or deleted. If this read misses the end, the batch is delivered once more.
                with suppress(TurnUnknown):
                    turn = await self._log.read_turn(ScopedKey.whole(key), turn)
                await self._cancel_orphan(key, turn, tally)
                if turn.end is None:
                    raise
        if turn.outcome != "completed":
            if is_message_batch(turn):
                await self._stop_message_batch(key, turn, inputs, tally)
            await self._stop_all(key, len(inputs))
        return turn

    async def _stop_message_batch(self, key: TurnKey, turn: Turn, inputs: Sequence[bytes], tally: BatchTally) -> None:
        """Cancels the message batch of a batch that has ended, and writes its results."""
        if self._submitter is not None:
            is_over = await self._submitter.stop(key, turn, inputs, tally)
        else:
            is_over = tally.message_batch is None and not tally.is_unclear
        if is_over:
            # No further turn will be stored: persistence gives back what is left of the reservation (PROTOCOL R148).
            await self._step_records.write(key, StepRecord())

    async def _stop_without_inputs(self, key: TurnKey, turn: Turn, count: int) -> None:
        """Stops what earlier runners of a batch with `count` inputs have begun.

        A batch that was cancelled may lose its inputs: the erasure of a user deletes the inputs of ended batches.
        """
        name = turn.progress.message_batch if turn.progress is not None else None
        if self._submitter is not None and name is not None:
            with suppress(BackendError):
                await self._submitter.cancel(name)
        await self._stop_all(key, count)

    async def _cancel_orphan(self, key: TurnKey, turn: Turn, tally: BatchTally) -> None:
        """Cancels this runner's message batch if no runner will read it.

        Either the next runner of the batch uses another message batch, or the batch was deleted.
        """
        mine = tally.message_batch
        if self._submitter is None or mine is None:
            return
        current = turn.progress.message_batch if turn.progress is not None else None
        if current not in (None, mine) or (turn.end is None and not await self._log.has_turn(ScopedKey.whole(key))):
            with suppress(BackendError):
                await self._submitter.cancel(mine)

    async def _run_inputs(
        self, key: TurnKey, turn: Turn, spec: Batch, inputs: Sequence[bytes], tally: BatchTally
    ) -> Turn:
        assert turn.asked_at is not None  # noqa: S101
        assert turn.request is not None  # noqa: S101
        traceparent = turn.request.traceparent
        attempt = Attempt(
            prev=turn.chain.last, attempt=turn.attempt + 1, generator=self._name, backend=BACKEND, mode="fresh"
        )
        chain = await append_when_not_full(self._log.append, key, turn.chain, attempt)
        logger.info("batch", turn=key.turn, of=len(inputs), attempt=attempt.attempt)
        numbers = iter(range(len(inputs)))
        # By the log's clock: a wrong clock of this machine would fail every batch.
        left = turn.asked_at + RUN_MAX - await self._log.now()
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())), asyncio.TaskGroup() as group:
                watching = group.create_task(self._raise_when_ended(key))
                reporting = group.create_task(self._append_progress(key, chain, tally))
                if is_message_batch(turn):
                    group.create_task(self._submit_all(key, turn, attempt.attempt, inputs, tally))
                else:
                    for _ in range(spec.parallel):
                        group.create_task(self._run_some(key, numbers, inputs, tally, traceparent))
                chain = await reporting
                watching.cancel()
        except asyncio.CancelledError:
            # The process stops. It may have just created the message batch: without its id in the log, the next runner
            # would search for it, which takes until the message batch has ended.
            if tally.message_batch is not None and (progress := tally.next_progress(chain)) is not None:
                with suppress(LogError):
                    await self._log.append(key, chain, progress)
            raise
        except TimeoutError:
            turn = await self._append_last_progress(key, turn, attempt.attempt, tally)
            return await self._end(key, turn, "failed", LATE)
        except ExceptionGroup as several:
            # If several tasks fail, it is for the same reason: the batch is not this runner's any more.
            first = several.exceptions[0]
            if isinstance(first, LogError):
                raise first from several
            turn = await self._append_last_progress(key, turn, attempt.attempt, tally)
            if isinstance(first, BackendError):
                return await self._end(key, turn, "failed", Failure(first.code, first.message, first.retry_after_s))
            if turn.fruitless < self._attempts_max:
                raise first from several
            logger.exception("batch given up", turn=key.turn)
            return await self._end(key, turn, "failed", BROKEN)
        return await self._end(key, msgspec.structs.replace(turn, chain=chain), "completed")

    async def _run_some(
        self,
        key: TurnKey,
        numbers: Iterator[int],
        inputs: Sequence[bytes],
        tally: BatchTally,
        traceparent: str | None,
    ) -> None:
        """Runs one input after the other; `parallel` of these loops share `numbers`."""
        for number in numbers:
            async with self._slots:
                await self._wait_until_not_full()
                child = input_lines.child_key(key, number)
                # An earlier runner may have submitted the input, and a client deleted its turn; or its user was erased.
                is_deleted = await self._tombstones.is_deleted(child)
                tally.add(None if is_deleted else await self._run_input(key, child, inputs[number], traceparent))

    async def _submit_all(
        self, key: TurnKey, turn: Turn, attempt: int, inputs: Sequence[bytes], tally: BatchTally
    ) -> None:
        if self._submitter is None:
            raise BackendError("backend_refused_request", NO_MESSAGE_BATCHES)
        await self._submitter.run(key, turn, attempt, inputs, tally)

    async def _wait_until_not_full(self) -> None:
        while await self._fullness() >= FULL_AT:  # noqa: ASYNC110  # NATS has no event for it
            await asyncio.sleep(FULL_WAIT_S)

    async def _run_input(self, key: TurnKey, child: TurnKey, line: bytes, traceparent: str | None) -> End | None:
        """Submits an input's turn unless it was submitted, and waits for its end; None if the turn was deleted.

        `traceparent` is that of the batch's request.
        """
        # Subscribed before the turn is submitted, so that an immediate end is noticed.
        waiting = asyncio.create_task(self._log.wait_for_end(child))
        await asyncio.sleep(0)
        try:
            await self._submit(key, child, line, traceparent)
            turn = EMPTY_TURN
            while True:
                turn = await self._log.read_turn(ScopedKey.whole(child), turn)
                if turn.end is not None:
                    return turn.end
                if waiting.done():
                    waiting.result()
                    await asyncio.sleep(STALE_WAIT_S)
                elif not (await asyncio.wait({waiting}, timeout=REREAD_S))[0]:
                    await self._log.require_turn(child)
        except (TurnUnknown, EntryTooLarge) as error:
            logger.warning("a turn of a batch is gone", turn=child.turn, error=str(error))
            return None
        finally:
            waiting.cancel()

    async def _submit(self, key: TurnKey, child: TurnKey, line: bytes, traceparent: str | None) -> None:
        # FenceLost: the turn was submitted before, by this process or another one.
        with suppress(FenceLost), input_span(child, traceparent) as own:
            request = msgspec.structs.replace(input_lines.child_request(key, line), traceparent=own)
            await append_when_not_full(self._append_shielded, child, START, request)

    async def _append_shielded(self, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        """Appends an entry. It may be stored although the task is cancelled, so the stop of a batch waits for it."""
        appending = asyncio.create_task(self._log.append(key, chain, entry))
        try:
            return await asyncio.shield(appending)
        except asyncio.CancelledError:
            await asyncio.wait({appending})
            raise

    async def _append_progress(self, key: TurnKey, chain: Chain, tally: BatchTally) -> Chain:
        """Appends the batch's progress until all turns have ended. Each append counts all ends before it."""
        while not tally.is_complete:
            await tally.changed.wait()
            tally.changed.clear()
            if (progress := tally.next_progress(chain)) is not None:
                chain = await append_when_not_full(self._log.append, key, chain, progress)
        return chain

    async def _append_last_progress(self, key: TurnKey, turn: Turn, attempt: int, tally: BatchTally) -> Turn:
        """Appends the progress that the log does not have, before the end of a batch that fails; returns its fold.

        Raises as `read_own` does.
        """
        turn = await read_own(self._log, key, turn, attempt)
        # The append of the last progress may have been cancelled while the log was full.
        tally.set_stored(turn.progress)
        if (progress := tally.next_progress(turn.chain)) is None:
            return turn
        chain = await append_when_not_full(self._log.append, key, turn.chain, progress)
        return fold([as_stored(chain, progress)], turn)

    async def _raise_when_ended(self, key: TurnKey) -> None:
        raise TurnEnded(key, await self._log.wait_for_end(key))

    async def _end(self, key: TurnKey, turn: Turn, outcome: Outcome, error: Failure | None = None) -> Turn:
        end = build_end(turn, outcome, error)
        chain = await append_when_not_full(self._log.append, key, turn.chain, end)
        metrics.ENDS.labels(outcome).inc()
        return fold([as_stored(chain, end)], turn)

    async def _stop_all(self, key: TurnKey, count: int) -> None:
        """Cancels the running turns of a batch with `count` inputs that has ended."""
        children = (input_lines.child_key(key, number) for number in range(count))
        await gather_limited(self._stop, await self._log.find_stored(children), STOPPED_AT_ONCE)

    async def _stop(self, child: TurnKey) -> None:
        """Cancels a running turn, whose generator then settles its limits."""
        with suppress(TurnUnknown):
            turn = await self._log.read_turn(ScopedKey.whole(child))
            while turn.end is None:
                with suppress(FenceLost):
                    await self._log.append(child, turn.chain, build_end(turn, "cancelled", cause="batch"))
                turn = await self._log.read_turn(ScopedKey.whole(child), turn)


def is_message_batch(turn: Turn) -> bool:
    """Returns whether Anthropic's Message Batches answer the batch."""
    return turn.request is not None and turn.request.via == "message_batches"
