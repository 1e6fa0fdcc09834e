"""Decides whether and when a failed model call is repeated: exponential back-off with jitter.

The retries of the SDKs are switched off.

A call that fails before its first event is repeated within one attempt, unless the model breaks the rules of the API.
After the first event the attempt is over and the turn continues from its log; then this module only says how long to
wait before the next attempt.

A call that cannot be connected may be repeated for longer: see outage.py.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from tailrace.generators import metrics
from tailrace.generators.backend_order import REPEATED_FAULTS
from tailrace.generators.backends.model_event import ModelEvent, Put, Wait
from tailrace.generators.outage import NoteWait, Outage
from tailrace.proto.errors import CODES, BackendError

logger = structlog.get_logger()

CallModel = Callable[[Put], Awaitable[None]]
"""Makes one call, and passes on the events of the answer like Backend.stream."""
NoteBegin = Callable[[BackendError | None], None]
"""Is called once for each call: with None at its first event, or with the error of a call that fails before."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential back-off with jitter. A server's Retry-After is the least wait, up to `wait_max_s`."""

    tries_max: int
    wait_s: float
    wait_max_s: float
    unreachable_s: float = 0.0
    """The time that a turn waits while it cannot connect to the model, beyond `tries_max`; 0: it does not wait."""

    async def stream(
        self,
        call: CallModel,
        put: Put,
        note: NoteBegin,
        outage: Outage | None = None,
        note_wait: NoteWait = lambda _: None,
    ) -> None:
        """Calls until an answer begins, and passes its events to `put`. Raises the last BackendError.

        `note` is called as NoteBegin says. `outage` is the turn's. `note_wait` is called when the turn begins to wait
        because it cannot connect to the model, for up to `unreachable_s`.
        """
        outage, tries, has_begun = outage or Outage(), 0, False

        def put_first(event: ModelEvent) -> Wait | None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                note(None)
                outage.end()
            return put(event)

        while True:
            tries += 1
            try:
                return await call(put_first)
            except BackendError as error:
                if has_begun:
                    raise
                note(error)
                if not error.obstacle and outage.end():
                    # The model can be connected to again: this error has its own tries.
                    tries = 1
                chance = random.random()  # noqa: S311  # spreads load
                delay_s = self.next_delay_s(error, tries, chance)
                delay_s = outage.next_delay_s(error, delay_s, chance, self.unreachable_s, note_wait)
                if delay_s is None:
                    raise outage.explain(error) from error.__cause__
                logger.info("call failed and is repeated", **error.log_fields, delay_s=round(delay_s, 3))
                metrics.CALLS_REPEATED.labels(error.code).inc()
            await asyncio.sleep(delay_s)

    async def pause(self, failures: int, error: BackendError) -> None:
        """Waits after failed attempt number `failures`; for a Retry-After at most `wait_max_s`."""
        retry_after_s = min(error.retry_after_s or 0.0, self.wait_max_s)
        await asyncio.sleep(self.back_off_s(failures, retry_after_s, random.random()))  # noqa: S311  # spreads load

    def next_delay_s(self, error: BackendError, tries: int, chance: float) -> float | None:
        """Returns the seconds until the next call after `tries` calls failed, the last with `error`; None: no call."""
        if not CODES[error.code].is_retryable or error.code in REPEATED_FAULTS or tries >= self.tries_max:
            return None
        retry_after_s = error.retry_after_s or 0.0
        # With a longer Retry-After the turn fails with it, so that the client can decide; waiting would be silence.
        return self.back_off_s(tries, retry_after_s, chance) if retry_after_s <= self.wait_max_s else None

    def back_off_s(self, number: int, retry_after_s: float, chance: float) -> float:
        """Returns the wait after failure `number` (from 1). `chance`, 0 to 1, spreads calls that failed together.

        A Retry-After of 0 gets the back-off nevertheless: it must not cause a hot loop.
        """
        half_s = min(self.wait_s * 2.0 ** (number - 1), self.wait_max_s) / 2
        return max(retry_after_s, half_s) + half_s * chance
