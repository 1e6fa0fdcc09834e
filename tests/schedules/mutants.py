"""What keeps the promises, taken away one at a time. Each mutant has to turn some seed red, or the simulator is blind.

A mutant changes what the product decides with, or what the server would keep, for as long as it is in place.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from tailrace.generators.plan import Plan, plan
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import Attempt, End, Entry, Event, Stored
from tailrace.proto.errors import CursorUnknown, FenceLost, TurnUnknown
from tailrace.proto.feed_join import Join
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq
from tailrace.proto.nats.replay import folded
from tailrace.proto.nats.step import Confirm, Now, Page, Read, Steps
from tailrace.proto.subjects import TurnKey
from tests.schedules.generator import Worker
from tests.schedules.stream import Stream

Patches = list[Any]

_heard, _append = Join.heard, Worker._append

# Whoever goes by the chain. The judge does not: it keeps the rule as it was.
LINKED = (
    "tailrace.proto.nats.append.link",
    "tailrace.proto.fold.link",
    "tailrace.proto.nats.follower.link",
    "tailrace.proto.feed_join.link",
)


def fence() -> Patches:
    """The server stores whatever it is sent."""

    def unfenced(self: Stream, entry: Entry, _: Seq, wait_s: float) -> Any:
        return wait_s, self.store(entry)

    return [patch.object(Stream, "_applied", unfenced)]


def prev() -> Patches:
    """Nobody looks at the predecessor: whatever is stored is a link."""

    def loose(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
        return link(Chain(entry.prev, chain.attempt, chain.is_ended), seq, entry)

    return [patch(name, loose) for name in LINKED]


def epoch() -> Patches:
    """An attempt that is over may write on."""

    def ageless(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
        there = link(Chain(chain.last, -1, chain.is_ended), seq, entry)
        return there and Chain(there.last, max(there.attempt, chain.attempt), there.is_ended)

    return [patch(name, ageless) for name in LINKED]


def end_is_last() -> Patches:
    """An end is an entry like others, and a turn that has one is carried on."""

    def endless(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
        return link(Chain(chain.last, chain.attempt), seq, entry)

    def again(turn: Turn, attempts_max: int) -> Plan:
        return plan(msgspec.structs.replace(turn, end=None), attempts_max)

    return [*(patch(name, endless) for name in LINKED), patch("tests.schedules.generator.plan", again)]


def tail_rule() -> Patches:
    """After an unclear outcome an entry that stands is not looked for: it is appended once more."""

    def blind(
        _: TurnKey, chain: Chain, __: Entry, fence: Seq, ___: Now, *, is_led: bool
    ) -> Steps[tuple[Chain | None, Seq]]:
        page: Page = yield Read(chain.last)
        return None, max([fence, *(stored.seq for stored in page.entries)])

    return [patch("tailrace.proto.nats.append.tail", blind)]


def end_check() -> Patches:
    """An end that was acknowledged is taken for one."""
    return [patch("tailrace.proto.nats.append.is_valid", _steps_to(True))]


def reader_end_check() -> Patches:
    """What a reader was told is never compared with the log."""
    return [patch("tailrace.proto.nats.follower.is_valid", _steps_to(True))]


def reader_repeats() -> Patches:
    """A reader is told all that the feed says, also what he has had."""

    def heard(self: Join, stored: Stored) -> list[Stored]:
        return [stored] if stored.seq <= self.read else _heard(self, stored)

    return [patch.object(Join, "heard", heard)]


def reader_gap() -> Patches:
    """What comes too early is taken for what comes next."""

    def heard(self: Join, stored: Stored) -> list[Stored]:
        if stored.seq <= self.read or self.chain.is_ended:
            return []
        self.chain = Chain(stored.seq, getattr(stored.entry, "attempt", 0), isinstance(stored.entry, End))
        self.read = stored.seq
        return [stored]

    return [patch.object(Join, "heard", heard)]


def reader_reread() -> Patches:
    """A reader whose feed is silent believes that nothing was stored."""
    return [patch("tailrace.proto.nats.follower.Follower._page", _steps_to([]))]


def cursor_rule() -> Patches:
    """A cursor that a few reads do not find is refused."""

    def chain_at(_: TurnKey, cursor: Seq, __: Now) -> Steps[Chain]:
        for ___ in range(3 if cursor else 0):
            page: Page = yield Read(Seq(cursor - 1), 1)
            if page.entries and page.entries[0].seq == cursor:
                entry = page.entries[0].entry
                return Chain(cursor, getattr(entry, "attempt", 0), isinstance(entry, End))
        if cursor:
            raise CursorUnknown("the cursor was not found")
        return START

    return [patch("tailrace.proto.nats.follower.chain_at", chain_at)]


def acknowledgement_rule() -> Patches:
    """Whoever has lost the fence acknowledges the turn's request."""
    return [patch("tests.schedules.generator.Worker._was_ended", _steps_to(True))]


def reading_as_far_as_told() -> Patches:
    """To persistence one look at the log is enough."""
    return [patch("tests.schedules.recorder.folded_upto", lambda key, _, *, now: folded(key, now=now))]


def reading_before_planning() -> Patches:
    """To a generator one look at the log is enough to plan by."""
    return [patch("tests.schedules.generator.folded_now", folded)]


def looking_at_the_leader() -> Patches:
    """To a client who looks one look at the log is enough."""
    return [patch("tests.schedules.client.folded_now", folded)]


def asking_twice() -> Patches:
    """That there is no such turn is believed at once."""

    def confirm_known(key: TurnKey) -> Steps[None]:
        if not (yield Confirm()):
            raise TurnUnknown(key.turn)

    return [
        patch("tailrace.proto.nats.replay.confirm_known", confirm_known),
        patch("tailrace.proto.nats.follower.confirm_known", confirm_known),
    ]


def continuation() -> Patches:
    """What a continuing call says is stored as it comes."""
    return [patch("tests.schedules.generator.continuation_of", lambda *_: None)]


def hedge_fence() -> Patches:
    """A hedge with a token takes the turn, whatever was stored since the attempt that it was late beside."""

    def takes(self: Worker, _: Chain, hedge: Attempt) -> Steps[Chain]:
        turn = yield from folded(self.key, now=self.world.now)
        if turn.chain.is_ended:
            raise FenceLost("it has ended")
        return (yield from self._append(turn.chain, msgspec.structs.replace(hedge, prev=turn.chain.last)))

    return [patch.object(Worker, "_take", takes)]


def race_loser() -> Patches:
    """Whoever's token was not the first writes on behind the other's: both append."""

    def appended(self: Worker, chain: Chain, entry: Entry) -> Steps[Chain]:
        while True:
            try:
                return (yield from _append(self, chain, entry))
            except FenceLost:
                if not self.stream.faults.is_hedged or not isinstance(entry, Event):
                    raise
                chain = (yield from folded(self.key, now=self.world.now)).chain
                if chain.is_ended:
                    raise
                entry = msgspec.structs.replace(entry, prev=chain.last, attempt=chain.attempt)

    return [patch.object(Worker, "_append", appended), patch.object(Worker, "_stop", lambda *_: None)]


MUTANTS: dict[str, Callable[[], Patches]] = {
    made.__name__: made
    for made in (
        fence,
        prev,
        epoch,
        end_is_last,
        tail_rule,
        end_check,
        reader_end_check,
        reader_repeats,
        reader_gap,
        reader_reread,
        cursor_rule,
        acknowledgement_rule,
        reading_as_far_as_told,
        reading_before_planning,
        looking_at_the_leader,
        asking_twice,
        continuation,
        hedge_fence,
        race_loser,
    )
}


@contextmanager
def without(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for changed in MUTANTS[name]():
            stack.enter_context(changed)
        yield


def _steps_to(there: Any) -> Callable[..., Steps[Any]]:
    """No step at all, and that is what they lead to."""

    def steps(*_: Any) -> Steps[Any]:
        yield from ()
        return there

    return steps
