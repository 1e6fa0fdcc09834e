"""Reads of a turn's log that stay correct although a single read may be behind (PROTOCOL R14, R72, R80).

Reads are repeated until an entry that is known to be stored is seen. A turn is unknown only when the stream's leader
has said so twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from tailrace.proto import entries
from tailrace.proto.chain import START, Chain
from tailrace.proto.damage import Continuity
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import CursorUnknown, LogUnavailable, TurnDamaged, TurnUnknown
from tailrace.proto.feed_join import FeedJoin
from tailrace.proto.fold import EMPTY_TURN, Turn, fold, fold_first_and_end
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats.log_server import EntryPage, LogServer
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.runtime.gather import gather_limited

T = TypeVar("T")

READ_TIMEOUT_S = 5.0
# The measured lag of a follower's read after an acknowledgement was at most 3.4 ms.
STALE_WAIT_S = 0.01
STALE_MAX_S = 5.0
# A former leader that wakes up answers as if it still led; 11 ms were measured.
WOKEN_WAIT_S = 0.1
# After so long without an entry, a turn without an end may have lost it.
SILENT_S = 10.0
# Concurrent requests to the leader of the stream.
LOOKED_UP_AT_ONCE = 16


async def read_turn_direct(server: LogServer, key: TurnKey, known: Turn = EMPTY_TURN) -> Turn:
    """Folds onto `known` the entries after it that any one replica has (direct gets). The replica may be behind.

    Raises TurnUnknown when the log has no such turn, TurnDamaged when it has lost entries of the turn, LogUnavailable.
    Asks the leader only if no request is found, or if entries may be lost.
    """
    turn = await read_remains(server, key, known)
    if turn.end is None and turn.skipped:
        await require_whole(server, key)
    elif turn.end is None and turn.last_entry_at is not None and age_s(turn.last_entry_at) > SILENT_S:
        await require_end_not_lost(server, key)
    return turn


async def read_remains(server: LogServer, key: TurnKey, known: Turn = EMPTY_TURN) -> Turn:
    """Like `read_turn_direct`, but also folds what is left of a turn of which the log has lost entries."""
    turn = known
    deadline = asyncio.get_running_loop().time() + READ_TIMEOUT_S
    while True:
        page = await server.read(key, Seq(turn.tail))
        turn = fold(page.entries, turn)
        if not page.is_last:
            continue
        if turn.request is not None:
            return turn
        await _require_unread_request(server, key, Seq(turn.tail))
        if asyncio.get_running_loop().time() >= deadline:
            raise LogUnavailable(f"{key.turn} is stored but cannot be read yet: try again")
        await asyncio.sleep(STALE_WAIT_S)


async def read_turn_upto(server: LogServer, key: TurnKey, seq: Seq, enough: int | None = None) -> Turn:
    """Folds the turn, including the entry at `seq`, which is known to be stored. Raises TurnUnknown, LogUnavailable.

    Folds only the first `enough` entries if the one at `seq` is among them.
    """
    if enough is not None:
        first = fold((await server.read(key, BEFORE_FIRST, enough)).entries)
        if first.request is not None and first.tail >= seq:
            return first
    return await _read_on(server, key, await read_turn_direct(server, key), seq)


async def read_ended_turn(server: LogServer, key: TurnKey, end: StoredEntry) -> Turn:
    """Folds an ended turn as far as a record needs it: from its first entries and its `end` if these are enough.

    If not, folds all entries (PROTOCOL R110). If the log has lost one of them, the first entries and the `end` must be
    enough. Raises TurnUnknown, TurnDamaged, LogUnavailable.
    """
    length = end.entry.length if isinstance(end.entry, entries.End) else None
    if length is not None:
        with suppress(LogUnavailable):
            page = await server.read_first(key)
            request = fold(page.entries[:1]).chain.first
            # A log without forks is counted, too: an entry may come from a writer that sends no fence.
            if request and server.is_forkless(key, request):
                # The one server that has the log has answered this read.
                is_whole = len(page.entries) + page.following == length
            else:
                is_whole = await _has_entries(server, key, length, end.seq)
            if is_whole and (turn := fold_first_and_end(page.entries, end)) is not None:
                return turn
    try:
        return await read_turn_upto(server, key, end.seq)
    except TurnDamaged:
        # The end repeats what is lost, unless the answer is long.
        if (turn := fold_first_and_end((await server.read(key, BEFORE_FIRST)).entries, end)) is not None:
            return turn
        raise


async def read_turn(server: LogServer, key: TurnKey, known: Turn = EMPTY_TURN) -> Turn:
    """Folds onto `known` all entries that were stored at the time of the call (PROTOCOL R72).

    Raises TurnUnknown when the log has no such turn, LogUnavailable. Only an ended turn can be read without a leader.
    """
    turn = await read_turn_direct(server, key, known)
    if turn.end is not None:
        # Nothing follows an end.
        return turn
    last = await server.last_seq(key)
    if last == BEFORE_FIRST:
        await require_turn(server, key)
    return await _read_on(server, key, turn, last)


async def _read_on(server: LogServer, key: TurnKey, turn: Turn, seq: Seq) -> Turn:
    deadline = asyncio.get_running_loop().time() + STALE_MAX_S
    while turn.tail < seq:
        if asyncio.get_running_loop().time() >= deadline:
            raise LogUnavailable(f"{key.turn} has an entry at {seq} that cannot be read yet: try again")
        await asyncio.sleep(STALE_WAIT_S)
        turn = await read_turn_direct(server, key, turn)
    return turn


async def read_valid(
    server: LogServer, key: TurnKey, join: FeedJoin, page: EntryPage | None = None, *, is_first: bool = False
) -> list[StoredEntry]:
    """Reads the log until `join` has no gap; returns the valid entries that `join` did not have.

    `page` has been read already. `is_first`: nothing is known of the turn yet, and TurnUnknown is raised when the log
    has no such turn, or its request cannot be decoded. Raises LogUnavailable; `join` must then be discarded.
    """
    valid: list[StoredEntry] = []
    deadline = asyncio.get_running_loop().time() + READ_TIMEOUT_S
    while True:
        page = page or await server.read(key, join.read_upto)
        valid += join.add_read(page.entries)
        if is_first and join.chain.last == BEFORE_FIRST:
            await _require_unread_request(server, key, join.read_upto)
        elif page.is_last and not join.has_gap:
            return valid
        if page.is_last:
            # The entry is stored, and the server that answered is behind.
            if asyncio.get_running_loop().time() >= deadline:
                raise LogUnavailable(f"{key.turn} has entries that cannot be read yet: try again")
            await asyncio.sleep(STALE_WAIT_S)
        page = None


async def is_stored_chain(server: LogServer, key: TurnKey, chain: Chain, start: Chain | None = START) -> bool:
    """Returns whether the log's chain is `chain`, whose entries were all stored (PROTOCOL R80).

    `start` is a beginning of `chain` that is known to be valid. A log without forks, or with as many entries as
    `chain`, has no other entries. Otherwise, and with None, the entries are read. None: an entry of the turn does not
    continue `chain`, so the log has a fork or has lost an entry. Raises LogUnavailable.
    """
    if start is None:
        return await is_valid(server, key, chain.last, START)
    if chain.first and server.is_forkless(key, chain.first):
        return True
    if chain.length is not None:
        with suppress(LogUnavailable):
            if await _has_entries(server, key, chain.length, chain.last):
                return True
    return await is_valid(server, key, chain.last, start)


async def _has_entries(server: LogServer, key: TurnKey, length: int, last: Seq) -> bool:
    """Returns whether the leader says that the log has `length` entries of the turn, and has reached `last`."""
    count = await server.count(key)
    return count.upto >= last and count.entries == length


async def is_valid(server: LogServer, key: TurnKey, seq: Seq, start: Chain) -> bool:
    """Reads whether the entry at `seq`, which is known to be stored, is a link of the chain that continues `start`.

    Raises LogUnavailable.
    """
    join = FeedJoin(start)
    join.stored_upto = seq
    return any(stored.seq == seq for stored in await read_valid(server, key, join))


async def read_from(server: LogServer, key: TurnKey, cursor: Seq) -> tuple[Chain, EntryPage]:
    """Returns the chain whose last entry is the entry at `cursor`, valid or not, and the first page of entries after
    it.

    Raises CursorUnknown when the turn has no such entry, LogUnavailable.
    """
    if cursor == BEFORE_FIRST:
        return START, await server.read(key, cursor)
    deadline = asyncio.get_running_loop().time() + STALE_MAX_S
    while True:
        found, is_last, _ = await server.read(key, Seq(cursor - 1))
        if found and found[0].seq == cursor:
            entry = found[0].entry
            # A request and an unreadable entry have no attempt.
            chain = Chain(cursor, getattr(entry, "attempt", 0), isinstance(entry, entries.End))
            return chain, EntryPage(found[1:], is_last)
        # A server that has a later entry has all before it. A server without one may be behind, as long as its
        # connection to the others is slow.
        if found or not await ask_twice(lambda: server.has_entry(key, cursor)):
            raise CursorUnknown("the cursor is not an `id:` of this turn: send back the last one that you received")
        if asyncio.get_running_loop().time() >= deadline:
            raise LogUnavailable(f"{key.turn} has an entry at {cursor} that cannot be read yet: try again")
        await asyncio.sleep(STALE_WAIT_S)


async def require_turn(server: LogServer, key: TurnKey) -> Seq:
    """Returns the sequence of the turn's request.

    Raises TurnUnknown when the stream's leader has said twice that the turn has none; LogUnavailable.
    """
    if (request := await ask_twice(lambda: server.last_seq(key, "request"))) == BEFORE_FIRST:
        raise TurnUnknown(f"the log has no turn {key.turn}")
    return request


async def _require_unread_request(server: LogServer, key: TurnKey, upto: Seq) -> None:
    """Raises as `require_turn` does. `upto`: the log was read up to this entry, and no valid request was found.

    Also TurnUnknown if the request is among these entries: it cannot be decoded, and further reads change nothing.
    """
    if await require_turn(server, key) <= upto:
        raise TurnUnknown(f"{key.turn} has no request in the log that can be read")


async def require_whole(server: LogServer, key: TurnKey) -> None:
    """Raises TurnDamaged if the log has lost entries of the turn, and has no valid end of it (PROTOCOL R144).

    Returns if the database has no end either: a generator then ends the turn. Raises LogUnavailable.
    """
    # First: an end that the database has was stored before the log is read.
    is_recorded = await server.has_recorded_end(key)
    if (lost := await _find_lost(server, key)) is not None:
        await server.note_damage(key, f"the entry at {lost}")
        if is_recorded is not False:
            raise TurnDamaged(f"the log has lost the entry of {key.turn} at {lost}")


async def require_end_not_lost(server: LogServer, key: TurnKey) -> None:
    """Raises TurnDamaged if the database has the end of the turn, and the log has lost it (PROTOCOL R144).

    For a turn without a valid end in which nothing happens. Raises LogUnavailable.
    """
    if not await server.has_recorded_end(key):
        return
    if await ask_twice(lambda: server.last_seq(key, "end")) != BEFORE_FIRST:
        # The last read was behind, or the end is not valid, because an entry before it is lost.
        await require_whole(server, key)
        return
    # Without its request, the turn has left the log.
    await require_turn(server, key)
    await server.note_damage(key, "the end")
    raise TurnDamaged(f"the log has lost the end of {key.turn}")


async def _find_lost(server: LogServer, key: TurnKey) -> Seq | None:
    """Returns the sequence of an entry that an entry of the turn names and that the leader denies twice.

    None if no entry is missing, or if the turn has a valid end. Raises TurnUnknown if the turn has left the log,
    LogUnavailable.
    """
    found, after = Continuity(), BEFORE_FIRST
    while True:
        page = await server.read(key, after)
        found.add(page.entries)
        if page.is_last or not page.entries:
            break
        after = page.entries[-1].seq
    if found.chain.is_ended or not found.missing:
        return None
    lost = found.missing[0]
    if await ask_twice(lambda: server.has_entry(key, lost)):
        return None
    await require_turn(server, key)
    return lost


async def find_stored(server: LogServer, keys: Iterable[TurnKey]) -> set[TurnKey]:
    """Returns the turns of `keys` whose request the stream's leader has. Raises LogUnavailable.

    Asks as `require_turn` does, but waits once for all of them before it asks again.
    """
    left, found = list(keys), set[TurnKey]()
    for wait_s in (0.0, WOKEN_WAIT_S):
        if not left:
            break
        await asyncio.sleep(wait_s)
        last = await gather_limited(lambda key: server.last_seq(key, "request"), left, LOOKED_UP_AT_ONCE)
        found.update(key for key, seq in zip(left, last, strict=True) if seq != BEFORE_FIRST)
        left = [key for key in left if key not in found]
    return found


async def ask_twice(ask: Callable[[], Awaitable[T]]) -> T:
    """Returns the answer of the stream's leader, and asks it again if it has found nothing (a false value).

    A former leader that has just woken up may find nothing once. Raises what `ask` raises.
    """
    if found := await ask():
        return found
    await asyncio.sleep(WOKEN_WAIT_S)
    return await ask()
