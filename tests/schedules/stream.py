"""A model of one turn's log on a server that misbehaves as real ones do. It decides nothing for anybody.

An append is applied, or not, in the moment in which it is asked for; the answer comes later, or never. Everything that
was seen on real servers may happen to it: the acknowledgement is lost, the write comes late, a change of leader
lets a fork in.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

from tailrace.proto.entries import Attempt, End, Entry, Event, Request, Stored
from tailrace.proto.errors import LogFull, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.step import Confirm, Page, Pause, Publish, Reached, Read, Step, Unclear
from tests.handwritten import NOON
from tests.schedules.faults import KIND_AFTER_PUBLISHES, KIND_AFTER_S, Faults
from tests.schedules.world import Do, World

PUBLISH_TIMEOUT_S = 2.0
READ_GIVES_UP_S = 1.75
LATE_MAX_S = 4.0
CHANGE_MAX_S = 6.0
LAG_MAX_S = 0.004
# How long an old leader that wakes up takes to hear that it is none, and how long it may have slept.
WOKEN_S = 0.02
SLEPT_MAX_S = 3.0
# How long a server may be behind the others: as long as a way between two is slow (`make chaos` has seen seven).
BEHIND_MAX_S = 8.0
# How many of the last writes a new leader may not have heard of when it judges a fence.
UNHEARD_MAX = 3

Answer = tuple[float, Any]
"""In how many seconds it comes, and what: an exception is raised where it was asked."""


class Stream:
    """`stored` is the truth. Everybody else only hears of it."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.stored: list[Stored] = []
        self.tail: Seq = BEFORE_FIRST
        self.publishes = 0
        self.is_fenced = True
        self.has_end = False
        """Whether an end is stored that may be valid."""
        self.feeds: list[Callable[[Stored], None]] = []
        self.end_feeds: list[Callable[[Stored], None]] = []
        """Who hears of ends."""
        self.race_feeds: list[Callable[[Stored], None]] = []
        """Who hears of first tokens, unless that is lost."""
        self.is_kind = False
        """Nothing goes wrong any more."""
        self.done: list[str] = []
        """What has gone wrong."""
        self.on_request: Callable[[Stored], None] = _nobody
        self.on_end: Callable[[Stored], None] = _nobody
        self.at_publish: dict[int, list[Do]] = {}
        self._answers: dict[type, Callable[[Any], Answer]] = {
            Publish: self._publish,
            Read: self._read,
            Pause: self._pause,
            Confirm: self._confirm,
            Reached: self._reached,
        }
        self._seqs: list[Seq] = []
        self._times: list[float] = []
        self._changing_since_s = 0.0
        self._changing_until_s = 0.0
        self._woken_until_s = 0.0
        self._slept_since_s = 0.0
        self._behind_until_s = 0.0
        self._behind_since_s = 0.0

    def answer(self, who: str, step: Step) -> Answer:
        """What becomes of a step of anybody's, other than Hear: that is between him and his feed."""
        answer: Answer = self._answers[type(step)](step)
        if self.world.trace is not None:
            self.world.tell(who, f"{shown(step)} -> {shown(answer[1])}, in {answer[0]:.4f} s")
        return answer

    def change_leader(self) -> None:
        wait_s = self.world.chance() ** 2 * CHANGE_MAX_S
        self.done.append("change")
        self._changing_since_s, self._changing_until_s = self.world.now_s, self.world.now_s + wait_s
        self.world.tell("server", f"changes its leader, for {wait_s:.2f} s")

    def wake(self) -> None:
        """An old leader that was frozen wakes up: for a moment it answers from its own past, as if it led."""
        self._woken_until_s = self.world.now_s + WOKEN_S
        self._slept_since_s = self.world.now_s - self.world.chance() * SLEPT_MAX_S
        self.world.tell("server", f"an old leader wakes up that has slept since {self._slept_since_s:.4f}")

    def fall_behind(self) -> None:
        """One server's way to the others is slow: for seconds it answers reads from its past, and leads nothing."""
        self._behind_since_s = self.world.now_s
        self._behind_until_s = self.world.now_s + self.world.chance() * BEHIND_MAX_S
        self.world.tell("server", f"one falls behind, until {self._behind_until_s:.4f}")

    def store(self, entry: Entry) -> Seq:
        # Between two entries of a turn stand those of others.
        last = self.stored[-1].seq if self.stored else 0
        seq = Seq(last + (1 if self.world.chance() < 0.7 else 3))
        stored = Stored(seq, NOON, entry)
        self.stored.append(stored)
        self._seqs.append(seq)
        self._times.append(self.world.now_s)
        self.tail = seq
        if self.world.trace is not None:
            self.world.tell("server", f"stores {seq}: {shown(entry)}")
        self._republish(stored)
        return seq

    def _publish(self, step: Publish) -> Answer:
        entry, fence = step.entry, step.fence
        self.publishes += 1
        self.is_kind = self.publishes > KIND_AFTER_PUBLISHES or self.world.now_s > KIND_AFTER_S
        for do in self.at_publish.pop(self.publishes, ()):
            do()
        world, faults = self.world, self.faults
        soon_s = 0.0001 + world.chance() * 0.002
        if self.is_kind:
            return self._applied(entry, fence, soon_s)
        if world.now_s < self._changing_until_s:
            return self._amid_change(entry, fence)
        u = world.chance()
        if (u := u - faults.lost_request) < 0:
            self.done.append("lost request")
            return PUBLISH_TIMEOUT_S, Unclear("lost", is_answered=False)
        if (u := u - faults.lost_ack) < 0:
            self.done.append("lost acknowledgement")
            self._applied(entry, fence, 0)
            return PUBLISH_TIMEOUT_S, Unclear("acknowledgement lost", is_answered=False)
        if (u := u - faults.late) < 0:
            self.done.append("late write")
            world.after(world.chance() * LATE_MAX_S, lambda: self._come_late(entry, fence))
            return PUBLISH_TIMEOUT_S, Unclear("late", is_answered=False)
        if (u := u - faults.unsettled) < 0:
            self.done.append("unsettled")
            if world.chance() < 0.5:
                world.after(world.chance() * 0.1, lambda: self._come_late(entry, fence))
            return soon_s, Unclear("10164")
        if u < faults.full:
            self.done.append("full")
            return soon_s, LogFull("full")
        return self._applied(entry, fence, soon_s)

    def _applied(self, entry: Entry, fence: Seq, wait_s: float) -> Answer:
        if fence != self.tail and self.is_fenced:
            return wait_s, Unclear("10071")
        return wait_s, self.store(entry)

    def _come_late(self, entry: Entry, fence: Seq) -> None:
        self.world.tell("server", "a write comes late")
        self._applied(entry, fence, 0)

    def _amid_change(self, entry: Entry, fence: Seq) -> Answer:
        """The old leader takes nothing, the new one does not know yet all that was stored: a fork may get in."""
        world = self.world
        if world.chance() < 0.5:
            return PUBLISH_TIMEOUT_S, Unclear("no leader", is_answered=False)
        unheard = [BEFORE_FIRST, *(stored.seq for stored in self.stored)][-UNHEARD_MAX:]
        if fence not in unheard:
            return 0.001, Unclear("10071")
        seq = self.store(entry)
        return (
            (0.001, seq)
            if world.chance() < 0.7
            else (PUBLISH_TIMEOUT_S, Unclear("acknowledgement lost", is_answered=False))
        )

    def _pause(self, step: Pause) -> Answer:
        return step.wait_s * (1 + self.world.chance() / 4), None

    def _read(self, step: Read) -> Answer:
        after, limit = step.after, step.limit
        world, faults = self.world, self.faults
        soon_s = 0.0001 + world.chance() * 0.002
        if self.is_kind:
            return soon_s, self._page(after, limit, world.now_s)
        u = world.chance()
        if (u := u - faults.unreadable) < 0:
            self.done.append("unreadable")
            return READ_GIVES_UP_S, LogUnavailable("no server answers")
        if (u := u - faults.stale) < 0:
            self.done.append("stale read")
            return soon_s, self._page(after, limit, world.now_s - world.chance() * LAG_MAX_S)
        if self._asks_who_woke():
            return soon_s, self._page(after, limit, self._slept_since_s)
        if world.now_s < self._behind_until_s and world.chance() < 0.5:
            self.done.append("read of one that is behind")
            return soon_s, self._page(after, limit, self._behind_since_s)
        if u < faults.short:
            self.done.append("short read")
            return soon_s, self._page(after, min(limit, 1 + world.below(4)), world.now_s)
        return soon_s, self._page(after, limit, world.now_s)

    def _page(self, after: Seq, limit: int, seen_s: float) -> Page:
        first, last = bisect_right(self._seqs, after), bisect_right(self._times, seen_s)
        return Page(self.stored[first : min(first + limit, last)], last - first <= limit)

    def _confirm(self, step: Confirm) -> Answer:
        if self.world.now_s < self._changing_until_s and not self.is_kind:
            return PUBLISH_TIMEOUT_S, LogUnavailable("no leader")
        seen_s = self.world.now_s
        if self._asks_who_woke():
            self.done.append("old leader")
            seen_s = self._slept_since_s
        found = self._page(Seq(max(step.seq - 1, BEFORE_FIRST)), 1, seen_s).entries
        return 0.001, found != [] and step.seq in (BEFORE_FIRST, found[0].seq)

    def _reached(self, _: Reached) -> Answer:
        seen_s = self.world.now_s
        if seen_s < self._changing_until_s and not self.is_kind:
            if self.world.chance() < 0.5:
                return PUBLISH_TIMEOUT_S, LogUnavailable("no leader")
            # A leader that nobody follows any more does not know it yet.
            seen_s = self._changing_since_s
        if self._asks_who_woke():
            self.done.append("old leader")
            seen_s = self._slept_since_s
        last = bisect_right(self._times, seen_s)
        return 0.001, self._seqs[last - 1] if last else BEFORE_FIRST

    def _asks_who_woke(self) -> bool:
        return self.world.now_s < self._woken_until_s and not self.is_kind and self.world.chance() < 0.5

    def _republish(self, stored: Stored) -> None:
        world, faults = self.world, self.faults
        if isinstance(stored.entry, Request):
            self.on_request(stored)
        elif isinstance(stored.entry, End):
            self.has_end = world.may_be_over = True
            self.on_end(stored)
            for hear in self.end_feeds:
                world.after(0.0005 + world.chance() * 0.01, partial(hear, stored))
        elif self.race_feeds and world.chance() >= faults.dropped:
            for hear in self.race_feeds:
                world.after(0.0005 + world.chance() * 0.01, partial(hear, stored))
        for feed in self.feeds:
            u = 1.0 if self.is_kind else world.chance()
            if u < faults.dropped:
                self.done.append("dropped hint")
                continue
            wait_s = 0.0005 + (world.chance() * 0.01 if faults.reordered else 0)
            world.after(wait_s, partial(feed, stored))
            if 1 - faults.repeated < u < 1:
                self.done.append("repeated hint")
                world.after(wait_s + world.chance() * 0.1, partial(feed, stored))


def _nobody(_: Stored) -> None:
    pass


def shown(what: object) -> str:
    """One line of a trace."""
    match what:
        case Publish(entry, fence):
            return f"publishes behind {fence}: {shown(entry)}"
        case Page(stored, is_last):
            return f"[{' '.join(str(one.seq) for one in stored)}]{'' if is_last else ' and more'}"
        case Read(after, _):
            return f"reads after {after}"
        case Confirm(seq):
            return f"asks whether {seq or 'it'} is there"
        case Reached():
            return "asks how far it is"
        case BaseException():
            return f"{type(what).__name__}({what})"
        case list():
            return " ".join(str(one.seq) for one in what if isinstance(one, Stored)) or "silence"
        case Request():
            return "request"
        case Event():
            return f"event of {what.attempt} after {what.prev} {bytes(what.event).decode():.90}"
        case Attempt():
            return f"attempt {what.attempt} after {what.prev}, {what.mode}"
        case End():
            return f"end of {what.attempt} after {what.prev}, {what.outcome}"
        case _:
            return str(what)
