"""Injects faults by a seed: which is next, how long it lasts, what it hits."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from random import Random

import msgspec

from tests.chaos.faults import KINDS, Context, Group
from tests.chaos.system import ChaosSystem
from tests.checker.history import Fault


class Count(msgspec.Struct):
    """How often a kind of fault was injected, how often it had an effect, and how much."""

    injected: int = 0
    effective: int = 0
    effect: int = 0


class Pace(msgspec.Struct, frozen=True):
    """Shortest and longest times in seconds."""

    between: tuple[float, float] = (3.0, 10.0)
    lasts: tuple[float, float] = (1.0, 5.0)


TRIES_MAX = 3
QUICK = Pace((0.1, 0.3), (0.5, 1.0))


class Injector:
    def __init__(
        self, system: ChaosSystem, random: Random, kinds: Sequence[str], pace: Pace, *, concurrent_turns: int
    ) -> None:
        self.counts: dict[str, Count] = defaultdict(Count)
        self.active: dict[Group, str] = {}
        self.problems: list[str] = []
        """Faults that could not be injected or healed."""
        self._system = system
        self._random = random
        self._kinds = kinds
        self._pace = pace
        self._concurrent_turns = concurrent_turns
        self._deck: list[str] = []

    async def run(self, s: float) -> None:
        """Injects faults for `s` seconds and until each kind had an effect; returns when all are healed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + s
        async with asyncio.TaskGroup() as group:
            while self._kinds and ((left := self._untried_kinds()) or self.active or loop.time() < end):
                name = self._next(left if loop.time() >= end else set(self._kinds))
                if name is not None:
                    self.active[KINDS[name].group] = name
                    group.create_task(self._inject(name, Random(self._random.random())))
                await asyncio.sleep(self._random.uniform(*self._pace.between))

    def _untried_kinds(self) -> set[str]:
        """Returns the kinds without an effect so far that were injected less than TRIES_MAX times."""
        return {
            kind for kind in self._kinds if not self.counts[kind].effective and self.counts[kind].injected < TRIES_MAX
        }

    def _next(self, wanted: set[str]) -> str | None:
        """Draws the first wanted kind whose group has no fault, from a deck with each kind once."""
        if not wanted.intersection(self._deck):
            self._deck = self._random.sample(self._kinds, len(self._kinds))
        for number, name in enumerate(self._deck):
            if name in wanted and KINDS[name].group not in self.active:
                return self._deck.pop(number)
        return None

    async def _inject(self, name: str, random: Random) -> None:
        kind, count = KINDS[name], self.counts[name]
        assert kind.inject is not None
        count.injected += 1
        context = Context(self._system, random, random.uniform(*self._pace.lasts), self._concurrent_turns)
        # The groups inject at the same time, and a process of the history has one operation at a time.
        recorder = self._system.recorder(f"injector of {kind.group}")
        with recorder.recording(Fault(kind=name)) as recording:
            try:
                effect = await kind.inject(context)
            except (AssertionError, TimeoutError) as error:
                self.problems.append(f"{name}: {error!r}")
            else:
                count.effective += bool(effect.size)
                count.effect += effect.size
                recording.ok(target=effect.target, interrupts=effect.interrupts, calls=effect.calls)
            finally:
                del self.active[kind.group]
        recorder.close()
