"""Which failures lead to another call, when, and when not."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backends import Call
from tailrace.generators.retry import Retry
from tailrace.proto.entries import Message
from tailrace.proto.errors import CODES, BackendError

CALL = Call(model="m", max_tokens=1, messages=[Message("user", "x")])
RETRY = Retry(tries_max=4, wait_s=1.0, wait_max_s=5.0)
AT_ONCE = Retry(tries_max=4, wait_s=0.0, wait_max_s=5.0)
OVERLOADED = BackendError("backend_overloaded", "Overloaded")


class Scripted:
    """A backend whose calls go as written: events, or an error where one stands. It notes what was begun and closed."""

    def model_id(self, model: str) -> str:
        return model

    def __init__(self, *calls: list[bytes | Exception]) -> None:
        self.calls = list(calls)
        self.is_called = asyncio.Event()
        self.begun = 0
        self.closed = 0

    async def answer(self, call: Call) -> AsyncGenerator[bytes, None]:
        assert call is CALL
        self.begun += 1
        self.is_called.set()
        try:
            for event in self.calls[self.begun - 1]:
                if isinstance(event, Exception):
                    raise event
                yield event
            await asyncio.Event().wait()
        finally:
            self.closed += 1

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("code", sorted(code for code in CODES if code.startswith("backend_")))
def test_what_may_succeed_later_is_tried_again_and_nothing_else(code: str) -> None:
    """The table of codes decides, and only it."""
    again_in_s = RETRY.again_in_s(BackendError(code, "x"), tries=1, chance=0.0)
    assert (again_in_s is not None) == CODES[code].is_retryable


def test_a_mistake_of_ours_is_not_tried_again() -> None:
    """Only the model's failures pass by themselves."""
    assert RETRY.again_in_s(ValueError("x"), tries=1, chance=0.0) is None


@pytest.mark.rule("F20")
def test_waits_double_up_to_the_cap_and_end_with_the_last_try() -> None:
    """Half of a wait is certain, and half of it is chance."""
    retry = Retry(tries_max=6, wait_s=1.0, wait_max_s=5.0)
    certain = [retry.again_in_s(OVERLOADED, tries, chance=0.0) for tries in range(1, 7)]
    longest = [retry.again_in_s(OVERLOADED, tries, chance=1.0) for tries in range(1, 7)]
    assert certain == [0.5, 1.0, 2.0, 2.5, 2.5, None]
    assert longest == [1.0, 2.0, 4.0, 5.0, 5.0, None]


@given(st.floats(0, 5), st.integers(1, 3), st.floats(0, 1))
def test_nobody_comes_back_earlier_than_the_server_asked(asked_s: float, tries: int, chance: float) -> None:
    """At least the retry-after, and at least the back-off: one of 0 does not make a hot loop."""
    wait_s = RETRY.again_in_s(BackendError("backend_rate_limited", "x", retry_after_s=asked_s), tries, chance)
    assert wait_s is not None
    assert wait_s >= max(asked_s, RETRY.wait_s / 2)


def test_a_retry_after_beyond_the_cap_is_the_end() -> None:
    """Who is told to come back in an hour should hear so at once."""
    error = BackendError("backend_rate_limited", "x", retry_after_s=5.1)
    assert RETRY.again_in_s(error, tries=1, chance=0.0) is None


async def test_a_call_is_repeated_until_its_first_event() -> None:
    """Failures before the first event cost nothing but time; each failed call has been closed."""
    backend = Scripted([OVERLOADED], [OVERLOADED], [b"1", b"2"])
    async with aclosing(AT_ONCE.answer(backend, CALL)) as answer:
        assert [await anext(answer), await anext(answer)] == [b"1", b"2"]
        assert (backend.begun, backend.closed) == (3, 2)
    assert backend.closed == 3


async def test_a_failure_after_the_first_event_is_not_repeated() -> None:
    """What readers have seen is continued from the log, by the next attempt, and never said twice from here."""
    backend = Scripted([b"1", OVERLOADED], [b"1"])
    async with aclosing(AT_ONCE.answer(backend, CALL)) as answer:
        assert await anext(answer) == b"1"
        with pytest.raises(BackendError):
            await anext(answer)
    assert backend.begun == 1


@pytest.mark.parametrize(
    ("error", "calls"), [(OVERLOADED, 4), (BackendError("backend_refused_request", "x"), 1), (ValueError("x"), 1)]
)
async def test_the_last_failure_is_the_one_that_is_raised(error: Exception, calls: int) -> None:
    """After the last try, or at once when another would not help."""
    backend = Scripted([error], [error], [error], [error])
    with pytest.raises(type(error)) as raised:
        await anext(AT_ONCE.answer(backend, CALL))
    assert (raised.value, backend.begun) == (error, calls)


@pytest.mark.parametrize(
    ("retry", "calls"), [(AT_ONCE, [[]]), (Retry(tries_max=9, wait_s=60.0, wait_max_s=60.0), [[OVERLOADED]])]
)
async def test_a_cancelled_wait_ends_at_once(retry: Retry, calls: list[list[bytes | Exception]]) -> None:
    """Whether it waits for the model or for its next try, a cancelled turn makes no further call."""
    backend = Scripted(*calls)
    waiting = asyncio.create_task(anext(retry.answer(backend, CALL)))
    async with asyncio.timeout(1):
        await backend.is_called.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (backend.begun, backend.closed) == (1, 1)


async def test_a_pause_between_attempts_is_capped() -> None:
    """Here the turn has begun already: a server that asks for an hour gets the cap, and then the next attempt."""
    hour = BackendError("backend_rate_limited", "x", retry_after_s=3600.0)
    async with asyncio.timeout(1):
        await Retry(tries_max=1, wait_s=0.0, wait_max_s=0.01).pause(1, hour)
