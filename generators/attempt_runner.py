"""AttemptRunner: makes one attempt at a turn. It calls the model and appends its events.

Optional features plug in: the filters change the call, the sinks inspect events, the races run a second call.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from typing import NamedTuple, Protocol

import msgspec
import structlog

from tailrace.generators import metrics
from tailrace.generators.backends.large_events import LARGE_BYTES
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Sink, wait_event
from tailrace.generators.continuation import ContinuationMapper, FilterCall, prepare_call
from tailrace.generators.delta_buffer import DeltaBuffer
from tailrace.generators.dropped_text import DroppedTextMeter
from tailrace.generators.error_frames import free_frames
from tailrace.generators.event_writer import EventWriter
from tailrace.generators.model_caller import Route
from tailrace.generators.pauses import hide_pause
from tailrace.generators.plan import MakeAttempt
from tailrace.proto import events
from tailrace.proto.entries import Attempt, Event, Request
from tailrace.proto.errors import BackendError, EntryTooLarge, FenceLost
from tailrace.proto.fold import Folding, Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.log_server import LiveFeed
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.runtime.race import run_until

logger = structlog.get_logger()

# The time limit of each step of a cancelled attempt: a supervisor kills a process some seconds after its grace period.
CLEANUP_S_MAX = 1.0
LATE = BackendError("deadline_exceeded", "the answer was not finished in time")

OpenAnswer = AbstractAsyncContextManager[tuple[ModelEvent, AsyncIterator[ModelEvent]]]
WrapSink = Callable[[Sink, Request, Turn], Sink]
"""Wraps the sink of an attempt in one that inspects its events. May raise CloseCall, so that no call is made."""


class TurnEnded(FenceLost):
    """Another process has ended the turn `key`, at the time `at` of the log."""

    def __init__(self, key: TurnKey, at: datetime) -> None:
        super().__init__(f"{key.turn} was ended by another process")
        self.at = at


class RaceLost(FenceLost):
    """The other of two parallel calls has the turn."""


class LeaseShared(asyncio.CancelledError):
    """A drain has stopped one of two parallel calls before its first token. The lease stays with the other call.

    If that one has failed as well, the turn is delivered again when the lease expires.
    """


class Race(Protocol):
    """The hooks of an attempt during which another call may run for the same turn."""

    buffer: DeltaBuffer
    has_rival: bool
    """Whether another call was started. It stays True when that call fails, which this process does not learn."""

    def wrap(self, sink: Sink) -> Sink: ...

    async def watch(self) -> None:
        """Runs beside the call. Raises FenceLost when the other call has the turn."""
        ...

    async def finish(self, *, has_stored: bool, error: BaseException | None) -> None:
        """Is called once, after the attempt, with the error that stopped it; a drain stops it with CancelledError.

        `has_stored`: the call has stored an event; for a second call, its Attempt entry is sufficient. Raises RaceLost
        instead of `error` if the other call was first.
        """
        ...


class Races(Protocol):
    """Decides which attempts may be raced: whether a second call may run beside the first one."""

    def race(self, key: TurnKey, turn: Turn, action: MakeAttempt, lease: str) -> Race: ...


class NoRace:
    """The Race of an attempt whose call is the only one."""

    has_rival = False

    def __init__(self) -> None:
        self.buffer = DeltaBuffer()

    def wrap(self, sink: Sink) -> Sink:
        return sink

    async def watch(self) -> None: ...

    async def finish(self, *, has_stored: bool, error: BaseException | None) -> None: ...


class PlannedAttempt(NamedTuple):
    """An attempt that is about to be made."""

    key: TurnKey
    turn: Turn
    """The fold before the attempt. In `_call`, it has the entry of the attempt, unless it is a second call."""
    action: MakeAttempt
    route: Route
    deadline: float
    """The time at which the model's call is closed, by the loop's clock."""
    lease: str
    """The lease of the turn, for a process that makes a second call."""
    cause: str | None = None
    """Why the attempt follows another one of this process; see Attempt.cause."""


def put_wait(buffer: DeltaBuffer, obstacle: str) -> None:
    """Stores, as a hidden event, that the turn waits for the model because of `obstacle` (R135)."""
    buffer.put(wait_event(obstacle))


class AttemptRunner:
    """Makes attempts. Holds no state of any turn."""

    def __init__(
        self,
        log: TurnLog,
        writer: EventWriter,
        *,
        name: str,
        filters: Sequence[FilterCall],
        sinks: Sequence[WrapSink],
        races: Races | None,
    ) -> None:
        """`name` identifies this process in the log. Without `races` each attempt makes the only call.

        `filters` change each call, in this order. The last of `sinks` receives the model's events first, and each
        passes them on to the one before it.
        """
        self._log = log
        self._writer = writer
        self._name = name
        self._filters = filters
        self._sinks = sinks
        self._races = races

    async def run(self, planned: PlannedAttempt, traceparent: str | None) -> tuple[Turn, BackendError | None]:
        """Returns the fold after an attempt, and the error that broke the answer off, if any.

        A second call that receives no token appends nothing. `traceparent` is stored in the attempt's entry. Raises
        FenceLost when another writer has the turn, LogUnavailable, and LeaseShared.
        """
        key, turn, action, route, *_ = planned
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
            cause=planned.cause,
            reason=action.reason,
        )
        folding = Folding(turn)
        if action.is_second:
            return await self._call(planned, folding, pending_attempt=attempt)
        # Subscribe before the append: its fence shows that no end came earlier, and the feed shows later ones.
        async with self._log.subscribe(key, "end") as ends:
            # Append before anything that may raise: an attempt that breaks its generator must count against the limit.
            await self._writer.append_attempt(key, folding, attempt)
            return await self._call(planned._replace(turn=folding.build()), folding, ends=ends)

    async def _call(
        self,
        planned: PlannedAttempt,
        folding: Folding,
        *,
        ends: LiveFeed | None = None,
        pending_attempt: Attempt | None = None,
    ) -> tuple[Turn, BackendError | None]:
        """Calls the model and appends its events; returns as `run` does.

        `ends` has every end that was stored after `planned.turn`; without it the log is read. `pending_attempt` is
        appended before the first event, or not at all.
        """
        key, turn, action, route, _, lease, _ = planned
        race = self._races.race(key, turn, action, lease) if self._races else NoRace()
        call, continuation = prepare_call(turn, action.mode, self._filters)
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [group.create_task(self._raise_when_ended(key, ends)), group.create_task(race.watch())]
                sink = race.wrap(race.buffer.put)
                opened = route.open(call, key, is_single=action.is_second, note_wait=partial(put_wait, race.buffer))
                reading = group.create_task(self._read_model(planned, opened, sink, race.buffer, continuation))
                await group.create_task(self._writer.write(key, folding, race.buffer, pending_attempt))
                error = await reading
                for task in watchers:
                    task.cancel()
        except asyncio.CancelledError as stopped:
            await self._give_back(planned, race, folding, stopped)
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
            free_frames(several)
            # Another call would be paid for, and would bring the same event.
            return folding.build(), BackendError("entry_too_large", f"an event of the answer cannot be stored: {cause}")
        await race.finish(has_stored=folding.chain != turn.chain, error=None)
        if continuation is not None and continuation.repeated:
            logger.info("repetition left out", chars=continuation.repeated)
            metrics.REPETITIONS.inc()
        if error is not None:
            logger.warning("attempt broke off", backend=route.backend, **error.log_fields)
            metrics.BACKEND_FAILURES.labels(error.code).inc()
        return folding.build(), error

    async def _read_model(
        self,
        planned: PlannedAttempt,
        opened: OpenAnswer,
        sink: Sink,
        buffer: DeltaBuffer,
        continuation: ContinuationMapper | None,
    ) -> BackendError | None:
        """Puts the model's events into `sink`; returns the error that broke the answer off, if any."""
        meter = DroppedTextMeter(sink)
        try:
            sink = meter.wrap(partial(self._wrap, planned.turn, continuation))
            # The deadline limits the model's call and never interrupts an append: a writer that does not know whether
            # its entry is stored would be refused at its next append, by its own entry.
            async with asyncio.timeout_at(planned.deadline), opened as (first, rest):
                sink(first)
                async for event in rest:
                    sink(hide_pause(event, planned.turn) if event.kind == "message_delta" else event)
                    if len(event.raw) > LARGE_BYTES:
                        # The call is not read on before the event is stored: large ones must not pile up in memory.
                        await buffer.drained()
        except CloseCall:
            return None
        except TimeoutError:
            return LATE
        except BackendError as error:
            return error
        finally:
            meter.report()
            buffer.close()
        return None

    def _wrap(self, turn: Turn, continuation: ContinuationMapper | None, sink: Sink) -> Sink:
        """Returns the sink of the model's events: `sink` as the continuation and the features wrap it."""
        assert turn.request is not None  # noqa: S101  # the fold of a turn that is run has one
        if continuation is not None:
            sink = continuation.wrap(sink)
        for wrap in self._sinks:
            sink = wrap(sink, turn.request, turn)
        return sink

    async def _give_back(
        self, planned: PlannedAttempt, race: Race, folding: Folding, stopped: asyncio.CancelledError
    ) -> None:
        """Ends an attempt that a drain has stopped. Raises LeaseShared if the turn stays with the other call."""
        has_stored = folding.chain != planned.turn.chain
        is_shared = race.has_rival and not has_stored
        # An entry of this call would take the fence from the other one.
        if folding.chain.attempt == planned.action.attempt and not is_shared:
            await self._hand_over(planned.key, folding.build())
        await run_until(race.finish(has_stored=has_stored, error=stopped), timeout_s=CLEANUP_S_MAX)
        if is_shared:
            raise LeaseShared from stopped

    async def _hand_over(self, key: TurnKey, turn: Turn) -> None:
        """Stores a hidden event which says that this process gives the turn back (R73).

        An attempt that has stored nothing new then does not count, and the timeline tells a restart from a death.
        """
        if turn.chain.is_ended:
            return
        appending = await run_until(self._append_handover(key, turn), timeout_s=CLEANUP_S_MAX)
        if not appending.cancelled() and (error := appending.exception()) is not None:
            # Another writer has the turn, or the log does not answer.
            logger.info("turn given back without a mark", turn=key.turn, why=str(error))

    async def _append_handover(self, key: TurnKey, turn: Turn) -> None:
        """Raises FenceLost when another writer has the turn, LogUnavailable."""
        entry = Event(prev=turn.chain.last, attempt=turn.attempt, event=events.HANDOVER, is_hidden=True)
        try:
            await self._log.append(key, turn.chain, entry)
        except FenceLost:
            # An append of this attempt may have been under way, and is stored.
            now = await self._log.read_turn(key, turn)
            if now.chain.is_ended or now.attempt != turn.attempt:
                raise
            await self._log.append(key, now.chain, msgspec.structs.replace(entry, prev=now.chain.last))

    async def _raise_when_ended(self, key: TurnKey, ends: LiveFeed | None) -> None:
        """Stops the attempt with TurnEnded when another process ends the turn, even while the model sends nothing."""
        raise TurnEnded(key, await self._log.wait_for_end(key, ends))
