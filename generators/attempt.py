"""Carries one turn to its end: fold, plan, call the model, append what it says; again, until an `end` is stored.

Only one append is in flight at a time, and whoever is refused stops: then the turn is somebody else's, or has ended.
"""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from generators import metrics
from generators.backends import Backend, Call
from generators.blobs import Blobs
from generators.continuation import Continuation, call_after, call_of, continuation_of
from generators.meter import Meter, closing
from generators.outbox import Outbox
from generators.plan import Close, Complete, Fail, Go, Judge, Leave, judged, plan
from generators.retry import Retry
from generators.rota import Rotas, Source
from generators.structured import corrected
from proto import judge
from proto.chain import Chain
from proto.ending import ending
from proto.entries import Attempt, Entry, Event, Failure, Outcome, Request, Stored
from proto.errors import BackendError, FenceLost, LogFull, Unfinished
from proto.fold import Turn, fold
from proto.log import TurnLog
from proto.subjects import TurnKey
from proto.usage import NUSD_PER_USD

logger = structlog.get_logger()

FULL_WAIT_S = 1.0


class Carrier:
    """What a generator carries turns with. It holds nothing of any turn."""

    def __init__(
        self,
        log: TurnLog,
        blobs: Blobs,
        backends: Mapping[str, Backend],
        rotas: Rotas,
        retry: Retry,
        *,
        name: str,
        attempts_max: int,
    ) -> None:
        """`backends` are all that `rotas` name."""
        self._log = log
        self._blobs = blobs
        self._backends = backends
        self._rotas = rotas
        self._retry = retry
        self._name = name
        self._attempts_max = attempts_max
        self._judge = judge.Judge()

    async def carry(self, key: TurnKey, deadline_s: float) -> Turn:
        """Works on a turn until its log holds an `end`; returns its fold with it.

        After `deadline_s` seconds the turn fails; its text so far is kept. Raises FenceLost when another writer has
        continued or ended the turn, LogUnavailable, TurnUnknown.
        """
        turn = await self._log.turn(key)
        metrics.SKIPPED.inc(turn.skipped)
        return await self._to_the_end(key, turn, asyncio.get_running_loop().time() + deadline_s)

    async def _to_the_end(self, key: TurnKey, turn: Turn, deadline: float) -> Turn:
        assert turn.request is not None  # noqa: S101  # a fold from the log has one, or TurnUnknown was raised
        cause, rota = "", self._rotas.of(turn.request.model, turn.backend)
        while True:
            match await self._next(key, turn):
                case Leave():
                    return turn
                case Complete(fits):
                    return await self._end(key, turn, "completed", fits=fits)
                case Close():
                    outbox = Outbox()
                    for event in closing(turn):
                        outbox.put(event)
                    outbox.close()
                    turn = await self._write(key, turn, outbox)
                case Fail(failure):
                    return await self._end(key, turn, "failed", Failure(failure.code, failure.message + cause))
                case Go() as go:
                    # Also for the lines of retry and the backend, which know of no turn.
                    with bound_contextvars(turn=key.turn, attempt=go.attempt):
                        turn, broken = await self._attempt(key, turn, go, rota.now, deadline)
                    if broken is None:
                        continue
                    after = rota.after(broken, has_begun=turn.message is not None)
                    if after is None:
                        failure = Failure(broken.code, broken.message, broken.retry_after_s)
                        return await self._end(key, turn, "failed", failure)
                    if after.now != rota.now:
                        metrics.FAILOVERS.labels(after.now.backend).inc()
                    rota, cause = after, f"; the last time: {broken.message}"
                    if rota.is_asked_again:
                        await self._retry.pause(go.attempt, broken)

    async def _next(self, key: TurnKey, turn: Turn) -> Leave | Complete | Close | Fail | Go:
        """What to do with the turn. An answer that has to fit a schema is judged first."""
        step = plan(turn, self._attempts_max)
        if not isinstance(step, Judge):
            return step
        try:
            misfit = await self._judge.misfit(step.schema, turn.text, key.tenant)
        except Unfinished as error:
            logger.warning("answer not judged", error=str(error))
            metrics.JUDGED.labels("unjudged").inc()
            return Complete()
        metrics.JUDGED.labels("fits" if misfit is None else "misfit").inc()
        return judged(turn, misfit, self._attempts_max)

    async def _attempt(
        self, key: TurnKey, turn: Turn, go: Go, source: Source, deadline: float
    ) -> tuple[Turn, BackendError | None]:
        """The fold after an attempt, and what broke the answer off before it was whole."""
        assert turn.request is not None  # noqa: S101
        logger.info("attempt", mode=go.mode, backend=source.backend)
        metrics.ATTEMPTS.labels(go.mode).inc()
        taken = Attempt(
            prev=turn.chain.last,
            attempt=go.attempt,
            generator=self._name,
            backend=source.backend,
            mode=go.mode,
            misfit=go.misfit,
        )
        chain = await self._append(key, turn.chain, taken)
        request, turn = turn.request, fold([stored(chain, turn, taken)], turn)
        # Only now: what breaks from here on was counted, and does not come back for ever.
        backend = self._backends[source.backend]
        call, continuation = asked(request, turn, go)
        meter = Meter(request, turn)
        model = source.model_id or backend.model_id(call.model)
        call = msgspec.structs.replace(call, model=model, tenant=key.tenant)
        outbox = Outbox()
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(key))
                writing = group.create_task(self._write(key, turn, outbox))
                broken = await self._listen(key, backend, call, continuation, meter, outbox, deadline)
                turn = await writing
                watching.cancel()
        except ExceptionGroup as several:
            # The writer and the watcher fail for one reason: the turn is not ours any more.
            raise several.exceptions[0] from several
        if broken is not None:
            logger.warning("attempt broken off", backend=source.backend, code=broken.code)
            metrics.BACKEND_FAILURES.labels(broken.code).inc()
        return turn, broken

    async def _listen(
        self,
        key: TurnKey,
        backend: Backend,
        call: Call,
        continuation: Continuation | None,
        meter: Meter,
        outbox: Outbox,
        deadline: float,
    ) -> BackendError | None:
        """Puts what the model says into the outbox; returns the error that broke it off, if one did."""
        try:
            # The deadline is for the model. It never interrupts an append: who does not know whether it stands
            # would be refused by its own entry.
            async with (
                asyncio.timeout_at(deadline),
                self._blobs.resolved(key.tenant, call) as whole,
                aclosing(self._retry.answer(backend, whole)) as answer,
            ):
                while not meter.is_passed and (raw := await anext(answer, None)) is not None:
                    placed = [(msgspec.Raw(raw), False)] if continuation is None else continuation.place(raw)
                    for event, is_hidden in placed:
                        outbox.put(event, is_hidden=is_hidden)
                        meter.add(event)
        except TimeoutError:
            return BackendError("deadline_exceeded", "the answer was not finished in time")
        except BackendError as error:
            return error
        finally:
            outbox.close()
        return None

    async def _write(self, key: TurnKey, turn: Turn, outbox: Outbox) -> Turn:
        """Appends what is put into the outbox until it is closed and empty; returns the fold with it."""
        written: list[Stored] = []
        chain = turn.chain
        while (event := await outbox.take()) is not None:
            raw, is_hidden = event
            entry = Event(prev=chain.last, attempt=chain.attempt, event=raw, is_hidden=is_hidden)
            with metrics.APPEND_S.time():
                chain = await self._append(key, chain, entry)
            written.append(stored(chain, turn, entry))
        return fold(written, turn)

    async def _watch(self, key: TurnKey) -> None:
        """Stops the attempt when somebody else ends the turn, also while the model is silent."""
        await self._log.until_ended(key)
        raise FenceLost(f"{key.turn} was ended by somebody else")

    async def _end(
        self, key: TurnKey, turn: Turn, outcome: Outcome, error: Failure | None = None, *, fits: bool | None = None
    ) -> Turn:
        if turn.end is not None:
            return turn
        end = ending(turn, outcome, error, fits=fits)
        chain = await self._append(key, turn.chain, end)
        metrics.ENDS.labels(outcome).inc()
        metrics.COST.inc(end.cost_nusd / NUSD_PER_USD)
        for kind in end.usage.__struct_fields__:
            metrics.USAGE.labels(kind).inc(getattr(end.usage, kind))
        return fold([stored(chain, turn, end)], turn)

    async def _append(self, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        return await appended(self._log, key, chain, entry)


async def appended(log: TurnLog, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
    """The chain with `entry`, however long the log is full."""
    while True:
        try:
            return await log.append(key, chain, entry)
        except LogFull:
            # New turns are refused before the last reserve is used, so this is an operator's emergency: old turns
            # leave with their retention, and what the model says meanwhile waits, joined, in the outbox.
            logger.error("the log is full; a running turn waits", turn=key.turn)  # noqa: TRY400
            await asyncio.sleep(FULL_WAIT_S)


def asked(request: Request, turn: Turn, go: Go) -> tuple[Call, Continuation | None]:
    """The call to make, and where its events belong if they continue what is there."""
    if go.mode == "continue":
        return corrected(call_after(request, turn), turn), continuation_of(request, turn)
    return corrected(call_of(request), turn), None


def stored(chain: Chain, turn: Turn, entry: Entry) -> Stored:
    """An entry just appended, for the fold. When the server stored it matters to nobody here."""
    assert turn.asked_at is not None  # noqa: S101
    return Stored(chain.last, turn.asked_at, entry)
