"""Carries one turn to its end: fold, plan, call the model, append what it says; again, until an `end` is stored.

Only one append is in flight at a time, and whoever is refused stops: then the turn is somebody else's, or has ended.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from tailrace.generators import metrics
from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.registry import ACTING
from tailrace.generators.budget import CostMeter, closing
from tailrace.generators.continuation import Continuation, build_call, build_continuation_call, map_continuation
from tailrace.generators.delta_buffer import DeltaBuffer, Outgoing
from tailrace.generators.failover import BackendOrders, Source
from tailrace.generators.hedging import Hedging, is_due, is_first
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.plan import (
    Acknowledge,
    CheckSchema,
    Complete,
    CutOff,
    Fail,
    LeaveToBatch,
    MakeAttempt,
    hedge,
    plan,
    plan_after_check,
)
from tailrace.generators.retry import Retry
from tailrace.generators.structured_output import corrected
from tailrace.proto.chain import Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Entry, Event, Failure, Outcome, Request, Stored
from tailrace.proto.errors import BackendError, CursorUnknown, FenceLost, LogFull, LogUnavailable, SandboxFailed
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime import json_schema
from tailrace.proto.subjects import TurnKey

Action = Acknowledge | LeaveToBatch | Complete | CutOff | Fail | MakeAttempt
logger = structlog.get_logger()

FULL_WAIT_S = 1.0
# Nobody stands at a counter here, and a batch may have a thousand answers judged: longer than in a gateway.
JUDGE_WAIT_S = 120.0
Append = Callable[[TurnKey, Chain, Entry], Awaitable[Chain]]
LATE = BackendError("deadline_exceeded", "the answer was not finished in time")


class TurnRunner:
    """What a generator carries turns with. It holds nothing of any turn."""

    def __init__(
        self,
        log: TurnLog,
        blobs: BlobLoader,
        backends: Mapping[str, Backend],
        rotas: BackendOrders,
        retry: Retry,
        *,
        name: str,
        attempts_max: int,
        hedging: Hedging | None = None,
    ) -> None:
        """`backends` are all that `rotas` name. Without `hedging` no call is made beside another."""
        self._log = log
        self._blobs = blobs
        self._backends = backends
        self._rotas = rotas
        self._retry = retry
        self._name = name
        self._attempts_max = attempts_max
        self._hedging = hedging
        self._judge = json_schema.SchemaChecker(wait_s=JUDGE_WAIT_S)

    async def carry(self, key: TurnKey, deadline_s: float, lease: str = "") -> Turn:
        """Works on a turn until its log holds an `end`; returns its fold with it. Or without, if another writes it.

        After `deadline_s` seconds of work, also of others before, the turn fails; its text is kept. Who makes a call
        beside a late one is told the `lease`. Raises FenceLost when another writer has continued or ended the turn,
        LogUnavailable, TurnUnknown.
        """
        turn = await self._log.turn(key)
        metrics.SKIPPED.inc(turn.skipped)
        return await self._to_the_end(key, turn, deadline_of(turn, deadline_s), lease)

    async def hedge(self, key: TurnKey, late: Seq, deadline_s: float) -> Turn:
        """Makes a call beside that of the attempt at `late`; if its token is first, carries the turn as `carry` does.

        Returns the fold without an end when the call came to nothing: the turn is the other's. Raises as `carry` does.
        """
        turn = await self._log.turn_upto(key, late)
        if turn.chain != Chain(late, turn.attempt) or turn.request is None:
            raise FenceLost(f"{key.turn} is not waited for any more")
        if self._rotas.of(turn.request.model, turn.backend).now.backend in ACTING:
            return turn
        return await self._to_the_end(key, turn, deadline_of(turn, deadline_s), first=hedge(turn))

    async def _to_the_end(
        self, key: TurnKey, turn: Turn, deadline: float, lease: str = "", *, first: MakeAttempt | None = None
    ) -> Turn:
        assert turn.request is not None  # noqa: S101  # a fold from the log has one, or TurnUnknown was raised
        cause, rota = "", self._rotas.of(turn.request.model, turn.backend)
        while True:
            step, first = first or await self._next(key, turn), None
            match step:
                case Acknowledge() | LeaveToBatch():
                    return turn
                case Complete(schema_valid):
                    return await self._end(key, turn, "completed", schema_valid=schema_valid)
                case CutOff():
                    outbox = DeltaBuffer()
                    for event in closing(turn):
                        outbox.put(event)
                    outbox.close()
                    turn = await self._write(key, turn, outbox, [])
                case Fail(failure):
                    return await self._end(key, turn, "failed", Failure(failure.code, failure.message + cause))
                case MakeAttempt() if asyncio.get_running_loop().time() >= deadline:
                    return await self._end(key, turn, "failed", Failure(LATE.code, LATE.message))
                case MakeAttempt() as go:
                    # Also for the lines of retry and the backend, which know of no turn.
                    with bound_contextvars(turn=key.turn, attempt=go.attempt):
                        turn, broken = await self._attempt(key, turn, go, rota.now, deadline, lease)
                    if turn.attempt < go.attempt:
                        # A hedge that came to nothing.
                        return turn
                    if broken is None:
                        continue
                    after = rota.after(broken, has_begun=turn.message is not None)
                    if after is None:
                        failure = Failure(broken.code, broken.message, broken.retry_after_s)
                        return await self._end(key, turn, "failed", failure)
                    if after.now != rota.now:
                        metrics.FAILOVERS.labels(after.now.backend).inc()
                    rota, cause = after, f"; the last time: {broken.message}"
                    if rota.is_repeat:
                        await self._retry.pause(go.attempt, broken)

    async def _next(self, key: TurnKey, turn: Turn) -> Action:
        """What to do with the turn. An answer that has to fit a schema is judged first."""
        step = plan(turn, self._attempts_max)
        if not isinstance(step, CheckSchema):
            return step
        try:
            misfit = await self._judge.find_mismatch(step.schema, turn.text, key.tenant)
        except SandboxFailed as error:
            logger.warning("answer not judged", error=str(error))
            metrics.JUDGED.labels("unjudged").inc()
            return Complete()
        metrics.JUDGED.labels("fits" if misfit is None else "misfit").inc()
        return plan_after_check(turn, misfit, self._attempts_max)

    async def _attempt(
        self, key: TurnKey, turn: Turn, go: MakeAttempt, source: Source, deadline: float, lease: str
    ) -> tuple[Turn, BackendError | None]:
        """The fold after an attempt, and what broke the answer off before it was whole.

        A hedge without a token leaves the turn as it is.
        """
        assert turn.request is not None  # noqa: S101
        request = turn.request
        logger.info("attempt", mode=go.mode, backend=source.backend, is_hedge=go.is_hedge)
        taken = Attempt(
            prev=turn.chain.last,
            attempt=go.attempt,
            generator=self._name,
            backend=source.backend,
            mode=go.mode,
            misfit=go.misfit,
            is_hedge=go.is_hedge,
        )
        if not go.is_hedge:
            metrics.ATTEMPTS.labels(go.mode).inc()
            chain = await self._append(key, turn.chain, taken)
            turn = fold([stored(chain, turn, taken)], turn)
        # Only now: what breaks from here on was counted, and does not come back for ever. (No turn has two hedges.)
        hedging = self._hedging if go.is_hedge or is_due(go, source) else None
        backend = self._backends[source.backend]
        call, continuation = asked(request, turn, go)
        meter = CostMeter(request, turn, is_raced=hedging is not None)
        model = source.model_id or backend.model_id(call.model)
        call = msgspec.structs.replace(call, model=model, tenant=key.tenant)
        retry = msgspec.structs.replace(self._retry, tries_max=1) if go.is_hedge else self._retry
        # Whose opening stood in the log would be the first, and perhaps say nothing more.
        outbox = DeltaBuffer(is_held=hedging is not None)
        written: list[Stored] = []
        try:
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(self._watch(key))]
                if hedging is not None:
                    watching.append(group.create_task(self._race(key, turn, go, hedging, outbox, lease)))
                writing = group.create_task(self._write(key, turn, outbox, written, taken if go.is_hedge else None))
                saying = partial(retry.answer, backend)
                broken = await self._listen(key, saying, call, continuation, meter, outbox, deadline)
                turn = await writing
                for task in watching:
                    task.cancel()
        except ExceptionGroup as several:
            # The writer and the watchers fail for one reason: the turn is not ours any more.
            error = several.exceptions[0]
            if hedging is not None and not written and isinstance(error, FenceLost):
                await hedging.lost(key, request, go, meter.usage)
            raise error from several
        if hedging is not None and go.is_hedge and not written:
            await hedging.failed(key, request, go, meter.usage)
        if continuation is not None and continuation.repeated:
            logger.info("repetition left out", chars=continuation.repeated)
            metrics.REPETITIONS.inc()
        if broken is not None:
            logger.warning("attempt broken off", backend=source.backend, code=broken.code)
            metrics.BACKEND_FAILURES.labels(broken.code).inc()
        return turn, broken

    async def _race(
        self, key: TurnKey, turn: Turn, go: MakeAttempt, hedging: Hedging, outbox: DeltaBuffer, lease: str
    ) -> None:
        """Has another generator make the call, too, once the first token is late; raises FenceLost when it was first.

        Of a hedge: raises that when the other was. Either hears of it from the log alone.
        """
        if not go.is_hedge:
            with suppress(TimeoutError):
                async with asyncio.timeout(hedging.after_s):
                    await outbox.begun.wait()
                    return
            if not await hedging.ask(key, turn.chain.last, lease):
                return
        try:
            async with aclosing(self._log.follow(key, turn.chain.last)) as following:
                async for some in following:
                    for one in some:
                        if not is_first(one.entry, go.attempt, self._name):
                            raise FenceLost(f"another call of {key.turn} was first")
                        return
        except (LogUnavailable, CursorUnknown) as error:
            # Whoever does not hear of it is told by the fence.
            logger.debug("race not followed", turn=key.turn, error=str(error))

    async def _listen(
        self,
        key: TurnKey,
        saying: Callable[[Call], AsyncGenerator[bytes, None]],
        call: Call,
        continuation: Continuation | None,
        meter: CostMeter,
        outbox: DeltaBuffer,
        deadline: float,
    ) -> BackendError | None:
        """Puts what the model says into the outbox; returns the error that broke it off, if one did."""
        try:
            # The deadline is for the model. It never interrupts an append: who does not know whether it stands
            # would be refused by its own entry.
            async with (
                asyncio.timeout_at(deadline),
                self._blobs.load(key.tenant, call) as whole,
                aclosing(saying(whole)) as answer,
            ):
                while not meter.is_passed and (raw := await anext(answer, None)) is not None:
                    placed = [Outgoing(msgspec.Raw(raw))] if continuation is None else continuation.place(raw)
                    for event, is_hidden, left_out in placed:
                        outbox.put(event, is_hidden=is_hidden, left_out=left_out)
                        meter.add(event, left_out)
        except TimeoutError:
            return LATE
        except BackendError as error:
            return error
        finally:
            outbox.close()
        return None

    async def _write(
        self, key: TurnKey, turn: Turn, outbox: DeltaBuffer, written: list[Stored], hedge: Attempt | None = None
    ) -> Turn:
        """Appends what is put into the outbox until it is closed and empty; returns the fold with it.

        What stands is added to `written`. A `hedge` is stored before its first token, and without one not at all.
        """
        chain = turn.chain
        while (event := await outbox.take()) is not None:
            if hedge is not None:
                if not outbox.begun.is_set():
                    break
                chain = await self._append(key, chain, hedge)
                written.append(stored(chain, turn, hedge))
                metrics.ATTEMPTS.labels(hedge.mode).inc()
                metrics.HEDGES.labels("won").inc()
                hedge = None
            raw, is_hidden, left_out = event
            entry = Event(prev=chain.last, attempt=chain.attempt, event=raw, is_hidden=is_hidden, left_out=left_out)
            with metrics.APPEND_S.time():
                chain = await self._append(key, chain, entry)
            written.append(stored(chain, turn, entry))
        return fold(written, turn)

    async def _watch(self, key: TurnKey) -> None:
        """Stops the attempt when somebody else ends the turn, also while the model is silent."""
        await self._log.until_ended(key)
        raise FenceLost(f"{key.turn} was ended by somebody else")

    async def _end(
        self,
        key: TurnKey,
        turn: Turn,
        outcome: Outcome,
        error: Failure | None = None,
        *,
        schema_valid: bool | None = None,
    ) -> Turn:
        if turn.end is not None:
            return turn
        end = build_end(turn, outcome, error, schema_valid=schema_valid)
        chain = await self._append(key, turn.chain, end)
        metrics.ended(end)
        return fold([stored(chain, turn, end)], turn)

    async def _append(self, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        return await appended(self._log.append, key, chain, entry)


async def appended(append: Append, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
    """The chain with `entry`, however long the log is full."""
    while True:
        try:
            return await append(key, chain, entry)
        except LogFull:
            # New turns are refused before the last reserve is used, so this is an operator's emergency: old turns
            # leave with their retention, and what the model says meanwhile waits, joined, in the outbox.
            logger.error("the log is full; a running turn waits", turn=key.turn)  # noqa: TRY400
            await asyncio.sleep(FULL_WAIT_S)


def deadline_of(turn: Turn, deadline_s: float) -> float:
    """In the loop's time: what was worked on the turn before counts by the log's clock, and none is read here."""
    return asyncio.get_running_loop().time() + deadline_s - turn.worked_s


def asked(request: Request, turn: Turn, go: MakeAttempt) -> tuple[Call, Continuation | None]:
    """The call to make, and where its events belong if they continue what is there."""
    if go.mode == "continue":
        return corrected(build_continuation_call(request, turn), turn), map_continuation(request, turn)
    return corrected(build_call(request), turn), None


def stored(chain: Chain, turn: Turn, entry: Entry) -> Stored:
    """An entry just appended, for the fold. When the server stored it matters to nobody here."""
    assert turn.asked_at is not None  # noqa: S101
    return Stored(chain.last, turn.asked_at, entry)
