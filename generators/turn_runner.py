"""TurnRunner: folds a turn's log, plans, calls the model and appends its events, in a loop until an `end` is stored.

One append of a turn is in flight at a time. A runner whose append is refused stops: another writer has the turn, or the
turn has ended. Optional features plug in: the planner and its cuts decide the next action, the routes choose a backend,
the sinks inspect events, `observe` surrounds an attempt, the races run a second call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Protocol

import structlog
from structlog.contextvars import bound_contextvars

from tailrace.generators import metrics
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Sink
from tailrace.generators.continuation import Continuation, prepare_call
from tailrace.generators.delta_buffer import DeltaBuffer, buffer_of
from tailrace.generators.model_caller import ModelCaller, Route
from tailrace.generators.plan import Acknowledge, AppendEvents, Complete, Fail, Leave, MakeAttempt
from tailrace.generators.planner import Planner
from tailrace.proto import events
from tailrace.proto.chain import Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Entry, Event, Failure, Outcome, Request, Stored
from tailrace.proto.errors import BackendError, EntryTooLarge, FenceLost, LogFull
from tailrace.proto.fold import EMPTY_TURN, Folding, Turn, fold
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.log_server import LiveFeed
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

FULL_WAIT_S = 1.0
# After an append that took this long, the next delta waits for others until JOIN_S after that append began. So slow
# appends, of a busy disk or process, become fewer, each with more deltas. On an idle machine an append takes 1 ms, and
# 7 ms with an fsync for each.
SLOW_APPEND_S = 0.02
JOIN_S = 0.05
# The supervisor kills a process some seconds after its grace period.
HANDOVER_S_MAX = 1.0
LATE = BackendError("deadline_exceeded", "the answer was not finished in time")

Append = Callable[[TurnKey, Chain, Entry], Awaitable[Chain]]
OpenAnswer = AbstractAsyncContextManager[tuple[ModelEvent, AsyncIterator[ModelEvent]]]
PrepareTurn = Callable[[TurnKey, Turn], Awaitable[Turn | None]]
"""Returns the turn as it is to be run, or None if it cannot begin yet. Raises BackendError if it never can."""
ObserveAttempt = Callable[[TurnKey, Turn, MakeAttempt], AbstractContextManager[str | None]]
"""Returns the context in which an attempt runs. It yields the `traceparent` that its entry stores, or None."""
WrapSink = Callable[[Sink, Request, Turn], Sink]
"""Wraps the sink of an attempt in one that inspects its events. May raise CloseCall, so that no call is made."""


class TurnEnded(FenceLost):
    """Another process has ended the turn `key`, at the time `at` of the log."""

    def __init__(self, key: TurnKey, at: datetime) -> None:
        super().__init__(f"{key.turn} was ended by another process")
        self.at = at


class Race(Protocol):
    """The hooks of an attempt during which another call may run for the same turn."""

    buffer: DeltaBuffer

    def wrap(self, sink: Sink) -> Sink: ...

    async def watch(self) -> None:
        """Runs beside the call. Raises FenceLost when the other call has the turn."""
        ...

    async def finish(self, *, has_stored: bool, error: Exception | None) -> None:
        """Is called once, after the attempt, with the error that stopped it.

        `has_stored`: the call has stored an event; for a second call, its Attempt entry is sufficient.
        """
        ...


class Races(Protocol):
    """Decides which attempts may be raced: whether a second call may run beside the first one."""

    def race(self, key: TurnKey, turn: Turn, action: MakeAttempt, lease: str) -> Race: ...


def not_observed(_key: TurnKey, _turn: Turn, _action: MakeAttempt) -> AbstractContextManager[None]:
    return nullcontext()


class NoRace:
    """The Race of an attempt whose call is the only one."""

    def __init__(self) -> None:
        self.buffer = DeltaBuffer()

    def wrap(self, sink: Sink) -> Sink:
        return sink

    async def watch(self) -> None: ...

    async def finish(self, *, has_stored: bool, error: Exception | None) -> None: ...


class TurnRunner:
    """Runs turns. Holds no state of any turn."""

    def __init__(
        self,
        log: TurnLog,
        model_caller: ModelCaller,
        planner: Planner,
        *,
        name: str,
        sinks: Sequence[WrapSink] = (),
        prepare: Sequence[PrepareTurn] = (),
        observe: ObserveAttempt = not_observed,
        races: Races | None = None,
        delta_interval_s: float = 0.0,
    ) -> None:
        """`name` identifies this process in the log. Without `races` each attempt makes the only call.

        `delta_interval_s` is the shortest time between the appends of two deltas.
        """
        self._log = log
        self._model_caller = model_caller
        self._planner = planner
        self._name = name
        self._sinks = sinks
        self._prepare = prepare
        self._observe = observe
        self._races = races
        self._delta_interval_s = delta_interval_s

    async def run(self, key: TurnKey, deadline_s: float, lease: str = "", known: Turn = EMPTY_TURN) -> Turn:
        """Runs a turn until its log holds an `end`; returns the fold.

        If another process is to store the end, or the turn cannot begin yet, returns the fold without one. The turn
        fails after `deadline_s` seconds of work on it, including the work of earlier generators; its text is kept.
        `lease` is passed to a process that makes a second call. `known` is a turn with nothing but its request: if the
        log has no more, which the fence of the first attempt shows, it is not read. Raises FenceLost when another
        writer has continued or ended the turn, LogUnavailable, TurnUnknown.
        """
        if known.request is not None:
            try:
                return await self.run_from(key, known, deadline_s, lease)
            except FenceLost:
                turn = await self._log.read_turn(key)
                if turn.attempt:
                    raise
                # It was stopped before its first attempt.
        else:
            turn = await self._log.read_turn(key)
        metrics.SKIPPED.inc(turn.skipped)
        return await self.run_from(key, turn, deadline_s, lease)

    async def run_from(
        self, key: TurnKey, turn: Turn, deadline_s: float, lease: str = "", *, first_action: MakeAttempt | None = None
    ) -> Turn:
        """Like `run`, from the fold `turn`, beginning with `first_action`.

        If `first_action` is a second call that ends without a token, returns the fold without an end: the other runner
        continues the turn.
        """
        try:
            for prepare in self._prepare:
                prepared = await prepare(key, turn)
                if prepared is None:
                    return turn
                turn = prepared
        except BackendError as refused:
            failure = Failure(refused.code, refused.message, refused.retry_after_s)
            return await self._end(key, turn, "failed", failure)
        if first_action is None:
            metrics.observe_start(turn)
        deadline = deadline_of(turn, deadline_s)
        last_error: BackendError | None = None
        route = self._model_caller.route(key, turn)
        while True:
            action = first_action or await self._planner.next_action(key, turn)
            first_action = None
            match action:
                case Acknowledge() | Leave():
                    return turn
                case Complete(schema_valid):
                    return await self._end(key, turn, "completed", schema_valid=schema_valid)
                case AppendEvents(closing):
                    folding = Folding(turn)
                    await self._write(key, folding, buffer_of(closing))
                    turn = folding.build()
                case Fail(failure):
                    return await self._end(key, turn, "failed", with_cause(failure, last_error))
                case MakeAttempt() if asyncio.get_running_loop().time() >= deadline:
                    return await self._end(key, turn, "failed", Failure(LATE.code, LATE.message))
                case MakeAttempt():
                    # Adds the turn to the log lines of retry.py and the backends, which do not know it.
                    with (
                        bound_contextvars(turn=key.turn, attempt=action.attempt),
                        self._observe(key, turn, action) as traceparent,
                    ):
                        turn, error = await self._attempt(key, turn, action, route, deadline, lease, traceparent)
                    if turn.attempt < action.attempt:
                        # A second call without a token has appended nothing: the turn is the other runner's.
                        return turn
                    if error is None:
                        continue
                    following = await route.after_failure(error, has_begun=turn.message is not None)
                    if following is None:
                        failure = Failure(error.code, error.message, error.retry_after_s)
                        return await self._end(key, turn, "failed", failure)
                    route = following
                    last_error = error

    async def _attempt(
        self,
        key: TurnKey,
        turn: Turn,
        action: MakeAttempt,
        route: Route,
        deadline: float,
        lease: str,
        traceparent: str | None,
    ) -> tuple[Turn, BackendError | None]:
        """Returns the fold after an attempt, and the error that broke the answer off, if any.

        A second call without a token leaves the turn as it is.
        """
        assert turn.request is not None  # noqa: S101  # a fold from the log has one, or TurnUnknown was raised
        logger.info("attempt", mode=action.mode, backend=route.backend, is_hedge=action.is_second)
        attempt = Attempt(
            prev=turn.chain.last,
            attempt=action.attempt,
            generator=self._name,
            backend=route.backend,
            mode=action.mode,
            misfit=action.misfit,
            is_hedge=action.is_second,
            traceparent=traceparent,
        )
        if action.is_second:
            return await self._call(key, turn, action, route, deadline, lease, Folding(turn), pending_attempt=attempt)
        # Subscribe before the append: its fence shows that no end came earlier, and the feed shows later ones.
        async with self._log.subscribe(key, "end") as ends:
            folding = Folding(turn)
            # Append before anything that may raise: an attempt that breaks its generator must count against the limit.
            await self._append_attempt(key, folding, attempt)
            turn = folding.build()
            return await self._call(key, turn, action, route, deadline, lease, folding, ends=ends)

    async def _call(
        self,
        key: TurnKey,
        turn: Turn,
        action: MakeAttempt,
        route: Route,
        deadline: float,
        lease: str,
        folding: Folding,
        *,
        ends: LiveFeed | None = None,
        pending_attempt: Attempt | None = None,
    ) -> tuple[Turn, BackendError | None]:
        """Calls the model and appends its events; returns as `_attempt` does.

        `ends` has every end that was stored after `turn`; without it the log is read. `pending_attempt` is appended
        before the first event, or not at all.
        """
        race = self._races.race(key, turn, action, lease) if self._races else NoRace()
        call, continuation = prepare_call(turn, action.mode)
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [group.create_task(self._raise_when_ended(key, ends)), group.create_task(race.watch())]
                sink = race.wrap(race.buffer.put)
                opened = route.open(call, key, is_single=action.is_second)
                reading = group.create_task(self._read_model(turn, opened, sink, race.buffer, continuation, deadline))
                await group.create_task(self._write(key, folding, race.buffer, pending_attempt))
                error = await reading
                for task in watchers:
                    task.cancel()
        except asyncio.CancelledError:
            if folding.chain.attempt == action.attempt:
                await self._hand_over(key, folding.build())
            raise
        except ExceptionGroup as several:
            # The first failure has cancelled the other tasks: FenceLost when another writer has the turn, but also
            # LogUnavailable, or EntryTooLarge when the server's `max_payload` is small.
            cause = several.exceptions[0]
            if isinstance(cause, TurnEnded):
                metrics.STOP_S.observe(age_s(cause.at))
            await race.finish(has_stored=folding.chain != turn.chain, error=cause)
            if not isinstance(cause, EntryTooLarge):
                raise cause from several
            # Another call would be paid for, and would bring the same event.
            return folding.build(), BackendError("entry_too_large", f"an event of the answer cannot be stored: {cause}")
        await race.finish(has_stored=folding.chain != turn.chain, error=None)
        if continuation is not None and continuation.repeated:
            logger.info("repetition left out", chars=continuation.repeated)
            metrics.REPETITIONS.inc()
        if error is not None:
            logger.warning("attempt broke off", backend=route.backend, code=error.code)
            metrics.BACKEND_FAILURES.labels(error.code).inc()
        return folding.build(), error

    async def _read_model(
        self,
        turn: Turn,
        opened: OpenAnswer,
        sink: Sink,
        buffer: DeltaBuffer,
        continuation: Continuation | None,
        deadline: float,
    ) -> BackendError | None:
        """Puts the model's events into `sink`; returns the error that broke the answer off, if any."""
        assert turn.request is not None  # noqa: S101
        try:
            for wrap in self._sinks:
                sink = wrap(sink, turn.request, turn)
            if continuation is not None:
                sink = continuation.wrap(sink)
            # The deadline limits the model's call and never interrupts an append: a writer that does not know whether
            # its entry is stored would be refused at its next append, by its own entry.
            async with asyncio.timeout_at(deadline), opened as (first, rest):
                sink(first)
                async for event in rest:
                    sink(event)
        except CloseCall:
            return None
        except TimeoutError:
            return LATE
        except BackendError as error:
            return error
        finally:
            buffer.close()
        return None

    async def _write(
        self, key: TurnKey, folding: Folding, buffer: DeltaBuffer, pending_attempt: Attempt | None = None
    ) -> None:
        """Appends the buffer's events until it is closed and empty, and folds each.

        `pending_attempt` is appended before its first event, or not at all.
        """
        loop, join_until = asyncio.get_running_loop(), 0.0
        while (event := await buffer.next(join_until)) is not None:
            if pending_attempt is not None:
                await self._append_attempt(key, folding, pending_attempt)
                pending_attempt = None
            entry = Event(
                prev=folding.chain.last,
                attempt=folding.chain.attempt,
                event=event.raw,
                is_hidden=event.is_hidden,
                left_out=event.left_out,
            )
            began, put_at, passed_at = loop.time(), buffer.put_at, time.monotonic()
            chain = await append_when_not_full(self._log.append, key, folding.chain, entry)
            stored_at = time.monotonic()
            metrics.APPEND_S.observe(stored_at - passed_at)
            # A delta after another event does not wait.
            join_until = 0.0
            if type(event.event) is events.BlockDelta:
                join_s = JOIN_S if loop.time() - began >= SLOW_APPEND_S else 0.0
                join_until = began + max(join_s, self._delta_interval_s)
                metrics.DELTA_STORED_S.observe(stored_at - put_at)
            folding.add(as_stored(chain, entry), event.event)

    async def _hand_over(self, key: TurnKey, turn: Turn) -> None:
        """Stores that this process gives the turn back, so that an attempt without any event yet does not count."""
        if turn.chain.is_ended or not turn.fruitless:
            return
        entry = Event(prev=turn.chain.last, attempt=turn.attempt, event=events.HANDOVER, is_hidden=True)
        # A task of its own: this one is cancelled, which each call of nats-py notices.
        appending = asyncio.create_task(self._log.append(key, turn.chain, entry))
        await asyncio.wait({appending}, timeout=HANDOVER_S_MAX)
        if not appending.done():
            appending.cancel()
        elif not appending.cancelled() and (error := appending.exception()) is not None:
            # An append that was under way may have been stored, or another writer has the turn.
            logger.info("turn given back without a mark", turn=key.turn, why=str(error))

    async def _raise_when_ended(self, key: TurnKey, ends: LiveFeed | None) -> None:
        """Stops the attempt with TurnEnded when another process ends the turn, even while the model sends nothing."""
        raise TurnEnded(key, await (self._log.wait_for_next_end(key, ends) if ends else self._log.wait_for_end(key)))

    async def _append_attempt(self, key: TurnKey, folding: Folding, attempt: Attempt) -> None:
        chain = await append_when_not_full(self._log.append, key, folding.chain, attempt)
        metrics.ATTEMPTS.labels(attempt.mode).inc()
        folding.add(as_stored(chain, attempt))

    async def _end(
        self,
        key: TurnKey,
        turn: Turn,
        outcome: Outcome,
        error: Failure | None = None,
        *,
        schema_valid: bool | None = None,
    ) -> Turn:
        end = build_end(turn, outcome, error, schema_valid=schema_valid)
        chain = await append_when_not_full(self._log.append, key, turn.chain, end)
        ended = fold([as_stored(chain, end)], turn)
        metrics.count_end(key, ended)
        metrics.observe_duration(ended)
        return ended


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


def with_cause(failure: Failure, error: BackendError | None) -> Failure:
    """Returns `failure` with the error of the last attempt, if there was one."""
    if error is None:
        return failure
    # More attempts would not help: the model, or a proxy, sends what this version cannot read.
    code = error.code if error.code == "backend_unreadable" else failure.code
    return Failure(code, f"{failure.message}; the last time: {error.message}")


def deadline_of(turn: Turn, deadline_s: float) -> float:
    """Returns the deadline in the loop's time. Earlier work on the turn counts, by the log's timestamps."""
    return asyncio.get_running_loop().time() + deadline_s - turn.worked_s


def as_stored(chain: Chain, entry: Entry) -> Stored:
    """Returns an entry just appended, for the fold, with the time of this machine's clock."""
    return Stored(chain.last, datetime.now(UTC), entry)
