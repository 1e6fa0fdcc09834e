"""How an entry gets into a turn's log exactly once, decided step by step (PROTOCOL R8 to R14). Pure.

After an unclear outcome the tail is read: if what was being appended stands there, it stands; if somebody else's entry
does, the fence is lost; otherwise again. One read never proves that something is not there.
"""

from tailrace.proto import entries
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import MESSAGE_BATCHES, Attempt, Entry
from tailrace.proto.errors import FenceLost, LogFull, LogUnavailable
from tailrace.proto.ids import Seq
from tailrace.proto.nats.replay import confirm_known, is_valid
from tailrace.proto.nats.step import Now, Page, Pause, Publish, Read, Steps, Unclear
from tailrace.proto.subjects import TurnKey

UNCLEAR_WAIT_S = 0.05
# A thousand turns may wait for a leader at once, and half a second more is little beside what it takes to find one.
UNLED_WAIT_S_MAX = 0.5


def append(key: TurnKey, chain: Chain, entry: Entry, *, now: Now, timeout_s: float) -> Steps[Chain]:
    """`chain` with `entry` as its next link, once that is stored.

    Raises FenceLost when another writer has continued the turn, TurnUnknown when it was purged, LogFull, LogUnavailable
    when it is still unclear after `timeout_s` seconds (the entry may then stand).
    """
    linked(chain, Seq(chain.last + 1), entry)
    there = yield from _stored(key, chain, entry, now, timeout_s)
    # Stored is not valid, if a change of leader has let a fork in; and whoever has ended a turn lets go of it.
    if there.is_ended and not (yield from is_valid(key, there.last, START, now)):
        raise FenceLost(f"{key.turn} has another writer, and goes on: the end at {there.last} is a fork's")
    return there


def _stored(key: TurnKey, chain: Chain, entry: Entry, now: Now, timeout_s: float) -> Steps[Chain]:
    fence = chain.last
    deadline, wait_s = now() + timeout_s, UNCLEAR_WAIT_S
    while True:
        try:
            seq: Seq = yield Publish(entry, fence)
            return linked(chain, seq, entry)
        except (Unclear, LogFull) as error:
            unclear: Exception = error
        # Only who leads the stream can say that the turn was purged, and who asks where nobody does waits for nothing.
        is_led = getattr(unclear, "is_answered", True)
        try:
            stands, fence = yield from tail(key, chain, entry, fence, now, is_led=is_led)
        except LogUnavailable as error:
            stands, unclear = None, error
        if stands is not None:
            return stands
        if isinstance(unclear, LogFull):
            raise unclear
        if now() >= deadline:
            raise LogUnavailable(f"the log did not take an entry of {key.turn}: {unclear}") from unclear
        yield Pause(wait_s)
        wait_s = UNCLEAR_WAIT_S if is_led else min(2 * wait_s, UNLED_WAIT_S_MAX)


def tail(
    key: TurnKey, chain: Chain, entry: Entry, fence: Seq, now: Now, *, is_led: bool = True
) -> Steps[tuple[Chain | None, Seq]]:
    """After an unclear append: the chain with it if it stands, else None and the fence to try again with."""
    last = fence
    page: Page = yield Read(chain.last)
    for number, stored in enumerate(page.entries, 1):
        there = link(chain, stored.seq, stored.entry)
        if there is not None and entries.encode(stored.entry) == entries.encode(entry):
            is_followed = number < len(page.entries) or not page.is_last
            if isinstance(entry, Attempt) and entry.backend != MESSAGE_BATCHES and is_followed:
                # Of an attempt nobody tells anything before it stands: this is one that the same process has made
                # before, and what it has read of the turn was older.
                raise FenceLost(f"{key.turn} has had this attempt already, at {stored.seq}")
            return there, fence
        if there is not None:
            raise FenceLost(f"{key.turn} was continued by another writer after {chain.last}")
        last = max(last, stored.seq)
    if chain.last and last == fence and is_led:
        # Nothing follows, which one read does not prove. If the turn was purged, nothing ever will.
        yield from confirm_known(key)
    # Two rivals are stored. The one that is skipped is nobody's predecessor, but the server's fence counts it.
    if last > fence and chain.last and not (yield from is_valid(key, chain.last, START, now)):
        raise FenceLost(f"{key.turn} has another writer, whose entry stands instead of {chain.last}")
    return None, last


def linked(chain: Chain, seq: Seq, entry: Entry) -> Chain:
    there = link(chain, seq, entry)
    if there is None:
        raise AssertionError(f"this entry no reader will take after {chain}: {entry!r:.200}")
    return there
