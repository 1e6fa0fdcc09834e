"""Submits a batch to Anthropic's Message Batches, and writes their results as ordinary logs of the batch's turns.

Anthropic accepts no name from the client for a message batch. If a generator dies while it creates one, the next one
searches the message batches created since then: by their size and, once ended, by the names of their requests, which
are turn ids. Until it is certain that none exists, no other one is created (PROTOCOL R67).

A turn's log is derived from the result alone, so a generator that takes over writes the same bytes and finds the stored
ones.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import structlog

from tailrace.features.batches import input_lines
from tailrace.features.batches.input_span import input_span
from tailrace.features.batches.message_batches_api import (
    CanceledResult,
    ErroredResult,
    ExpiredResult,
    MessageBatch,
    MessageBatchesApi,
    Result,
    SucceededResult,
)
from tailrace.features.batches.message_events import to_events
from tailrace.features.batches.tally import BatchTally
from tailrace.generators import metrics
from tailrace.generators.attempt_runner import WrapSink
from tailrace.generators.backend_order import BackendOrders
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.generators.backends.model_event import ModelEvent, read_event
from tailrace.generators.continuation import build_call
from tailrace.generators.event_writer import append_when_not_full, as_stored
from tailrace.generators.feature import Hooks
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.planner import check_answer
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import MESSAGE_BATCHES, Attempt, End, Entry, Event, Failure, Mode, Outcome, Request
from tailrace.proto.errors import BackendError, EntryTooLarge, FenceLost, LogError, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Folding, Turn
from tailrace.proto.ids import Seq, TurnId, TurnKey
from tailrace.proto.nats import Tombstones, TurnLog
from tailrace.proto.ownership import ScopedKey

logger = structlog.get_logger()

# A creation that a killed generator has requested reaches Anthropic within this time, or never.
CREATION_DELAY_MAX = timedelta(seconds=60)
# The clocks of this process and NATS may differ by this much.
SKEW_MAX = timedelta(seconds=60)
# The results of a stopped batch are awaited until this long after its request: the log keeps the batch for a day.
STOP_MAX = timedelta(hours=23)
# The wait after the first poll, which doubles with each poll, and the longest one.
POLL_WAIT_S = 0.5
POLL_WAIT_MAX_S = 30.0
# A server of Anthropic may not know a message batch for a minute, also some minutes after its creation, and answers 404
# (anthropics/anthropic-sdk-python#1432). With the waits above, this many refusals in a row take five minutes.
REFUSALS_MAX = 15
# When this process stops during a creation, it waits this long for the id of the message batch.
CREATION_WAIT_S = 10.0
WRITTEN_AT_ONCE = 16
# The results are read at most this often, within a minute, while some are missing. Each result is paid for.
RESULT_READS_MAX = 8
# A turn is written at most this often while its log has entries of another writer.
WRITES_MAX = 3
# After these codes a creation is not repeated: it would be refused again.
REFUSED = ("backend_refused_request", "model_not_found", "backend_refused_key")
# After these codes it is certain that no message batch was created.
NOT_CREATED = (*REFUSED, "backend_rate_limited", "backend_overloaded")
NO_RESULT = Failure("backend_broken", "the message batch has no result for this input")
TOO_LATE = Failure("deadline_exceeded", "Anthropic did not process this input within 24 hours")

T = TypeVar("T")


async def read_own(log: TurnLog, key: TurnKey, turn: Turn, attempt: int) -> Turn:
    """Returns the fold of a batch, of which `turn` is known. Raises LogUnavailable.

    Raises FenceLost if the batch has ended, or if a later attempt than `attempt` has it.
    """
    turn = await log.read_turn(ScopedKey.whole(key), turn)
    if turn.end is not None or turn.attempt > attempt:
        raise FenceLost(f"{key.turn} has another runner, or has ended")
    return turn


class MessageBatchSubmitter:
    """Runs batches on the Message Batches API. `wait_until_not_full` returns once the log has space."""

    def __init__(
        self,
        log: TurnLog,
        tombstones: Tombstones,
        hooks: Hooks,
        blobs: BlobLoader,
        api: MessageBatchesApi,
        orders: BackendOrders,
        wait_until_not_full: Callable[[], Awaitable[None]],
    ) -> None:
        self._log = log
        self._tombstones = tombstones
        self._hooks = hooks
        self._checks = [new_check() for new_check in hooks.checks]
        self._blobs = blobs
        self._api = api
        self._orders = orders
        self._wait_until_not_full = wait_until_not_full

    async def run(self, key: TurnKey, turn: Turn, attempt: int, lines: Sequence[bytes], tally: BatchTally) -> None:
        """Runs all inputs, `lines`. `turn` is the batch's fold before `attempt`, this runner's attempt.

        Raises BackendError if Anthropic refuses the message batch, FenceLost, LogError.
        """
        name = tally.message_batch
        if name is None and tally.is_unclear:
            name = await self._find_created(key, turn, len(lines))
            tally.is_unclear = False
        if name is None:
            name = await self._create(key, turn, attempt, lines, tally)
        if name is None:
            for _ in lines:
                tally.add(None)
            return
        tally.set_message_batch(name)
        made = await self._wait_until_ended(name)
        await self._write_all(key, turn, made, lines, tally, is_over=False)

    async def stop(self, key: TurnKey, turn: Turn, lines: Sequence[bytes], tally: BatchTally) -> bool:
        """Cancels the message batch of a batch that has ended, and writes the results so far, which are charged.

        Returns whether all of them are written. Raises LogError.
        """
        assert turn.asked_at is not None  # noqa: S101
        left = turn.asked_at + STOP_MAX - await self._log.now()
        # The id in the log comes first: another runner may have gone on with that message batch.
        name = (turn.progress.message_batch if turn.progress is not None else None) or tally.message_batch
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())):
                if name is None and tally.is_unclear:
                    name = await self._find_created(key, turn, len(lines))
                if name is None:
                    return True
                await self.cancel(name)
                made = await self._wait_until_ended(name)
                return await self._write_all(key, turn, made, lines, tally, is_over=True)
        except (LogError, MemoryError):
            raise
        except Exception:
            # Too late, refused, or an error of the program: another attempt would fail, too.
            logger.exception("message batch not stopped", turn=key.turn, message_batch=name)
            return False

    async def cancel(self, name: str) -> None:
        """Cancels a message batch that has not ended. Raises BackendError if there is none."""
        for tries in itertools.count():
            await self._call_with_retries(lambda: self._api.cancel(name))
            # The API's client ignores a refusal, which may come from a server that does not know the message batch yet.
            if (await self._call_with_retries(lambda: self._api.retrieve(name))).processing_status != "in_progress":
                return
            await asyncio.sleep(poll_wait_s(tries))

    async def _find_created(self, key: TurnKey, turn: Turn, count: int) -> str | None:
        """Finds the message batch that an earlier runner created without storing its id; None if there is none.

        The owner of a message batch can only be seen once it has ended, so this waits until all candidates have.
        """
        assert turn.asked_at is not None  # noqa: S101
        # The entries have times of the log's clock, the list has times of this machine's.
        ahead = datetime.now(UTC) - await self._log.now()
        first, last = turn.asked_at + ahead - SKEW_MAX, datetime.now(UTC) + CREATION_DELAY_MAX
        ours: set[str] = {input_lines.child_key(key, number).turn for number in range(count)}
        # A message batch lacks inputs that were deleted before its creation.
        fewest = count - len(await self._find_deleted(key, ours))
        candidates: set[str] = set()
        others: set[str] = set()
        for tries in itertools.count():
            is_settled = datetime.now(UTC) >= last
            made = await self._call_with_retries(lambda: self._api.list_since(first))
            candidates |= {
                one.id for one in made if fewest <= one.request_count <= count and one.created_at <= last + SKEW_MAX
            }
            # Also candidates of earlier lists, because a later list may come from a server that is behind.
            for name in candidates - others:
                is_ours = await self._is_of(name, ours)
                if is_ours:
                    return name
                if is_ours is not None:
                    others.add(name)
            if is_settled and candidates == others:
                return None
            await asyncio.sleep(poll_wait_s(tries))
        raise AssertionError("the search ends with a result")

    async def _is_of(self, name: str, ours: set[str]) -> bool | None:
        """Returns whether the results of a message batch name a turn of `ours`; None if it has not ended."""

        async def look() -> bool | None:
            if not (await self._api.retrieve(name)).has_ended:
                return None
            async with aclosing(self._api.results(name)) as results:
                line = await anext(results, None)
            if line is None:
                raise BackendError("backend_broken", f"the results of {name} have no line that can be read")
            return line.custom_id in ours

        try:
            return await self._call_with_retries(look)
        except BackendError:
            # Deleted at Anthropic meanwhile, which this system never does: not this batch.
            return False

    async def _create(
        self, key: TurnKey, turn: Turn, attempt: int, lines: Sequence[bytes], tally: BatchTally
    ) -> str | None:
        """Creates the message batch, and returns its id; None if all inputs were deleted."""
        bodies, headers = await self._build_bodies(key, lines)
        for tries in itertools.count():
            # After a long pause another runner may have the batch, and the user of an input may have been erased.
            await read_own(self._log, key, EMPTY_TURN, attempt)
            for deleted in await self._find_deleted(key, bodies):
                del bodies[deleted]
            if not bodies:
                return None
            tally.is_unclear = True
            creating = asyncio.create_task(self._api.create(bodies, headers))
            try:
                made = await asyncio.shield(creating)
            except asyncio.CancelledError:
                # The message batch may be created nevertheless. `stop` needs its id.
                await asyncio.wait({creating}, timeout=CREATION_WAIT_S)
                if creating.done() and creating.exception() is None:
                    tally.set_message_batch(creating.result().id)
                creating.cancel()
                raise
            except BackendError as error:
                logger.warning("no message batch yet", turn=key.turn, error=error.message, **error.log_fields)
                if (
                    error.code not in NOT_CREATED
                    and (name := await self._find_created(key, turn, len(lines))) is not None
                ):
                    return name
                tally.is_unclear = False
                if error.code in REFUSED:
                    raise
                await asyncio.sleep(max(poll_wait_s(tries), min(error.retry_after_s or 0.0, POLL_WAIT_MAX_S)))
            else:
                logger.info("message batch", turn=key.turn, message_batch=made.id, of=len(lines))
                return made.id
        raise AssertionError("the loop ends with an id or an error")

    async def _build_bodies(self, key: TurnKey, lines: Sequence[bytes]) -> tuple[dict[str, bytes], dict[str, str]]:
        """Returns the request body of each input by its turn's id, and the headers, which are the same for all.

        Raises BackendError if the operator lets other backends answer one of the models, or if a blob is gone.
        """
        bodies: dict[str, bytes] = {}
        headers: dict[str, str] = {}
        betas: dict[str, None] = {}
        for number, line in enumerate(lines):
            request = input_lines.decode_input(line)
            model = self._orders.claude_model_id(request.model, "message batches")
            async with self._blobs.load(key.tenant, build_call(request, self._hooks.all_filters)) as call:
                bodies[input_lines.child_key(key, number).turn] = b"".join(await encode_body(call, model=model))
                betas |= dict.fromkeys(call.betas or ())
            if betas:
                headers["anthropic-beta"] = ",".join(betas)
            # The version that a client names is the same for all inputs. Without one, an input may need an older
            # version, which the whole message batch then uses.
            if request.api_version:
                headers["anthropic-version"] = request.api_version
            # A long input takes some milliseconds. The loop renews leases in between.
            await asyncio.sleep(0)
        return bodies, headers

    async def _find_deleted(self, key: TurnKey, turns: Iterable[str]) -> set[str]:
        """Returns those of a batch's `turns` that are deleted, some before they were stored: their user was erased."""
        deleted = await self._tombstones.find_deleted(TurnKey(key.tenant, TurnId(turn)) for turn in turns)
        return {child.turn for child in deleted}

    async def _wait_until_ended(self, name: str) -> MessageBatch:
        for tries in itertools.count():
            if (made := await self._call_with_retries(lambda: self._api.retrieve(name))).has_ended:
                return made
            await asyncio.sleep(poll_wait_s(tries))
        raise AssertionError("the loop ends with a message batch")

    async def _write_all(
        self, key: TurnKey, turn: Turn, made: MessageBatch, lines: Sequence[bytes], tally: BatchTally, *, is_over: bool
    ) -> bool:
        """Writes each result as a turn; returns whether all results of `made` could be read.

        Raises TurnUnknown if the batch was deleted, LogError.

        With `is_over` (the batch's log has an `end`), inputs without an answer get no turn.
        """
        assert turn.request is not None  # noqa: S101
        traceparent = turn.request.traceparent
        left: dict[str, int] = {input_lines.child_key(key, number).turn: number for number in range(len(lines))}
        unread = set(left)

        async def write(custom_id: str, result: Result | Failure) -> None:
            number = left.pop(custom_id)
            child, request = input_lines.child_key(key, number), input_lines.child_request(key, lines[number])
            try:
                end = await self._write_turn(child, request, made.id, result, traceparent)
            except TurnUnknown:
                # The turn was deleted during the write. If the batch was deleted, too, the other turns are not written.
                await self._log.require_turn(key)
                end = None
            tally.add(end)

        async def write_some(some: dict[str, Result]) -> None:
            await self._wait_until_not_full()
            # Nothing is written for a batch that was deleted.
            await self._log.require_turn(key)
            for failed in await asyncio.gather(*(write(*one) for one in some.items()), return_exceptions=True):
                if isinstance(failed, BaseException):
                    raise failed
            some.clear()

        async def read() -> None:
            some: dict[str, Result] = {}
            async with aclosing(self._api.results(made.id)) as results:
                async for line in results:
                    unread.discard(line.custom_id)
                    if line.custom_id in left and not (
                        is_over and isinstance(line.result, CanceledResult | ExpiredResult)
                    ):
                        some[line.custom_id] = line.result
                    if len(some) == WRITTEN_AT_ONCE:
                        await write_some(some)
            await write_some(some)

        is_complete = False
        for tries in range(RESULT_READS_MAX):
            if tries:
                await asyncio.sleep(poll_wait_s(tries - 1))
            await self._call_with_retries(read)
            if is_complete := len(lines) - len(unread) >= made.request_count:
                break
            # The response may end early without an error, and a line may be damaged.
            logger.warning("results are missing", message_batch=made.id, missing=len(unread), of=made.request_count)
        if not is_over:
            for custom_id in tuple(left):
                await write(custom_id, NO_RESULT)
        return is_complete

    async def _write_turn(
        self, child: TurnKey, request: Request, name: str, result: Result | Failure, traceparent: str | None
    ) -> End | None:
        """Writes one input's turn; returns its end, or None if the turn was deleted before.

        `traceparent` is that of the batch. The turn's request has none, as every runner writes the same bytes. Raises
        TurnUnknown if the turn is deleted meanwhile.
        """
        if (end := await self._end_of(child)) is not None:
            return end
        # Right before the first append: to learn that the log has no such turn takes 100 ms.
        if await self._tombstones.is_deleted(child):
            return None
        writer = Writer(self._log, child)
        for _ in range(WRITES_MAX):
            try:
                with input_span(child, traceparent):
                    if writer.turn.request is None:
                        await writer.append(request)
                    return await self._write_answer(writer, child, request, name, result)
            except FenceLost as lost:
                # The turn was cancelled, or an older version has written a part of it, with other bytes.
                logger.info("a result has another writer", turn=child.turn, why=str(lost))
            try:
                turn = await self._log.read_turn(ScopedKey.whole(child))
            except TurnUnknown:
                return None
            if turn.end is not None:
                return turn.end
            writer = Writer(self._log, child, turn)
        raise FenceLost(f"{child.turn} has another writer")

    async def _write_answer(
        self, writer: "Writer", child: TurnKey, request: Request, name: str, result: Result | Failure
    ) -> End:
        """Appends an attempt, the answer and the end; returns the end."""
        # Named after the message batch, not this process, so that every runner writes the same bytes.
        begun = writer.turn
        mode: Mode = "fresh" if begun.message is None else "restart"
        await writer.append(
            Attempt(prev=writer.last, attempt=begun.attempt + 1, generator=name, backend=MESSAGE_BATCHES, mode=mode)
        )
        outcome, failure = await self._write_result(writer, request, result)
        # A batch makes no call for a correction.
        checked = await check_answer(self._checks, child, writer.turn) if outcome == "completed" else None
        schema_valid = None if checked is None else checked.misfit is None
        end = build_end(writer.turn, outcome, failure, schema_valid=schema_valid)
        await writer.append(end)
        metrics.count_end(child, writer.turn)
        return end

    async def _write_result(
        self, writer: "Writer", request: Request, result: Result | Failure
    ) -> tuple[Outcome, Failure | None]:
        """Appends the events of a result; returns how the turn ends."""
        match result:
            case SucceededResult(message):
                try:
                    for event in map_answer(to_events(mark_as_batch(message)), request, self._hooks.sinks):
                        await writer.append(Event(prev=writer.last, attempt=writer.attempt, event=event))
                except BackendError as error:
                    return "failed", _failure(error)
                except EntryTooLarge:
                    return "failed", Failure("backend_broken", "a part of the answer is too long for the log")
                return "completed", None
            case ErroredResult() as errored:
                return "failed", _failure(errored.failure)
            case CanceledResult():
                return "cancelled", None
            case ExpiredResult():
                return "failed", TOO_LATE
            case Failure():
                return "failed", result

    async def _end_of(self, child: TurnKey) -> End | None:
        try:
            return (await self._log.read_turn(ScopedKey.whole(child))).end
        except TurnUnknown:
            return None

    async def _call_with_retries(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeats `call` until it succeeds, because its result is charged.

        Raises BackendError if it is refused REFUSALS_MAX times in a row.
        """
        refusals = 0
        for tries in itertools.count():
            try:
                return await call()
            except BackendError as error:
                refusals = refusals + 1 if error.code == "backend_refused_request" else 0
                if refusals == REFUSALS_MAX:
                    raise
                logger.warning("Message Batches call failed", error=error.message, **error.log_fields)
                await asyncio.sleep(max(poll_wait_s(tries), min(error.retry_after_s or 0.0, POLL_WAIT_MAX_S)))
        raise AssertionError("the loop ends with a result or an error")


class Writer:
    """Appends to a turn's log, after the entries of `turn`. An entry that is stored with the same bytes is accepted."""

    def __init__(self, log: TurnLog, key: TurnKey, turn: Turn = EMPTY_TURN) -> None:
        self._log = log
        self._key = key
        self._folding = Folding(turn)

    @property
    def last(self) -> Seq:
        return self._folding.chain.last

    @property
    def attempt(self) -> int:
        return self._folding.chain.attempt

    @property
    def turn(self) -> Turn:
        """The fold of the entries so far."""
        return self._folding.build()

    async def append(self, entry: Entry) -> None:
        """Appends an entry. Raises FenceLost if another entry is stored there, TurnUnknown, LogError."""
        chain = await append_when_not_full(self._log.append, self._key, self._folding.chain, entry)
        self._folding.add(as_stored(chain, entry))


def mark_as_batch(message: dict[str, Any]) -> dict[str, Any]:
    """Returns `message` with the service tier `batch` in its usage, which decides its price."""
    usage = message.get("usage")
    return message | {"usage": usage | {"service_tier": "batch"}} if isinstance(usage, dict) else message


def map_answer(answer: list[msgspec.Raw], request: Request, sinks: Sequence[WrapSink]) -> list[msgspec.Raw]:
    """Returns the events of a complete answer as they are stored through `sinks`. Raises BackendError."""
    stored = list[ModelEvent]()
    wrapped = store = stored.append
    for wrap in sinks:
        wrapped = wrap(wrapped, request, EMPTY_TURN)
    if wrapped is store:
        return answer
    for event in filter(None, map(read_event, map(bytes, answer))):
        wrapped(event)
    return [event.raw for event in stored]


def _failure(error: BackendError) -> Failure:
    return Failure(error.code, error.message, details=error.details)


def poll_wait_s(tries: int) -> float:
    """Returns the wait after `tries` polls."""
    return min(POLL_WAIT_S * 2.0 ** min(tries, 16), POLL_WAIT_MAX_S)
