"""What goes wrong in one schedule: kinds and rates, drawn from its seed. All of it was seen on real servers.

Each schedule has some kinds and not others: what hides behind one fault is found where that one is missing.
"""

from random import Random

from tests.schedules.world import World

# By then a schedule has had its faults; from here on the world is kind, and everything has to come to its end.
KIND_AFTER_PUBLISHES = 60
KIND_AFTER_S = 90.0


class Faults:
    """Rates are of one publish, one read, one republished entry; a moment is the number of a publish, from 1."""

    def __init__(self, world: World) -> None:
        chance = world.chance
        rough = chance() * 0.35

        def rate() -> float:
            return rough if chance() < 0.4 else 0.0

        # What becomes of a publish.
        self.lost_request = rate()
        self.lost_ack = rate()
        self.late = rate()
        self.unsettled = rate()
        self.full = rate() / 4
        # What becomes of a read.
        self.stale = rate()
        self.unreadable = rate() / 4
        self.short = rate()
        # What becomes of a hint of the live feed.
        self.dropped = rate()
        self.repeated = rate()
        self.reordered = chance() < 0.4
        # How often the model breaks off, by call.
        self.broken = rate() * 2
        self.slow_s = chance() if chance() < 0.2 else 0.0
        # Who is killed, frozen, robbed of his lease, cut off, when.
        self.kills = self._moments(world, 0.5)
        self.freezes = self._moments(world, 0.3)
        self.thefts = self._moments(world, 0.3)
        self.changes = self._moments(world, 0.35)
        # One: a second old leader, that wakes just when the first is asked about again, nobody has seen.
        self.wakings = self._moments(world, 0.15)[:1]
        self.cancels = self._moments(world, 0.25)
        self.strays = self._moments(world, 0.1)
        self.doubts = self._moments(world, 0.2)
        self.cuts = [1 + world.below(10) for _ in range(2)] if chance() < 0.5 else []
        self.is_asked_twice = chance() < 0.2
        # Whether a first token may be late, and generators then hedge. Drawn apart: all else is as it was without it.
        self.is_hedged = Random(f"races {world.seed}").random() < 0.25
        # When a server falls behind. Drawn apart, too.
        lagging = Random(f"lags {world.seed}")
        self.lags = [lagging.randint(1, 14)] if lagging.random() < 0.15 else []
        # Which of a generator's calls break it: it lets go of the turn, and may be given it again. Drawn apart as well.
        breaking = Random(f"breaks {world.seed}")
        self.breaks = [breaking.randint(1, 2)] if breaking.random() < 0.3 else []
        if self.breaks and breaking.random() < 0.3:
            # The server that is read when he is given it again has not heard yet that he had it before.
            self.lags.append(2)
        # When a client looks how far the turn is. Drawn apart, too.
        looking = Random(f"looks {world.seed}")
        self.looks = [looking.randint(2, 14) for _ in range(3)] if looking.random() < 0.2 else []

    def _moments(self, world: World, rate: float) -> list[int]:
        found: list[int] = []
        while world.chance() < rate:
            found.append(1 + world.below(14))
        return found

    @property
    def may_fork(self) -> bool:
        return bool(self.changes)
