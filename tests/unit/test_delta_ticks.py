"""When the deltas of a process wait for each other."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from tailrace.generators.delta_ticks import BUSY_DELTAS, JOIN_S, LATE_S, LONG_TICK_S, SLOW_APPEND_S, TICK_S, DeltaTicks


class HeldLoop:
    """A loop whose time stands still between two calls of `run`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[..., None], *given: Any) -> None:
        self.timers.append((when, call, given))

    def run(self, late_s: float = 0.0) -> None:
        """Calls what is due first, `late_s` after its time."""
        when, call, given = self.timers.pop(0)
        self.now = when + late_s
        call(*given)


def test_a_process_is_busy_while_many_deltas_come_within_a_tick() -> None:
    ticks = DeltaTicks()
    assert [ticks.count_delta(1.0) for _ in range(BUSY_DELTAS)] == [*([False] * (BUSY_DELTAS - 1)), True]
    # The window before counts, and the windows before that do not.
    assert ticks.count_delta(1.0 + 1.5 * TICK_S)
    assert not ticks.count_delta(1.0 + 4 * TICK_S)


def test_few_deltas_a_tick_never_make_a_process_busy() -> None:
    ticks = DeltaTicks()
    assert not any(ticks.count_delta(index * TICK_S / (BUSY_DELTAS - 2)) for index in range(100))


def test_a_tick_that_came_late_makes_the_next_one_longer() -> None:
    ticks, held = DeltaTicks(), HeldLoop()
    loop, called = cast(asyncio.AbstractEventLoop, held), list[float]()

    def wait() -> float:
        """Waits for the next moment; returns the time until then from the one before."""
        before, when = called[-1], ticks.next_tick(held.now)
        ticks.call_at(loop, when, called.append)
        return round(when - before, 6)

    ticks.call_at(loop, ticks.next_tick(0.0), called.append)
    held.run()
    assert wait() == TICK_S
    held.run(late_s=LATE_S)
    assert wait() == LONG_TICK_S
    held.run()
    assert wait() == TICK_S


def test_the_calls_of_one_moment_have_one_timer() -> None:
    ticks, held = DeltaTicks(), HeldLoop()
    called = list[float]()
    for _ in range(3):
        ticks.call_at(cast(asyncio.AbstractEventLoop, held), 1.0, called.append)
    held.run()
    assert (called, held.timers) == ([1.0, 1.0, 1.0], [])


def test_a_delta_waits_after_a_slow_append_and_for_the_interval() -> None:
    fast, slow = SLOW_APPEND_S / 2, SLOW_APPEND_S
    assert DeltaTicks().wait_after(1.0, 1.0 + fast, is_waiting=True) == 0.0
    assert DeltaTicks().wait_after(1.0, 1.0 + slow, is_waiting=True) == 1.0 + JOIN_S
    assert DeltaTicks(0.5).wait_after(1.0, 1.0 + slow, is_waiting=False) == 1.5
    busy = DeltaTicks()
    assert [busy.count_delta(1.0) for _ in range(BUSY_DELTAS)][-1]
    assert busy.wait_after(1.0, 1.0, is_waiting=False) == 0.0
    assert 1.0 < busy.wait_after(1.0, 1.0, is_waiting=True) <= 1.0 + TICK_S
