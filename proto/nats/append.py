"""append: stores one entry in a turn's log exactly once, behind the fence (PROTOCOL R8 to R14).

After an unclear outcome the tail of the log is read. If it holds the entry, the append has succeeded; if it holds
another writer's entry, the fence is lost; otherwise the entry is published again. A single read never proves that an
entry is missing.
"""

import asyncio

from tailrace.proto import entries
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import MESSAGE_BATCHES, Attempt, Entry
from tailrace.proto.errors import FenceLost, LogFull, LogUnavailable
from tailrace.proto.ids import Seq
from tailrace.proto.nats.log_server import LogServer, PublishUnclear
from tailrace.proto.nats.replay import is_valid, require_turn
from tailrace.proto.subjects import TurnKey

UNCLEAR_WAIT_S = 0.05
# A thousand turns may wait for a new leader at once. Finding one takes seconds, so half a second more matters little.
NO_LEADER_WAIT_S_MAX = 0.5


async def append(server: LogServer, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float) -> Chain:
    """Stores `entry` as the next link of `chain`; returns the extended chain.

    Raises FenceLost when another writer has continued the turn, TurnUnknown when the turn was purged, LogFull,
    EntryTooLarge, and LogUnavailable when the outcome is still unclear after `timeout_s` seconds (the entry may then be
    stored).
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    expected = link(chain, Seq(chain.last + 1), entry)
    if expected is None:
        raise AssertionError(f"the entry does not continue {chain}: {entry!r:.200}")
    try:
        seq = await server.publish(key, entry, chain.last)
    except (PublishUnclear, LogFull) as error:
        seq = await _publish_again(server, key, chain, entry, error, deadline)
    extended = Chain(seq, expected.attempt, expected.is_ended)
    # After a change of leader a stored end may belong to a fork, and its writer is about to leave the turn.
    if extended.is_ended and not await is_valid(server, key, extended.last, START):
        raise FenceLost(f"{key.turn} has another writer and is not ended: the end at {extended.last} is a fork's")
    return extended


async def _publish_again(
    server: LogServer, key: TurnKey, chain: Chain, entry: Entry, error: Exception, deadline: float
) -> Seq:
    """Reads the tail after `error` and publishes again until the entry is stored; raises as `append` does."""
    fence, wait_s = chain.last, UNCLEAR_WAIT_S
    while True:
        # Only a leader knows that a turn was purged. Without one the question would wait for its time-out.
        is_led = not isinstance(error, PublishUnclear) or error.is_answered
        try:
            seq, fence = await read_tail(server, key, chain, entry, fence, is_led=is_led)
        except LogUnavailable as unavailable:
            seq, error = None, unavailable
        if seq is not None:
            return seq
        if isinstance(error, LogFull):
            raise error
        if asyncio.get_running_loop().time() >= deadline:
            raise LogUnavailable(f"an entry of {key.turn} could not be stored in time: {error}") from error
        await asyncio.sleep(wait_s)
        wait_s = UNCLEAR_WAIT_S if is_led else min(2 * wait_s, NO_LEADER_WAIT_S_MAX)
        try:
            return await server.publish(key, entry, fence)
        except (PublishUnclear, LogFull) as again:
            error = again


async def read_tail(
    server: LogServer, key: TurnKey, chain: Chain, entry: Entry, fence: Seq, *, is_led: bool = True
) -> tuple[Seq | None, Seq]:
    """Reads the log after `chain` to learn the outcome of an append: the sequence of `entry` if it is stored.

    Otherwise None, and the fence for the next publish. Raises FenceLost, TurnUnknown, LogUnavailable.
    """
    last = fence
    page = await server.read(key, chain.last)
    for number, stored in enumerate(page.entries, 1):
        is_next = link(chain, stored.seq, stored.entry) is not None
        if is_next and entries.encode(stored.entry) == entries.encode(entry):
            is_followed = number < len(page.entries) or not page.is_last
            if isinstance(entry, Attempt) and entry.backend != MESSAGE_BATCHES and is_followed:
                # Nothing is appended under an attempt before it is known to be stored. So this process has appended the
                # same attempt earlier, and has now planned from an older read of the turn.
                raise FenceLost(f"{key.turn} already has this attempt, at {stored.seq}")
            return stored.seq, fence
        if is_next:
            raise FenceLost(f"another writer has continued {key.turn} after {chain.last}")
        last = max(last, stored.seq)
    if chain.last and last == fence and is_led:
        # Nothing follows, which one read does not prove. If the turn was purged, nothing will ever follow.
        await require_turn(server, key)
    # Two rivals are stored. The skipped one has no successors, but the server's fence counts it.
    if last > fence and chain.last and not await is_valid(server, key, chain.last, START):
        raise FenceLost(f"another writer of {key.turn} has an entry in the place of {chain.last}")
    return None, last
