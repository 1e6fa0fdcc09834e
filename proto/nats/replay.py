"""How what is stored of a turn is read, step by step, although one read may be behind (PROTOCOL R14). Pure.

What is known to be stored is read until it is seen. That there is no turn at all is believed when the stream's leader
has said so twice.
"""

from tailrace.proto import entries
from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import Stored
from tailrace.proto.errors import CursorUnknown, LogUnavailable, TurnUnknown
from tailrace.proto.feed_join import Join
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.step import Confirm, Now, Page, Pause, Reached, Read, Steps
from tailrace.proto.subjects import TurnKey

READ_TIMEOUT_S = 5.0
# The measured lag of a follower's read after an acknowledgement was at most 3.4 ms.
STALE_WAIT_S = 0.01
STALE_MAX_S = 5.0
# An old leader that wakes up answers as if it led: 11 ms were measured.
WOKEN_WAIT_S = 0.1


def folded(key: TurnKey, so_far: Turn = EMPTY_TURN, *, now: Now) -> Steps[Turn]:
    """`so_far` and all that is stored after it. Raises TurnUnknown when the log has none of it, LogUnavailable."""
    turn = so_far
    deadline = now() + READ_TIMEOUT_S
    while True:
        page: Page = yield Read(Seq(turn.tail))
        turn = fold(page.entries, turn)
        if not page.is_last:
            continue
        if turn.request is not None:
            return turn
        yield from confirm_known(key)
        if now() >= deadline and turn.tail:
            raise TurnUnknown(f"the log has no request of {key.turn} that can be read")
        if now() >= deadline:
            # Whoever was frozen is here after one read: what is known to be there may not be given up as unknown.
            raise LogUnavailable(f"{key.turn} is stored and cannot be read")
        yield Pause(STALE_WAIT_S)


def folded_upto(key: TurnKey, reached: Seq, *, now: Now) -> Steps[Turn]:
    """The fold, with the entry `reached` in it, which is known to be stored. Raises TurnUnknown, LogUnavailable."""
    turn = yield from folded(key, now=now)
    return (yield from _read_on(key, turn, reached, now))


def folded_now(key: TurnKey, so_far: Turn = EMPTY_TURN, *, now: Now) -> Steps[Turn]:
    """`so_far` and all that was stored after it when this was asked: whoever was told more before is not told less.

    Raises TurnUnknown when the log has none of it, LogUnavailable.
    """
    turn = yield from folded(key, so_far, now=now)
    if turn.end is not None:
        # Nothing follows it, and it can be told also while nobody leads the stream.
        return turn
    reached: Seq = yield Reached()
    if reached == BEFORE_FIRST:
        yield from confirm_known(key)
    return (yield from _read_on(key, turn, reached, now))


def _read_on(key: TurnKey, turn: Turn, reached: Seq, now: Now) -> Steps[Turn]:
    deadline = now() + STALE_MAX_S
    while turn.tail < reached:
        if now() >= deadline:
            raise LogUnavailable(f"{key.turn} is stored further than it can be read")
        yield Pause(STALE_WAIT_S)
        turn = yield from folded(key, turn, now=now)
    return turn


def settled(key: TurnKey, join: Join, now: Now, *, is_first: bool = False) -> Steps[list[Stored]]:
    """The valid entries that `join` does not know yet, up to the last. Raises LogUnavailable; then join is void.

    `is_first`: nothing is known of the turn, and TurnUnknown is raised when the log has none.
    """
    valid: list[Stored] = []
    deadline = now() + READ_TIMEOUT_S
    while True:
        page: Page = yield Read(join.read)
        valid += join.replayed(page.entries)
        if is_first and join.chain.last == BEFORE_FIRST:
            yield from confirm_known(key)
        elif page.is_last and not join.has_gap:
            return valid
        if page.is_last:
            # Known to be stored and not seen: the server that answered is behind.
            if now() >= deadline:
                raise LogUnavailable(f"{key.turn} is stored further than it can be read")
            yield Pause(STALE_WAIT_S)


def is_valid(key: TurnKey, seq: Seq, sure: Chain, now: Now) -> Steps[bool]:
    """Whether the entry at `seq`, which is known to be stored, is a link of the chain that goes on from `sure`."""
    join = Join(sure)
    join.behind = seq
    valid = yield from settled(key, join, now)
    return any(stored.seq == seq for stored in valid)


def chain_at(key: TurnKey, cursor: Seq, now: Now) -> Steps[Chain]:
    """The chain as it was when `cursor` was its last entry. Raises CursorUnknown, LogUnavailable."""
    if cursor == BEFORE_FIRST:
        return START
    deadline = now() + STALE_MAX_S
    while True:
        page: Page = yield Read(Seq(cursor - 1), 1)
        found = page.entries
        if found and found[0].seq == cursor:
            entry = found[0].entry
            attempt = 0 if isinstance(entry, entries.Request) else getattr(entry, "attempt", 0)
            return Chain(cursor, attempt, isinstance(entry, entries.End))
        # Who has later ones has them all. Who has none may be behind, for as long as its way to the others is slow.
        if found or not (yield from _stands(cursor)):
            raise CursorUnknown("the cursor is not an `id:` of this turn: send back the last one that you received")
        if now() >= deadline:
            raise LogUnavailable(f"{key.turn} is stored further than it can be read")
        yield Pause(STALE_WAIT_S)


def confirm_known(key: TurnKey) -> Steps[None]:
    """Raises TurnUnknown, LogUnavailable."""
    if not (yield from _stands(BEFORE_FIRST)):
        raise TurnUnknown(f"the log has no turn {key.turn}")


def _stands(seq: Seq) -> Steps[bool]:
    """What a Confirm asks. A no is believed when it was said twice. Raises LogUnavailable."""
    if (yield Confirm(seq)):
        return True
    yield Pause(WOKEN_WAIT_S)
    return bool((yield Confirm(seq)))
