"""Virtual time and one source of chance: all that happens is in the order of its time, and the seed's."""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

Do = Callable[[], None]


class World:
    """Nothing here waits: time goes on to whatever is due next."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.seed = seed
        self.dice = Random(seed)
        self.chance = self.dice.random
        """A number from 0 to 1, 1 excluded."""
        self.now_s = 0.0
        self.happened = 0
        self.may_be_over = False
        """Before somebody says so, nobody is asked whether it is."""
        self.trace: list[str] | None = [] if is_traced else None
        self._due: list[tuple[float, int, Do]] = []
        self._made = 0

    def now(self) -> float:
        return self.now_s

    def after(self, wait_s: float, do: Do) -> None:
        """Does `do` in `wait_s` seconds; of two at the same time the one that was asked first."""
        self._made += 1
        heappush(self._due, (self.now_s + wait_s, self._made, do))

    def below(self, end: int) -> int:
        """A whole number from 0, below `end`."""
        return int(self.chance() * end)

    def tell(self, who: str, what: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now_s:9.4f}  {who:10} {what}")

    def run(self, is_over: Callable[[], bool], happenings_max: int) -> bool:
        """Lets time pass until `is_over`; False when it is not after so many happenings, or nothing is due."""
        due = self._due
        while not (self.may_be_over and is_over()):
            if not due or self.happened >= happenings_max:
                return False
            self.now_s, _, do = heappop(due)
            self.happened += 1
            do()
        return True
