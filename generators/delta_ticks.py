"""DeltaTicks: when the deltas that wait are stored. All turns of a busy process store theirs at common moments (R9).

Each turn still has an append of its own. But four processes wake up once for the appends of all turns, which saves a
third of the CPU time of a delta (ADR 38). A process with few deltas stores each of them at once.
"""

import asyncio
from collections.abc import Callable
from math import floor

# A process is busy if so many deltas came, of all turns together, within the last tick or within this one. Fewer deltas
# would wait without saving much: two of each of five turns are not many.
BUSY_DELTAS = 12
TICK_S = 0.023
# A tick after one that came late by LATE_S: the process or the machine is full. Larger entries then cost less.
LONG_TICK_S = 0.033
LATE_S = 0.01
# After an append that took this long, the next delta waits for others until JOIN_S after that append began. So slow
# appends, of a busy disk, become fewer, each with more deltas. On an idle machine an append takes 1 ms, and 7 ms if
# each has an fsync.
SLOW_APPEND_S = 0.02
JOIN_S = 0.05


class DeltaTicks:
    """Tells the writers of a process until when a delta waits, and calls them then. Times are those of the loop."""

    def __init__(self, interval_s: float = 0.0) -> None:
        """`interval_s` is the time after an append of a delta in which the next deltas wait for others."""
        self._interval_s = interval_s
        self._tick_s = TICK_S
        self._tick_at = 0.0
        """The newest common moment, which may have passed."""
        self._window_ends = 0.0
        self._count = self._count_before = 0
        self._is_busy = False
        self._calls: dict[float, list[Callable[[float], None]]] = {}

    def count_delta(self, now: float) -> bool:
        """Counts a delta that the model has sent. Returns whether the process is busy."""
        if now >= self._window_ends:
            self._count_before = self._count if now < self._window_ends + TICK_S else 0
            self._count, self._window_ends = 0, now + TICK_S
        self._count += 1
        self._is_busy = self._count >= BUSY_DELTAS or self._count_before >= BUSY_DELTAS
        return self._is_busy

    def next_tick(self, now: float) -> float:
        """Returns the next common moment."""
        if self._tick_at <= now:
            self._tick_at += self._tick_s * (floor((now - self._tick_at) / self._tick_s) + 1)
        return self._tick_at

    def wait_after(self, began_at: float, now: float, *, is_waiting: bool) -> float:
        """Returns until when deltas wait after the append of a delta, which began at `began_at` and ended `now`.

        0: they do not wait, or `count_delta` decides. `is_waiting` says whether a delta waits already.
        """
        is_slow = now - began_at >= SLOW_APPEND_S
        if wait_s := max(JOIN_S if is_slow else 0.0, self._interval_s):
            return began_at + wait_s
        return self.next_tick(now) if is_waiting and self._is_busy else 0.0

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, call: Callable[[float], None]) -> None:
        """Calls `call(when)` at `when`, after all that were passed before for this moment. It must not raise."""
        calls = self._calls.get(when)
        if calls is None:
            self._calls[when] = [call]
            loop.call_at(when, self._run, loop, when)
        else:
            calls.append(call)

    def _run(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if when == self._tick_at:
            self._tick_s = LONG_TICK_S if loop.time() - when >= LATE_S else TICK_S
        for call in self._calls.pop(when):
            call(when)
