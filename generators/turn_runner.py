"""TurnRunner: folds a turn's log, plans, and makes attempts, in a loop until an `end` is stored.

One append of a turn is in flight at a time. A runner whose append is refused stops: another writer has the turn, or the
turn has ended. Optional features plug in: the planner and its cuts decide the next action, the routes choose a backend,
`observe` surrounds an attempt. The features of an attempt plug in at AttemptRunner.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import structlog
from structlog.contextvars import bound_contextvars

from tailrace.generators import metrics
from tailrace.generators.attempt_runner import LATE, AttemptRunner, PlannedAttempt, WrapSink
from tailrace.generators.backend_order import REPEATED_FAULTS
from tailrace.generators.call_limits import CallLimits
from tailrace.generators.continuation import FilterCall
from tailrace.generators.delta_ticks import DeltaTicks
from tailrace.generators.event_writer import append_when_not_full, as_stored, write_all
from tailrace.generators.model_caller import ModelCaller
from tailrace.generators.plan import Acknowledge, AppendEvents, Complete, Fail, Leave, MakeAttempt
from tailrace.generators.planner import Planner
from tailrace.proto import events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Failure, Outcome
from tailrace.proto.errors import BackendError, FenceLost, TailraceError
from tailrace.proto.fold import EMPTY_TURN, Folding, Turn, fold
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey

logger = structlog.get_logger()

UNPREPARED = Failure("internal", "the turn cannot be prepared: the logs of the generators have the traceback")

PrepareTurn = Callable[[TurnKey, Turn], Awaitable[Turn | None]]
"""Returns the turn as it is to be run, or None if it cannot begin yet. Raises BackendError if it can never begin."""
ObserveAttempt = Callable[[TurnKey, Turn, MakeAttempt], AbstractContextManager[str | None]]
"""Returns the context in which an attempt runs. It yields the `traceparent` that its entry stores, or None."""


class TurnRunner:
    """Runs turns. Holds no state of any turn."""

    def __init__(
        self,
        log: TurnLog,
        model_caller: ModelCaller,
        planner: Planner,
        *,
        name: str,
        filters: Sequence[FilterCall],
        sinks: Sequence[WrapSink] = (),
        limits: CallLimits,
        prepare: Sequence[PrepareTurn] = (),
        observe: ObserveAttempt | None = None,
        deadline_s: float,
        delta_interval_s: float = 0.0,
    ) -> None:
        """`name` identifies this process in the log.

        A turn fails after `deadline_s` seconds of work on it, including the work of earlier generators; its text is
        kept. `delta_interval_s` is the time after an append of a delta in which the next deltas wait for others.
        """
        self._log = log
        self._model_caller = model_caller
        self._planner = planner
        self._prepare = prepare
        self._observe = observe or (lambda *_: nullcontext())
        self._deadline_s = deadline_s
        self._attempts = AttemptRunner(
            log, name=name, filters=filters, sinks=sinks, limits=limits, ticks=DeltaTicks(delta_interval_s)
        )

    async def run(self, key: TurnKey, known: Turn = EMPTY_TURN) -> Turn:
        """Runs a turn until its log holds an `end`; returns the fold.

        Returns the fold without an end if another process stores the end, or if the turn cannot begin yet. `known` is
        the fold of the turn's request alone. The log is then read only if it has more entries: the append of the first
        attempt then fails (PROTOCOL R106). Raises FenceLost when another writer has continued or ended the turn,
        LogUnavailable, TurnUnknown.
        """
        if known.request is not None:
            try:
                return await self._run_from(key, known)
            except FenceLost:
                turn = await self._log.read_turn(ScopedKey.whole(key))
                if turn.attempt:
                    raise
                # Another process has ended the turn before its first attempt.
        else:
            turn = await self._log.read_turn(ScopedKey.whole(key))
        metrics.SKIPPED.inc(turn.skipped)
        return await self._run_from(key, turn)

    async def _run_from(self, key: TurnKey, turn: Turn) -> Turn:
        """Like `run`, from the fold `turn`."""
        try:
            for prepare in self._prepare:
                prepared = await prepare(key, turn)
                if prepared is None:
                    return turn
                turn = prepared
        except BackendError as refused:
            failure = Failure(refused.code, refused.message, refused.retry_after_s, refused.details)
            return await self._end(key, turn, "failed", failure)
        except (TailraceError, MemoryError):
            raise
        except Exception:
            # No attempt in the log counts this failure, so the turn would break generators forever.
            logger.exception("turn cannot be prepared", turn=key.turn)
            return await self._end(key, turn, "failed", UNPREPARED)
        metrics.observe_start(turn)
        # Earlier work on the turn counts, by the log's timestamps.
        deadline = asyncio.get_running_loop().time() + self._deadline_s - turn.worked_s
        last_error: BackendError | None = None
        cause: str | None = None
        route = self._model_caller.route(key, turn)
        while True:
            match action := await self._planner.next_action(key, turn):
                case Acknowledge() | Leave():
                    return turn
                case Complete(schema_valid):
                    return await self._end(key, turn, "completed", schema_valid=schema_valid)
                case AppendEvents(closing):
                    folding = Folding(turn)
                    await write_all(self._log, key, folding, closing)
                    turn = folding.build()
                case Fail(failure):
                    return await self._end(key, turn, "failed", with_cause(failure, last_error))
                case MakeAttempt() if asyncio.get_running_loop().time() >= deadline:
                    return await self._end(key, turn, "failed", Failure(LATE.code, LATE.message))
                case MakeAttempt():
                    planned = PlannedAttempt(key, turn, action, route, deadline, cause)
                    # Adds the turn to the log lines of retry.py and the backends, which do not know it.
                    with (
                        bound_contextvars(turn=key.turn, attempt=action.attempt),
                        self._observe(key, turn, action) as traceparent,
                    ):
                        turn, error = await self._attempts.run(planned, traceparent)
                    cause = error.code if error is not None else events.PAUSE if turn.is_paused else None
                    if error is None:
                        continue
                    if is_repeated_fault(turn, error):
                        failure = Failure(error.code, f"{error.message}; a second time, so it is not tried again")
                        return await self._end(key, turn, "failed", failure)
                    following = await route.after_failure(error, has_begun=turn.message is not None)
                    if following is None:
                        failure = Failure(error.code, error.message, error.retry_after_s, error.details)
                        return await self._end(key, turn, "failed", failure)
                    route = following
                    last_error = error

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


def is_repeated_fault(turn: Turn, error: BackendError) -> bool:
    """Returns whether an earlier attempt ended with the same error, and a further attempt would not help (R118).

    A model or a proxy that has broken the rules of the API twice would do so again, however far each attempt comes. By
    then, a second backend, if any, has been called.
    """
    return error.code in REPEATED_FAULTS and error.code in turn.causes


def with_cause(failure: Failure, error: BackendError | None) -> Failure:
    """Returns `failure` with the error of the last attempt, if there was one."""
    if error is None:
        return failure
    # More attempts would not help: the model, or a proxy, sends what this version cannot read.
    code = error.code if error.code == "backend_unreadable" else failure.code
    return Failure(code, f"{failure.message}; the last time: {error.message}")
