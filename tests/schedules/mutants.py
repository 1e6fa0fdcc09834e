"""Mutants: each removes one rule from the product, or the fence from the server. The judge must notice each of them.

A mutant that no seed turns red shows that the simulator cannot see the rule.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from tailrace.generators.plan import Action, plan
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import End, Entry, StoredEntry
from tailrace.proto.errors import CursorUnknown, TurnUnknown
from tailrace.proto.feed_join import FeedJoin
from tailrace.proto.fold import EMPTY_TURN, Turn, fold_first_and_end
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.follower import Follower
from tailrace.proto.nats.log_server import EntryPage, LogServer
from tailrace.proto.nats.replay import read_turn_direct
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.ownership import ScopedKey
from tailrace.testing import MemoryCounters
from tests.schedules.generator import GeneratorLog
from tests.schedules.process import PROCESS
from tests.schedules.server import Answer, SimulatedServer

Patches = list[Any]

_add_live, _append, _read_turn = FeedJoin.add_live, GeneratorLog.append, TurnLog.read_turn
_settle = Settlement.settle

# All modules that follow the chain, but not the judge, which keeps the rule.
LINKS = ("tailrace.proto.nats.append.link", "tailrace.proto.fold.link", "tailrace.proto.feed_join.link")


def fence() -> Patches:
    """The server stores entries whatever their fence."""

    def store_unfenced(self: SimulatedServer, entry: Entry, _: Seq, wait_s: float) -> Answer:
        return wait_s, self.store(entry)

    return [patch.object(SimulatedServer, "apply", store_unfenced)]


def predecessor() -> Patches:
    """An entry is valid whatever its predecessor."""

    def accept_any_predecessor(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
        return link(Chain(entry.prev, chain.attempt, chain.is_ended), seq, entry)

    return [patch(name, accept_any_predecessor) for name in LINKS]


def attempt_number() -> Patches:
    """An entry of an attempt that is over is valid."""

    def accept_any_attempt(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
        there = link(Chain(chain.last, -1, chain.is_ended), seq, entry)
        return there and Chain(there.last, max(there.attempt, chain.attempt), there.is_ended)

    return [patch(name, accept_any_attempt) for name in LINKS]


def last_end() -> Patches:
    """Entries after an end are valid, and an ended turn is continued."""

    def accept_after_end(chain: Chain, seq: Seq, entry: Entry) -> Chain | None:
        return link(Chain(chain.last, chain.attempt), seq, entry)

    def plan_again(turn: Turn, *given: Any) -> Action:
        return plan(msgspec.structs.replace(turn, end=None), *given)

    return [*(patch(name, accept_after_end) for name in LINKS), patch("tailrace.generators.planner.plan", plan_again)]


def tail_read() -> Patches:
    """After an unclear outcome the entry is published again without a look whether it is stored."""

    async def read_tail(
        server: LogServer, key: TurnKey, chain: Chain, _: Entry, fence: Seq, **__: bool
    ) -> tuple[Seq | None, Seq]:
        page = await server.read(key, chain.last)
        return None, max([fence, *(stored.seq for stored in page.entries)])

    return [patch("tailrace.proto.nats.append.read_tail", read_tail)]


def end_check() -> Patches:
    """A writer believes that its end is valid because it was acknowledged."""
    return [patch("tailrace.proto.nats.append.is_stored_chain", _always_return(True))]


def reader_end_check() -> Patches:
    """A follower never compares with the log what the feed has shown."""
    return [
        patch(f"tailrace.proto.nats.follower.{name}", _always_return(True)) for name in ("is_valid", "is_stored_chain")
    ]


def reader_end_wait() -> Patches:
    """A follower passes on an end of the feed as it arrives, without a comparison with the log."""

    def accept(self: Follower, stored: StoredEntry) -> bool:
        if self._receive is None or not self._join.add_next(stored):
            return False
        self._receive([stored])
        return True

    return [patch.object(Follower, "_accept", accept)]


def reader_repeat_check() -> Patches:
    """A follower yields entries from the feed that it has yielded before."""

    def add_live(self: FeedJoin, stored: StoredEntry) -> bool:
        return stored.seq <= self.read_upto or _add_live(self, stored)

    return [patch.object(FeedJoin, "add_live", add_live)]


def reader_gap_check() -> Patches:
    """A follower accepts an entry from the feed although others are missing before it."""

    def add_live(self: FeedJoin, stored: StoredEntry) -> bool:
        if stored.seq <= self.read_upto or self.chain.is_ended:
            return False
        self.chain = Chain(stored.seq, getattr(stored.entry, "attempt", 0), isinstance(stored.entry, End))
        self.read_upto = stored.seq
        return True

    return [patch.object(FeedJoin, "add_live", add_live)]


def reader_reread() -> Patches:
    """A follower does not read the log when the feed is silent."""
    return [patch("tailrace.proto.nats.follower.Follower._read_page", _always_return([]))]


def cursor_retry() -> Patches:
    """A cursor that three reads do not find is refused."""

    async def read_from(server: LogServer, key: TurnKey, cursor: Seq) -> tuple[Chain, EntryPage]:
        for _ in range(3 if cursor else 0):
            found, is_last, _ = await server.read(key, Seq(cursor - 1))
            if found and found[0].seq == cursor:
                entry = found[0].entry
                chain = Chain(cursor, getattr(entry, "attempt", 0), isinstance(entry, End))
                return chain, EntryPage(found[1:], is_last)
        if cursor:
            raise CursorUnknown("the cursor was not found")
        return START, await server.read(key, cursor)

    return [patch("tailrace.proto.nats.follower.read_from", read_from)]


def cancel_retry() -> Patches:
    """A cancellation fails when it has lost the fence to the generator."""
    return [patch("tailrace.proto.nats.cancellation.FenceLost", ZeroDivisionError)]


def acknowledgement_check() -> Patches:
    """A generator that has lost the fence acknowledges the turn's request."""
    return [patch("tailrace.generators.worker.Worker._check_end", _always_return(True))]


def recorder_entry_wait() -> Patches:
    """Persistence folds what a single read returns."""

    async def read_turn_upto(self: TurnLog, key: ScopedKey, _: Seq, __: int | None = None) -> Turn:
        return await read_turn_direct(self, key.plain)

    async def read_direct(server: LogServer, key: TurnKey, _: Seq) -> Turn:
        return await read_turn_direct(server, key)

    return [
        patch.object(TurnLog, "read_turn_upto", read_turn_upto),
        patch("tailrace.proto.nats.replay.read_turn_upto", read_direct),
    ]


def recorder_entry_count() -> Patches:
    """Persistence records an ended turn from its first entries and its end, whatever else the log has."""

    async def read_ended_turn(self: TurnLog, key: ScopedKey, end: StoredEntry) -> Turn:
        page = await self.read_first(key.plain)
        return fold_first_and_end(page.entries, end) or await self.read_turn_upto(key, end.seq)

    return [patch.object(TurnLog, "read_ended_turn", read_ended_turn)]


def planner_second_read() -> Patches:
    """A generator plans by what a single read returns."""
    return [patch.object(TurnLog, "read_turn", _read_once_in("generator"))]


def get_second_read() -> Patches:
    """A client that gets the turn receives what a single read returns."""
    return [patch.object(TurnLog, "read_turn", _read_once_in("poller"))]


def absence_second_read() -> Patches:
    """One answer of a leader is enough to say that a turn does not exist."""

    async def require_turn(server: LogServer, key: TurnKey) -> Seq:
        if (request := await server.last_seq(key, "request")) == BEFORE_FIRST:
            raise TurnUnknown(key.turn)
        return request

    return [
        patch(f"tailrace.proto.nats.{module}.require_turn", require_turn) for module in ("replay", "follower", "append")
    ]


def settlement_once() -> Patches:
    """A turn that is delivered again is settled again."""

    async def add_again(self: MemoryCounters, subject: str, amount: int, _: str) -> None:
        await self.add(subject, amount)

    return [patch.object(MemoryCounters, "add_once", add_again)]


def settlement_before_ack() -> Patches:
    """The request of an ended turn is acknowledged without a settlement if another generator has written the end."""

    async def settle(self: Settlement, key: TurnKey, turn: Turn) -> None:
        process = PROCESS.get()
        if turn.end is not None and process is not None and process.name.count("'") == 0:
            await _settle(self, key, turn)

    return [patch.object(Settlement, "settle", settle)]


def continuation_mapping() -> Patches:
    """The events of a continuing call are stored as they come."""
    return [patch("tailrace.generators.continuation.build_mapper", lambda *_: None)]


MUTANTS: dict[str, Callable[[], Patches]] = {
    made.__name__: made
    for made in (
        *(fence, predecessor, attempt_number, last_end, tail_read, end_check, reader_end_check, reader_end_wait),
        *(reader_repeat_check, reader_gap_check, reader_reread, cursor_retry, cancel_retry, acknowledgement_check),
        *(recorder_entry_wait, recorder_entry_count, planner_second_read, get_second_read, absence_second_read),
        *(continuation_mapping, settlement_once, settlement_before_ack),
    )
}


@contextmanager
def disable(name: str) -> Iterator[None]:
    """Disables the rule `name` while the block runs."""
    with ExitStack() as stack:
        for changed in MUTANTS[name]():
            stack.enter_context(changed)
        yield


def _always_return(value: Any) -> Callable[..., Awaitable[Any]]:
    async def instead(*_: Any, **__: Any) -> Any:
        return value

    return instead


def _read_once_in(role: str) -> Callable[..., Awaitable[Turn]]:
    """A `TurnLog.read_turn` that is content with a single read in the processes whose name begins with `role`."""

    async def read_turn(self: TurnLog, key: ScopedKey, known: Turn = EMPTY_TURN) -> Turn:
        process = PROCESS.get()
        if process is not None and process.name.startswith(role):
            return await read_turn_direct(self, key.plain, known)
        return await _read_turn(self, key, known)

    return read_turn
