"""Who breaks things, by a seed: which kind is next, how long it lasts, what it hits. Judges nothing."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from random import Random

import msgspec

from tests.chaos.faults import KINDS, Lane, Scene
from tests.chaos.system import System
from tests.checker.history import Fault


class Count(msgspec.Struct):
    """Of one kind of fault: how often it was done, how often it was felt, and how much."""

    done: int = 0
    happened: int = 0
    felt: int = 0


class Pace(msgspec.Struct, frozen=True):
    """Seconds, from and to."""

    between: tuple[float, float] = (3.0, 10.0)
    lasts: tuple[float, float] = (1.0, 5.0)


TRIES_MAX = 3
# Each kind once, as soon as its lane is free.
QUICK = Pace((0.1, 0.3), (0.5, 1.0))


class Nemesis:
    def __init__(
        self, system: System, chance: Random, kinds: Sequence[str], pace: Pace, *, lease_s: float, at_once: int
    ) -> None:
        self.counts: dict[str, Count] = defaultdict(Count)
        self.now: dict[Lane, str] = {}
        """What is broken just now."""
        self.problems: list[str] = []
        """What could not be broken, or not be healed."""
        self._system = system
        self._chance = chance
        self._kinds = kinds
        self._pace = pace
        self._lease_s = lease_s
        self._at_once = at_once
        self._deck: list[str] = []

    async def run(self, s: float) -> None:
        """For `s` seconds and until each kind was felt; everything is healed when it returns."""
        loop = asyncio.get_running_loop()
        end = loop.time() + s
        async with asyncio.TaskGroup() as group:
            while self._kinds and ((left := self._left()) or self.now or loop.time() < end):
                # Past its time only what is missing.
                name = self._next(left if loop.time() >= end else set(self._kinds))
                if name is not None:
                    self.now[KINDS[name].lane] = name
                    group.create_task(self._strike(name, Random(self._chance.random())))
                await asyncio.sleep(self._chance.uniform(*self._pace.between))

    def _left(self) -> set[str]:
        """What nobody has felt yet, unless it was tried often enough."""
        return {one for one in self._kinds if not self.counts[one].happened and self.counts[one].done < TRIES_MAX}

    def _next(self, wanted: set[str]) -> str | None:
        """The first of the deck whose lane is free; the deck has each kind once, and comes anew when it is used up."""
        if not wanted.intersection(self._deck):
            self._deck = self._chance.sample(self._kinds, len(self._kinds))
        for place, name in enumerate(self._deck):
            if name in wanted and KINDS[name].lane not in self.now:
                return self._deck.pop(place)
        return None

    async def _strike(self, name: str, chance: Random) -> None:
        kind, count = KINDS[name], self.counts[name]
        assert kind.strike is not None
        count.done += 1
        scene = Scene(self._system, chance, chance.uniform(*self._pace.lasts), self._lease_s, self._at_once)
        # A name is a sequence of operations, and several lanes have one at a time each.
        recorder = self._system.nemesis(f"nemesis of {kind.lane}")
        with recorder.recording(Fault(kind=name)) as breaking:
            try:
                struck = await kind.strike(scene)
            except AssertionError as error:
                self.problems.append(f"{name}: {error}")
            else:
                count.happened += bool(struck.felt)
                count.felt += struck.felt
                breaking.ok(target=struck.target, interrupts=struck.interrupts, calls=struck.calls)
            finally:
                del self.now[kind.lane]
        recorder.close()
