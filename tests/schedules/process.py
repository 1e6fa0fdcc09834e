"""Somebody who takes steps: one at a time, with the answers that the log gives. He may be killed, or frozen."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tailrace.proto.nats.step import Steps
from tests.schedules.stream import Stream

Done = Callable[[Any], None]
"""Told where the steps have led: what they came to, or the exception that they raised."""


class Process:
    """At most one walk of steps at a time."""

    def __init__(self, stream: Stream, name: str) -> None:
        self.stream = stream
        self.world = stream.world
        self.name = name
        self.frozen_until_s = 0.0
        self._steps: Steps[Any] | None = None
        self._done: Done | None = None
        self._walk = 0

    @property
    def is_busy(self) -> bool:
        return self._steps is not None

    @property
    def is_frozen(self) -> bool:
        return self.frozen_until_s > self.world.now_s

    def start(self, steps: Steps[Any], done: Done) -> None:
        self._steps, self._done = steps, done
        self._walk += 1
        self._go(None)

    def stop(self) -> None:
        """Killed: whatever was on its way to him finds nobody. What he has sent is on its way all the same."""
        if self._steps is not None:
            self._steps.close()
        self._steps = None
        self._walk += 1

    def raise_in(self, error: Exception) -> None:
        """Has `error` raised where he is, whatever he waits for."""
        self._walk += 1
        self._go(error)

    def freeze(self, wait_s: float) -> None:
        self.frozen_until_s = max(self.frozen_until_s, self.world.now_s + wait_s)
        self.world.tell(self.name, f"is frozen for {wait_s:.2f} s")

    def serve(self, step: Any) -> None:
        """Has `step` answered, some time."""
        walk = self._walk
        wait_s, answer = self.stream.answer(self.name, step)
        # With this very step he may have been killed: it was sent, and nobody is there for the answer.
        if walk == self._walk:
            self.resume_after(wait_s, answer)

    def resume_after(self, wait_s: float, answer: Any) -> None:
        self.world.after(wait_s, partial(self._resume, self._walk, answer))

    def _resume(self, walk: int, answer: Any) -> None:
        if walk != self._walk:
            return
        if self.frozen_until_s > self.world.now_s:
            self.world.after(self.frozen_until_s - self.world.now_s, partial(self._resume, walk, answer))
        else:
            self._go(answer)

    def _go(self, answer: Any) -> None:
        steps, done = self._steps, self._done
        assert steps is not None
        assert done is not None
        try:
            step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
        except StopIteration as there:
            self._steps = None
            done(there.value)
        except Exception as error:  # noqa: BLE001  # the turn's edge: whoever started it looks at it
            self._steps = None
            done(error)
        else:
            self.serve(step)
