"""Faults: the kinds and rates of one schedule's faults, drawn from its seed. All of them were seen on real servers.

Each schedule has some kinds and not others: a bug that one fault hides is found where that fault is missing.
"""

from random import Random

from tests.schedules.world import World

# From then on a schedule has no more faults, so that everything can come to an end.
FAULTLESS_AFTER_PUBLISHES = 60
FAULTLESS_AFTER_S = 90.0


class Faults:
    """A rate is the share of publishes, reads or republished entries. A moment is the number of a publish, from 1."""

    def __init__(self, world: World) -> None:
        chance = world.chance
        rough = chance() * 0.35

        def rate() -> float:
            return rough if chance() < 0.4 else 0.0

        # Rates of publishes.
        self.lost_request = rate()
        self.lost_ack = rate()
        self.late = rate()
        self.unsettled = rate()
        self.full = rate() / 4
        # Rates of reads.
        self.stale = rate()
        self.unreadable = rate() / 4
        self.short = rate()
        # Rates of republished entries.
        self.dropped = rate()
        self.repeated = rate()
        self.reordered = chance() < 0.4
        # The share of calls of the model that break off, and its longest pause.
        self.broken = rate() * 2
        self.slow_s = chance() if chance() < 0.2 else 0.0
        # When a generator is killed or frozen, leases are lost, the leader changes, and so on.
        self.kills = self._moments(world, 0.5)
        self.freezes = self._moments(world, 0.3)
        self.thefts = self._moments(world, 0.3)
        self.changes = self._moments(world, 0.35)
        # At most one. Two former leaders that wake up 100 ms apart were never seen.
        self.wakings = self._moments(world, 0.15)[:1]
        self.cancels = self._moments(world, 0.25)
        self.strays = self._moments(world, 0.1)
        self.doubts = self._moments(world, 0.2)
        self.cuts = [1 + world.below(10) for _ in range(2)] if chance() < 0.5 else []
        self.is_sent_twice = chance() < 0.2
        # When a server falls behind. Drawn apart, so that seeds keep their other faults.
        lagging = Random(f"lags {world.seed}")
        self.lags = [lagging.randint(1, 14)] if lagging.random() < 0.15 else []
        # Which of a generator's calls fail unexpectedly: it gives the turn back, and may receive it again.
        breaking = Random(f"breaks {world.seed}")
        self.breaks = [breaking.randint(1, 2)] if breaking.random() < 0.3 else []
        if self.breaks and breaking.random() < 0.3:
            # The server that it then reads does not have its first attempt yet.
            self.lags.append(2)
        # Generators that are killed one after the other, for as long as there are faults.
        wearing = Random(f"wear {world.seed}")
        if wearing.random() < 0.1:
            self.kills += range(2, FAULTLESS_AFTER_PUBLISHES, wearing.randint(2, 5))
        # When a generator is stopped in order: it gives its turns back.
        self.drains = [wearing.randint(1, 14) for _ in range(wearing.randint(1, 4))] if wearing.random() < 0.15 else []
        # When a client gets the turn.
        polling = Random(f"looks {world.seed}")
        self.polls = [polling.randint(2, 14) for _ in range(3)] if polling.random() < 0.2 else []

    def _moments(self, world: World, rate: float) -> list[int]:
        found: list[int] = []
        while world.chance() < rate:
            found.append(1 + world.below(14))
        return found

    @property
    def may_fork(self) -> bool:
        return bool(self.changes)

    @property
    def has_one_server(self) -> bool:
        """Whether the log has one replica: its leader never changes, and no read is answered by a server behind it."""
        return not (self.changes or self.stale or self.wakings or self.lags)
