"""Which failed calls are repeated, when, and how often."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backend_order import REPEATED_FAULTS
from tailrace.generators.backends.model_event import ModelEvent, Put, from_event
from tailrace.generators.retry import Retry
from tailrace.proto import events
from tailrace.proto.errors import CODES, BackendError

FIRST, SECOND = (from_event(events.BlockStop(index)) for index in (1, 2))
RETRY = Retry(tries_max=4, wait_s=1.0, wait_max_s=5.0)
AT_ONCE = Retry(tries_max=4, wait_s=0.0, wait_max_s=5.0)
OVERLOADED = BackendError("backend_overloaded", "Overloaded")


class ScriptedBackend:
    """A backend with scripted calls: events, or an error to raise. Counts the calls begun and closed."""

    def __init__(self, *calls: list[ModelEvent | Exception]) -> None:
        self.calls = list(calls)
        self.is_called = asyncio.Event()
        self.begun = 0
        self.closed = 0

    async def call(self, put: Put) -> None:
        self.begun += 1
        self.is_called.set()
        try:
            for event in self.calls[self.begun - 1]:
                if isinstance(event, Exception):
                    raise event
                put(event)
            await asyncio.Event().wait()
        finally:
            self.closed += 1


@pytest.mark.parametrize("code", sorted({code for code in CODES if code.startswith("backend_")} - REPEATED_FAULTS))
def test_a_call_is_repeated_exactly_for_retryable_codes(code: str) -> None:
    delay_s = RETRY.next_delay_s(BackendError(code, "x"), tries=1, chance=0.0)
    assert (delay_s is not None) == CODES[code].is_retryable


@pytest.mark.rule("F20")
@pytest.mark.rule("R118")
@pytest.mark.parametrize("code", sorted(REPEATED_FAULTS))
async def test_a_call_that_breaks_the_rules_of_the_api_ends_its_attempt(code: str) -> None:
    """The log counts attempts, over all backends and generators, but not the calls of an attempt."""
    backend = ScriptedBackend([BackendError(code, "x")], [FIRST])
    with pytest.raises(BackendError, match="x"):
        await AT_ONCE.stream(backend.call, ignore, ignore)
    assert backend.begun == 1


def test_back_off_doubles_up_to_its_cap_until_the_last_try() -> None:
    """Half of each wait is fixed and half is random."""
    retry = Retry(tries_max=6, wait_s=1.0, wait_max_s=5.0)
    certain = [retry.next_delay_s(OVERLOADED, tries, chance=0.0) for tries in range(1, 7)]
    longest = [retry.next_delay_s(OVERLOADED, tries, chance=1.0) for tries in range(1, 7)]
    assert certain == [0.5, 1.0, 2.0, 2.5, 2.5, None]
    assert longest == [1.0, 2.0, 4.0, 5.0, 5.0, None]


@given(st.floats(0, 5), st.integers(1, 3), st.floats(0, 1))
def test_a_wait_is_at_least_retry_after_and_back_off(retry_after_s: float, tries: int, chance: float) -> None:
    """Also with a Retry-After of 0, which must not cause a hot loop."""
    wait_s = RETRY.next_delay_s(BackendError("backend_rate_limited", "x", retry_after_s=retry_after_s), tries, chance)
    assert wait_s is not None
    assert wait_s >= max(retry_after_s, RETRY.wait_s / 2)


def test_a_retry_after_above_the_cap_ends_the_retries() -> None:
    """The client receives the error at once instead of after an hour."""
    error = BackendError("backend_rate_limited", "x", retry_after_s=5.1)
    assert RETRY.next_delay_s(error, tries=1, chance=0.0) is None


def ignore(_: object) -> None: ...


async def test_a_call_is_repeated_until_its_first_event() -> None:
    """Each failed call has been closed."""
    backend = ScriptedBackend([OVERLOADED], [OVERLOADED], [FIRST, SECOND])
    noted, received = list[Exception | None](), asyncio.Queue[ModelEvent]()
    streaming = asyncio.create_task(AT_ONCE.stream(backend.call, received.put_nowait, noted.append))
    assert [await received.get(), await received.get()] == [FIRST, SECOND]
    assert (backend.begun, backend.closed) == (3, 2)
    streaming.cancel()
    await asyncio.wait([streaming])
    assert backend.closed == 3
    assert noted == [OVERLOADED, OVERLOADED, None]


async def test_a_failure_after_the_first_event_is_not_repeated() -> None:
    """What readers have seen is continued by the next attempt, from the log."""
    backend = ScriptedBackend([FIRST, OVERLOADED], [FIRST])
    received: list[ModelEvent] = []
    with pytest.raises(BackendError):
        await AT_ONCE.stream(backend.call, received.append, ignore)
    assert (received, backend.begun) == ([FIRST], 1)


@pytest.mark.parametrize(
    ("error", "calls"), [(OVERLOADED, 4), (BackendError("backend_refused_request", "x"), 1), (ValueError("x"), 1)]
)
async def test_the_last_error_is_raised(error: Exception, calls: int) -> None:
    """After the last try, or at once if another call cannot help."""
    backend = ScriptedBackend([error], [error], [error], [error])
    with pytest.raises(type(error)) as raised:
        await AT_ONCE.stream(backend.call, ignore, ignore)
    assert (raised.value, backend.begun) == (error, calls)


@pytest.mark.parametrize(
    ("retry", "calls"), [(AT_ONCE, [[]]), (Retry(tries_max=9, wait_s=60.0, wait_max_s=60.0), [[OVERLOADED]])]
)
async def test_a_cancelled_wait_ends_at_once(retry: Retry, calls: list[list[ModelEvent | Exception]]) -> None:
    """A cancelled turn makes no further call, whether it waits for the model or for its next try."""
    backend = ScriptedBackend(*calls)
    waiting = asyncio.create_task(retry.stream(backend.call, ignore, ignore))
    async with asyncio.timeout(1):
        await backend.is_called.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (backend.begun, backend.closed) == (1, 1)


async def test_a_pause_between_attempts_is_capped() -> None:
    """The turn has begun: after a Retry-After of an hour the next attempt comes after the cap."""
    hour = BackendError("backend_rate_limited", "x", retry_after_s=3600.0)
    async with asyncio.timeout(1):
        await Retry(tries_max=1, wait_s=0.0, wait_max_s=0.01).pause(1, hour)
