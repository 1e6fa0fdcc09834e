"""Has a batch answered by Anthropic's Message Batches, and writes what they say as its turns' ordinary logs.

Anthropic takes no name of ours for a batch, so the one that was made in the moment its maker died is looked for among
those that were made since: by its size, and, once it has ended, by the names of its requests, which are the turns' ids.
Until it is certain that there is none, no other is made (PROTOCOL R67).

What a turn's log then says is made of the result alone. Whoever writes it after another makes the same bytes, and finds
what stands already.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import structlog

from tailrace.generators import metrics
from tailrace.generators.attempt import JUDGE_WAIT_S, appended
from tailrace.generators.backends.anthropic_api import body_of
from tailrace.generators.backends.message_batches_api import (
    Canceled,
    Errored,
    Expired,
    MessageBatch,
    MessageBatches,
    Result,
    Succeeded,
)
from tailrace.generators.batches.message_events import events_of
from tailrace.generators.continuation import build_call
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.plan import UNFINISHED
from tailrace.proto import batch
from tailrace.proto.chain import START, Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import MESSAGE_BATCHES, Attempt, End, Entry, Event, Failure, Outcome, Request, Stored
from tailrace.proto.errors import BackendError, EntryTooLarge, FenceLost, SandboxFailed, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import Seq
from tailrace.proto.nats import Tombstones, TurnLog
from tailrace.proto.runtime import json_schema
from tailrace.proto.schema import schema_of
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# What a generator sends is at Anthropic's by then or never: it was killed, and its connections with it.
SETTLED = timedelta(seconds=60)
# Between Anthropic's clock and that of NATS.
SKEW = timedelta(seconds=60)
# The log has a batch for a day. What Anthropic has of one that was ended is waited for no longer.
LIFE = timedelta(hours=23)
# The wait between two looks: it doubles.
LOOK_S = 0.5
LOOK_MAX_S = 30.0
# Who is to stop waits so long for the answer of a creation that is on its way.
ANSWER_WAIT_S = 10.0
WRITTEN_AT_ONCE = 16
# Requests are made one after the other; leases are renewed in between.
BREATHES_EVERY = 20
# They say that there is no batch: it was refused before it was made.
REFUSED = ("backend_refused_request", "backend_refused_key")
NOT_MADE = (*REFUSED, "backend_rate_limited", "backend_overloaded")
NO_RESULT = Failure("backend_broken", "the message batch has no result for this input")
TOO_LATE = Failure("deadline_exceeded", "Anthropic did not come to it within the message batch's day")

T = TypeVar("T")


class Answered(Protocol):
    """What is told of a batch while it is being answered, to whoever writes its log."""

    message_batch: str | None
    is_unclear: bool
    """Whether there may be a message batch whose id nobody has."""

    def submitted(self, message_batch: str) -> None: ...

    def add(self, end: End | None) -> None: ...


class MessageBatchSubmitter:
    """`room` returns once the log takes more."""

    def __init__(
        self,
        log: TurnLog,
        tombstones: Tombstones,
        blobs: BlobLoader,
        door: MessageBatches,
        room: Callable[[], Awaitable[None]],
    ) -> None:
        self._log = log
        self._tombstones = tombstones
        self._blobs = blobs
        self._door = door
        self._room = room
        self._judge = json_schema.SchemaChecker(wait_s=JUDGE_WAIT_S)

    async def answer(self, key: TurnKey, turn: Turn, attempt: int, lines: Sequence[bytes], told: Answered) -> None:
        """Has all of `lines` answered. `turn` is the batch as it was before `attempt`, which is ours.

        Raises BackendError when they never will be, FenceLost, LogError.
        """
        name = told.message_batch
        if name is None and told.is_unclear:
            name = await self._found(key, turn, len(lines))
            told.is_unclear = False
        if name is None:
            name = await self._created(key, turn, attempt, lines, told)
        told.submitted(name)
        await self._until_ended(name)
        await self._write_all(key, name, lines, told, is_over=False)

    async def stop(self, key: TurnKey, turn: Turn, lines: Sequence[bytes], told: Answered) -> bool:
        """Cancels what runs of a batch that has ended, and writes what was answered, which is paid for.

        Whether all of that is written: of nothing else anybody paid. Raises LogError.
        """
        assert turn.asked_at is not None  # noqa: S101
        left = turn.asked_at + LIFE - datetime.now(UTC)
        # What stands in the log is what another may have gone on with.
        name = (turn.progress.message_batch if turn.progress is not None else None) or told.message_batch
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())):
                if name is None and told.is_unclear:
                    name = await self._found(key, turn, len(lines))
                if name is None:
                    return True
                await self.cancel(name)
                await self._until_ended(name)
                # Of what was deleted nothing is written any more.
                if not await self._log.is_known(key):
                    return False
                await self._write_all(key, name, lines, told, is_over=True)
        except (TimeoutError, BackendError) as error:
            logger.warning("message batch left as it is", turn=key.turn, message_batch=name, error=str(error))
            return False
        return True

    async def cancel(self, name: str) -> None:
        """Raises BackendError when it cannot be."""
        await self._patiently(lambda: self._door.cancel(name))

    async def _found(self, key: TurnKey, turn: Turn, count: int) -> str | None:
        """The message batch that was made by somebody who died before they could say so; None: there is none.

        Whose a batch is can only be seen once it has ended. Until all that may be it are known not to be, there may be
        one.
        """
        assert turn.asked_at is not None  # noqa: S101
        first, last = turn.asked_at - SKEW, datetime.now(UTC) + SETTLED
        ours: set[str] = {batch.child_key(key, number).turn for number in range(count)}
        others: set[str] = set()
        for counted_attempts in itertools.count():
            is_settled = datetime.now(UTC) >= last
            made = await self._patiently(lambda: self._door.made_since(first))
            maybe = [
                one for one in made if one.requests == count and one.created_at <= last + SKEW and one.id not in others
            ]
            for one in maybe:
                if one.has_ended and await self._is_of(one, ours):
                    return one.id
                if one.has_ended:
                    others.add(one.id)
            if is_settled and all(one.has_ended for one in maybe):
                return None
            await asyncio.sleep(wait_s(counted_attempts))
        raise AssertionError("it is looked for until it is known")

    async def _is_of(self, made: MessageBatch, ours: set[str]) -> bool:
        async def look() -> bool:
            async with aclosing(self._door.results(made.id)) as results:
                line = await anext(results, None)
                return line is not None and line.custom_id in ours

        try:
            return await self._patiently(look)
        except BackendError:
            # Deleted there meanwhile: not by us.
            return False

    async def _created(self, key: TurnKey, turn: Turn, attempt: int, lines: Sequence[bytes], told: Answered) -> str:
        bodies, headers = await self._bodies(key, lines)
        for counted_attempts in itertools.count():
            # Whoever stood still meanwhile has lost the batch, and another has it answered.
            await self._require_ours(key, attempt)
            told.is_unclear = True
            creating = asyncio.create_task(self._door.create(bodies, headers))
            try:
                made = await asyncio.shield(creating)
            except asyncio.CancelledError:
                # It may be made while it is given up, and who stops the batch is to know.
                await asyncio.wait({creating}, timeout=ANSWER_WAIT_S)
                if creating.done() and creating.exception() is None:
                    told.submitted(creating.result().id)
                creating.cancel()
                raise
            except BackendError as error:
                logger.warning("no message batch yet", turn=key.turn, code=error.code, error=error.message)
                if error.code not in NOT_MADE and (name := await self._found(key, turn, len(lines))) is not None:
                    return name
                told.is_unclear = False
                if error.code in REFUSED:
                    raise
                await asyncio.sleep(max(wait_s(counted_attempts), min(error.retry_after_s or 0.0, LOOK_MAX_S)))
            else:
                logger.info("message batch", turn=key.turn, message_batch=made.id, of=len(lines))
                return made.id
        raise AssertionError("it is tried until it is made or refused")

    async def _bodies(self, key: TurnKey, lines: Sequence[bytes]) -> tuple[dict[str, bytes], dict[str, str]]:
        """Each input as Anthropic is asked, by its turn's id; and the headers, which are the same for all."""
        bodies: dict[str, bytes] = {}
        headers: dict[str, str] = {}
        for number, line in enumerate(lines):
            request = batch.decode_input(line)
            async with self._blobs.load(key.tenant, build_call(request)) as call:
                bodies[batch.child_key(key, number).turn] = body_of(call, model=call.model)
            if request.betas:
                headers["anthropic-beta"] = ",".join(request.betas)
            if request.api_version:
                headers["anthropic-version"] = request.api_version
            if number % BREATHES_EVERY == 0:
                await asyncio.sleep(0)
        return bodies, headers

    async def _require_ours(self, key: TurnKey, attempt: int) -> None:
        turn = await self._log.turn(key)
        if turn.end is not None or turn.attempt > attempt:
            raise FenceLost(f"{key.turn} is carried by another, or has ended")

    async def _until_ended(self, name: str) -> None:
        for counted_attempts in itertools.count():
            if (await self._patiently(lambda: self._door.retrieve(name))).has_ended:
                return
            await asyncio.sleep(wait_s(counted_attempts))

    async def _write_all(
        self, key: TurnKey, name: str, lines: Sequence[bytes], told: Answered, *, is_over: bool
    ) -> None:
        """Writes each result as its turn. `is_over`: what was not answered was never asked, and is nobody's turn."""
        left: dict[str, int] = {batch.child_key(key, number).turn: number for number in range(len(lines))}

        async def write(custom_id: str, result: Result | Failure) -> None:
            number = left.pop(custom_id)
            told.add(
                await self._written(batch.child_key(key, number), batch.child_request(key, lines[number]), name, result)
            )

        async def write_some(some: dict[str, Result]) -> None:
            await self._room()
            for failed in await asyncio.gather(*(write(*one) for one in some.items()), return_exceptions=True):
                if isinstance(failed, BaseException):
                    raise failed
            some.clear()

        async def read() -> None:
            some: dict[str, Result] = {}
            async with aclosing(self._door.results(name)) as results:
                async for line in results:
                    if line.custom_id in left and not (is_over and isinstance(line.result, Canceled | Expired)):
                        some[line.custom_id] = line.result
                    if len(some) == WRITTEN_AT_ONCE:
                        await write_some(some)
            await write_some(some)

        await self._patiently(read)
        if not is_over:
            for custom_id in tuple(left):
                await write(custom_id, NO_RESULT)

    async def _written(self, child: TurnKey, request: Request, name: str, result: Result | Failure) -> End | None:
        """The end of one input's turn, all of which is written; None when it was deleted."""
        if await self._tombstones.exists(child):
            return None
        if (end := await self._end_of(child)) is not None:
            return end
        writer = Writer(self._log, child)
        try:
            await writer.add(request)
            # Its name stands for who answers, and not for who writes: another writes the same.
            await writer.add(
                Attempt(prev=writer.last, attempt=1, generator=name, backend=MESSAGE_BATCHES, mode="fresh")
            )
            outcome, failure = await self._say(writer, result)
            schema_valid = await self._fits(request, writer.turn, child) if outcome == "completed" else None
            end = build_end(writer.turn, outcome, failure, schema_valid=schema_valid)
            await writer.add(end)
        except FenceLost:
            # Cancelled or deleted by somebody who was quicker.
            return await self._end_of(child)
        metrics.ended(end)
        return end

    async def _say(self, writer: "Writer", result: Result | Failure) -> tuple[Outcome, Failure | None]:
        """How the turn ends, with all that was answered written."""
        match result:
            case Succeeded(message):
                try:
                    for event in events_of(priced(message)):
                        await writer.add(Event(prev=writer.last, attempt=1, event=event))
                except BackendError as error:
                    return "failed", Failure(error.code, error.message)
                except EntryTooLarge:
                    return "failed", Failure("backend_broken", "the answer has a part that is too long to be stored")
                return "completed", None
            case Errored() as errored:
                return "failed", Failure(errored.failure.code, errored.failure.message)
            case Canceled():
                return "cancelled", None
            case Expired():
                return "failed", TOO_LATE
            case Failure():
                return "failed", result

    async def _fits(self, request: Request, turn: Turn, child: TurnKey) -> bool | None:
        """It is not asked again: what is wanted cheaply is asked once."""
        schema = schema_of(request.options)
        if schema is None or turn.stop.stop_reason in UNFINISHED:
            return None
        try:
            return await self._judge.find_mismatch(schema, turn.text, child.tenant) is None
        except SandboxFailed as error:
            logger.warning("answer not judged", turn=child.turn, error=str(error))
            return None

    async def _end_of(self, child: TurnKey) -> End | None:
        try:
            return (await self._log.turn(child)).end
        except TurnUnknown:
            return None

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` comes to, asked until it does: what is there is paid for. Raises BackendError if it is not."""
        for counted_attempts in itertools.count():
            try:
                return await ask()
            except BackendError as error:
                if error.code == "backend_refused_request":
                    raise
                logger.warning("message batches do not answer", code=error.code, error=error.message)
                await asyncio.sleep(max(wait_s(counted_attempts), min(error.retry_after_s or 0.0, LOOK_MAX_S)))
        raise AssertionError("it is asked until it is answered or refused")


class Writer:
    """One turn's log, written from its beginning. What stands there already, byte for byte, is passed over."""

    def __init__(self, log: TurnLog, key: TurnKey) -> None:
        self._log = log
        self._key = key
        self._chain: Chain = START
        self.turn: Turn = EMPTY_TURN

    @property
    def last(self) -> Seq:
        return self._chain.last

    async def add(self, entry: Entry) -> None:
        """Raises FenceLost when something else stands there, LogUnavailable, EntryTooLarge."""
        self._chain = await appended(self._log.append, self._key, self._chain, entry)
        now = self.turn.asked_at or datetime.now(UTC)
        self.turn = fold([Stored(self._chain.last, now, entry)], self.turn)


def priced(message: dict[str, Any]) -> dict[str, Any]:
    """`message`, which costs what a batch's do, whether it says so or not."""
    usage = message.get("usage")
    return message | {"usage": usage | {"service_tier": "batch"}} if isinstance(usage, dict) else message


def wait_s(counted_attempts: int) -> float:
    return min(LOOK_S * 2.0 ** min(counted_attempts, 16), LOOK_MAX_S)
