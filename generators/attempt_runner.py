"""AttemptRunner: makes one attempt at a turn. It calls the model and appends its events.

Optional features plug in: the filters change the call, the sinks inspect events.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple

import msgspec
import structlog

from tailrace.generators import metrics
from tailrace.generators.backends import Call
from tailrace.generators.backends.api_errors import is_prefix_mismatch
from tailrace.generators.backends.large_events import LARGE_BYTES
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Sink, Wait, await_each, wait_event
from tailrace.generators.call_limits import CallLimits
from tailrace.generators.continuation import (
    ContinuationMapper,
    FilterCall,
    bind_thinking,
    prepare_call,
    wants_refusal,
)
from tailrace.generators.delta_ticks import DeltaTicks
from tailrace.generators.dropped_text import DroppedTextMeter
from tailrace.generators.error_frames import free_frames
from tailrace.generators.event_writer import EventWriter, append_when_not_full, as_stored
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
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.runtime.race import run_until

logger = structlog.get_logger()

# The time limit of each step of a cancelled attempt: a supervisor kills a process some seconds after its grace period.
CLEANUP_S_MAX = 1.0
LATE = BackendError("deadline_exceeded", "the answer was not finished in time")

WrapSink = Callable[[Sink, Request, Turn], Sink]
"""Wraps the sink of an attempt in a sink that inspects its events. May raise CloseCall, so that no call is made."""


class TurnEnded(FenceLost):
    """Another process has ended the turn `key`, at the time `at` of the log."""

    def __init__(self, key: TurnKey, at: datetime) -> None:
        super().__init__(f"{key.turn} was ended by another process")
        self.at = at


class PlannedAttempt(NamedTuple):
    """An attempt that is about to be made."""

    key: TurnKey
    turn: Turn
    """The fold before the attempt. In `_call`, it has the entry of the attempt."""
    action: MakeAttempt
    route: Route
    deadline: float
    """The time at which the model's call is closed, by the loop's clock."""
    cause: str | None = None
    """Why the attempt follows another one of this process; see Attempt.cause."""


class AttemptRunner:
    """Makes attempts. Holds no state of any turn."""

    def __init__(
        self,
        log: TurnLog,
        *,
        name: str,
        filters: Sequence[FilterCall],
        sinks: Sequence[WrapSink],
        limits: CallLimits,
        ticks: DeltaTicks,
    ) -> None:
        """`name` identifies this process in the log. See EventWriter for `ticks`.

        `filters` change each call, in this order. The last of `sinks` receives the model's events first, and each sink
        passes them on to the sink before it.
        """
        self._log = log
        self._name = name
        self._filters = filters
        self._sinks = sinks
        self._limits = limits
        self._ticks = ticks

    async def run(self, planned: PlannedAttempt, traceparent: str | None) -> tuple[Turn, BackendError | None]:
        """Returns the fold after an attempt, and the error that broke the answer off, if any.

        `traceparent` is stored in the attempt's entry. Raises FenceLost when another writer has the turn, and
        LogUnavailable.
        """
        key, turn, action, route, *_ = planned
        # Each turn has a first attempt: the line of its end is enough.
        log = logger.debug if action.attempt == 1 else logger.info
        log("attempt", mode=action.mode, backend=route.backend)
        attempt = Attempt(
            prev=turn.chain.last,
            attempt=action.attempt,
            generator=self._name,
            backend=route.backend,
            mode=action.mode,
            misfit=action.misfit,
            traceparent=traceparent,
            cause=planned.cause,
            reason=action.reason,
        )
        folding = Folding(turn)
        # Subscribe before the append: its fence shows that no end came earlier, and the feed shows later ends.
        async with self._log.subscribe(key, "end") as ends:
            # Append before anything that may raise: an attempt that breaks its generator must count against the limit.
            chain = await append_when_not_full(self._log.append, key, folding.chain, attempt)
            metrics.ATTEMPTS.labels(attempt.mode).inc()
            folding.add(as_stored(chain, attempt))
            return await self._call(planned._replace(turn=folding.build()), folding, ends)

    async def _call(
        self, planned: PlannedAttempt, folding: Folding, ends: LiveFeed
    ) -> tuple[Turn, BackendError | None]:
        """Calls the model and appends its events; returns as `run` does. `ends` has every end after `planned.turn`."""
        key, turn, action, route, *_ = planned
        writer = EventWriter(self._log, key, folding, self._ticks)
        call, continuation = prepare_call(turn, action.mode, self._filters)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._raise_when_ended(key, ends))
                reading = group.create_task(self._read_model(planned, call, writer, continuation))
                await group.create_task(writer.run())
                error = await reading
                watching.cancel()
        except asyncio.CancelledError:
            await self._hand_over(key, folding.build())
            raise
        except ExceptionGroup as several:
            # The first failure has cancelled the other tasks: FenceLost when another writer has the turn, but also
            # LogUnavailable, or EntryTooLarge when the server's `max_payload` is small.
            cause = several.exceptions[0]
            if isinstance(cause, TurnEnded):
                metrics.STOP_S.observe(age_s(cause.at))
            # Another call would cost money, and would bring the same event, or continue a damaged answer.
            match cause:
                case EntryTooLarge():
                    error = BackendError("entry_too_large", f"an event of the answer cannot be stored: {cause}")
                case BackendError():
                    error = cause
                case _:
                    raise cause from several
            free_frames(several)
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
        call: Call,
        writer: EventWriter,
        continuation: ContinuationMapper | None,
    ) -> BackendError | None:
        """Passes the model's events to `writer`; returns the error that broke the answer off, if any."""
        meter = DroppedTextMeter(writer.put)
        bound = bind_thinking(call, planned.turn, planned.action.mode)
        metrics.THINKING_LEFT_OUT.inc(bound.left_out)
        try:
            count = self._limits.begin_call(planned.key, planned.turn)
            sink = meter.wrap(partial(self._wrap, planned.turn, continuation))

            def put(event: ModelEvent) -> Wait | None:
                if event.kind == "message_delta":
                    event = hide_pause(event, planned.turn)
                elif event.kind == "message_start" and event.prefix is None:
                    event = msgspec.structs.replace(event, prefix=bound.prefix)
                sink(event)
                wait = count(event) if count is not None else None
                # The call is read on only when a large event is stored: such events must not pile up in memory.
                return partial(await_each, writer.drained, wait) if len(event.raw) > LARGE_BYTES else wait

            def note_wait(obstacle: str) -> None:
                # A hidden event says that the turn waits for the model (R135).
                writer.put(wait_event(obstacle))

            # The deadline limits the model's call and never interrupts an append: a writer that does not know whether
            # its entry is stored would be refused at its next append, because of its own entry.
            async with asyncio.timeout_at(planned.deadline):
                # No nested coroutine: its frame would keep the turn in an error's traceback, also after `free_frames`.
                while True:
                    bound_call = msgspec.structs.replace(call, messages=bound.messages)
                    try:
                        await planned.route.stream(bound_call, planned.key, put, note_wait=note_wait)
                        break
                    except BackendError as error:
                        if not is_prefix_mismatch(error) or wants_refusal(call.options):
                            raise
                        bare = bind_thinking(call, planned.turn, planned.action.mode, is_refused=True)
                        if bare.left_out == bound.left_out:
                            raise
                        # A refused call costs nothing.
                        logger.warning("thinking was refused; the call is repeated without it", **error.log_fields)
                        metrics.THINKING_REFUSED.inc()
                        bound = bare
        except CloseCall:
            return None
        except TimeoutError:
            return LATE
        except BackendError as error:
            return error
        finally:
            meter.report()
            writer.close()
        return None

    def _wrap(self, turn: Turn, continuation: ContinuationMapper | None, sink: Sink) -> Sink:
        """Returns the sink of the model's events: `sink`, wrapped by the continuation and the features."""
        assert turn.request is not None  # noqa: S101  # the fold of a turn that is run has one
        if continuation is not None:
            sink = continuation.wrap(sink)
        for wrap in self._sinks:
            sink = wrap(sink, turn.request, turn)
        return sink

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
            # An append of this attempt may have been in flight, and be stored.
            now = await self._log.read_turn(ScopedKey.whole(key), turn)
            if now.chain.is_ended or now.attempt != turn.attempt:
                raise
            await self._log.append(key, now.chain, msgspec.structs.replace(entry, prev=now.chain.last))

    async def _raise_when_ended(self, key: TurnKey, ends: LiveFeed) -> None:
        """Stops the attempt with TurnEnded when another process ends the turn, even while the model sends nothing."""
        raise TurnEnded(key, await self._log.wait_for_end(key, ends))
