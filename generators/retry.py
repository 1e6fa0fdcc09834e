"""The one place that decides whether a failed call is made again, and when. The SDK's own retries are off.

Before the first event a call is simply repeated, within one attempt. After it the attempt is over, and the turn goes on
from its log; then this only says how long to wait.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import stamina
import structlog

from tailrace.generators import metrics
from tailrace.generators.backends import Backend, Call
from tailrace.proto.errors import CODES, BackendError

logger = structlog.get_logger()

# We count and log what is repeated ourselves, with its code.
stamina.instrumentation.set_on_retry_hooks([])


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential back-off with jitter, never less than the server's `retry-after`, which is honoured up to a cap."""

    tries_max: int
    wait_s: float
    wait_max_s: float

    async def answer(self, backend: Backend, call: Call) -> AsyncGenerator[bytes, None]:
        """The events of `backend`'s answer, after as many calls as it takes; raises the last BackendError."""
        first, rest = await self._begun(backend, call)
        async with aclosing(rest):
            yield first
            async for raw in rest:
                yield raw

    async def pause(self, attempt: int, error: BackendError) -> None:
        """Waits before the attempt that follows number `attempt`; not longer than the cap for a `retry-after`."""
        asked_s = min(error.retry_after_s or 0.0, self.wait_max_s)
        await asyncio.sleep(self.wait_after_s(attempt, asked_s, random.random()))  # noqa: S311  # spreads load, hides nothing

    def again_in_s(self, error: Exception, tries: int, chance: float) -> float | None:
        """Seconds until the next call after `tries` have failed, the last with `error`; None: there is none."""
        if not isinstance(error, BackendError) or not CODES[error.code].is_retryable or tries >= self.tries_max:
            return None
        asked_s = error.retry_after_s or 0.0
        # Who is told to come back in an hour should hear so, and not wait an hour in silence.
        return self.wait_after_s(tries, asked_s, chance) if asked_s <= self.wait_max_s else None

    def wait_after_s(self, number: int, asked_s: float, chance: float) -> float:
        """The wait after failure `number` (from 1). `chance`, from 0 to 1, spreads those who failed together.

        A server that asks for no wait at all gets the back-off nevertheless: a hot loop helps nobody.
        """
        half_s = min(self.wait_s * 2.0 ** (number - 1), self.wait_max_s) / 2
        return max(asked_s, half_s) + half_s * chance

    async def _begun(self, backend: Backend, call: Call) -> tuple[bytes, AsyncGenerator[bytes, None]]:
        tries = itertools.count(1)

        def again(error: Exception) -> bool | float:
            wait_s = self.again_in_s(error, next(tries), random.random())  # noqa: S311
            if wait_s is None or not isinstance(error, BackendError):
                return False
            logger.info("call failed and is made again", code=error.code, wait_s=round(wait_s, 3))
            metrics.CALLS_AGAIN.labels(error.code).inc()
            return wait_s

        # The loop and its sleeping are stamina's; how often and how long is decided above.
        async for one in stamina.retry_context(on=again, attempts=None, timeout=None):
            with one:
                # An answer that raises is closed: that is how async generators end.
                answer = backend.answer(call)
                return await anext(answer), answer
        raise AssertionError("the last try returns or raises")
