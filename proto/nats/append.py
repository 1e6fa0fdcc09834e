"""append: stores one entry in a turn's log exactly once, behind the fence (PROTOCOL R8 to R14).

After an unclear outcome the tail of the log is read. If it holds the entry, the append has succeeded; if it holds
another writer's entry, the fence is lost; otherwise the entry is published again. A single read never proves that an
entry is missing.
"""

import asyncio
from typing import NamedTuple

from tailrace.proto import entries
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import Attempt, Entry
from tailrace.proto.errors import FenceLost, LogFull, LogUnavailable
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats.log_server import LogServer, PublishUnclear
from tailrace.proto.nats.replay import is_stored_chain, is_valid, require_turn

TIMEOUT_S = 30.0
UNCLEAR_WAIT_S = 0.05
# A thousand turns may wait for a new leader at once. An election takes seconds, so half a second more matters little.
NO_LEADER_WAIT_S_MAX = 0.5


class Tail(NamedTuple):
    """The outcome of an append, read from the log."""

    seq: Seq | None
    """The sequence of the entry; None if no stored copy of it was found."""
    fence: Seq
    """The fence for the next publish."""


async def append(
    server: LogServer,
    key: TurnKey,
    chain: Chain,
    entry: Entry,
    *,
    timeout_s: float = TIMEOUT_S,
    failed: PublishUnclear | None = None,
) -> Chain:
    """Stores `entry` as the next link of `chain`; returns the extended chain.

    `entry.prev` must be `chain.last`. `failed`: the outcome of `publish_soon`, which has published the entry already.
    Raises FenceLost when another writer has continued the turn, TurnUnknown when the turn was purged, LogFull,
    EntryTooLarge, and LogUnavailable when the outcome is still unclear after `timeout_s` seconds (the entry may then be
    stored). Raises AssertionError for an entry that does not continue the chain.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    if link(chain, Seq(chain.last + 1), entry) is None:
        # Without the entry: it would be in the log of the process.
        raise AssertionError(f"a {type(entry).__name__} after {entry.prev} does not continue the chain at {chain.last}")
    if failed is not None:
        seq = await _publish_again(server, key, chain, entry, failed, deadline)
    else:
        try:
            seq = await server.publish(key, entry, chain.last)
        except (PublishUnclear, LogFull) as error:
            seq = await _publish_again(server, key, chain, entry, error, deadline)
    extended = link(chain, seq, entry)
    assert extended is not None  # noqa: S101  # as above: `seq` makes no difference
    # After a change of leader a stored end may belong to a fork. The turn then has no valid end: its writer must know.
    if extended.is_ended and not await is_stored_chain(server, key, extended):
        raise FenceLost(
            f"{key.turn} has another writer and has not ended: the end at {extended.last} belongs to a fork"
        )
    return extended


async def _publish_again(
    server: LogServer, key: TurnKey, chain: Chain, entry: Entry, error: Exception, deadline: float
) -> Seq:
    """Publishes again after `error`, and reads the tail before each try; returns the sequence of the stored entry.

    Raises as `append` does.
    """
    fence, wait_s = chain.last, UNCLEAR_WAIT_S
    while True:
        # An answer to the publish shows that the stream has a leader. `read_tail` asks the leader whether the turn was
        # purged; without a leader, this request would wait for its timeout.
        has_leader = not isinstance(error, PublishUnclear) or error.is_answered
        try:
            seq, fence = await read_tail(server, key, chain, entry, fence, has_leader=has_leader)
        except LogUnavailable as unavailable:
            seq, error = None, unavailable
        if seq is not None:
            return seq
        if isinstance(error, LogFull):
            raise error
        if asyncio.get_running_loop().time() >= deadline:
            raise LogUnavailable(f"an entry of {key.turn} could not be stored in time: {error}") from error
        await asyncio.sleep(wait_s)
        wait_s = UNCLEAR_WAIT_S if has_leader else min(2 * wait_s, NO_LEADER_WAIT_S_MAX)
        try:
            return await server.publish(key, entry, fence)
        except (PublishUnclear, LogFull) as again:
            error = again


async def read_tail(
    server: LogServer, key: TurnKey, chain: Chain, entry: Entry, fence: Seq, *, has_leader: bool
) -> Tail:
    """Reads the log after `chain` and returns whether `entry` is stored, and the fence for the next publish.

    Raises FenceLost when another writer has continued the turn, TurnUnknown when it was purged, LogUnavailable. Checks
    for a purge only if `has_leader`.
    """
    last = fence
    page = await server.read(key, chain.last)
    for number, stored in enumerate(page.entries, 1):
        is_next = link(chain, stored.seq, stored.entry) is not None
        if is_next and entries.encode(stored.entry) == entries.encode(entry):
            is_followed = number < len(page.entries) or not page.is_last
            if isinstance(entry, Attempt) and not entry.is_shared and is_followed:
                # A generator appends events of an attempt only after it knows that the attempt is stored. So this
                # process has stored the same attempt earlier, and has planned it again from a read that was behind.
                raise FenceLost(f"{key.turn} already has this attempt, at {stored.seq}")
            return Tail(stored.seq, fence)
        if is_next:
            raise FenceLost(f"another writer has continued {key.turn} after {chain.last}")
        last = max(last, stored.seq)
    if chain.last and last == fence and has_leader:
        # The read found no entry after `chain`: the server that answered is behind, or the turn was purged.
        await require_turn(server, key)
    # The entries found do not continue `chain`: they or `chain.last` belong to a fork. If `chain.last` does, this
    # writer has lost. If they do, readers skip them, but the server's fence counts them.
    if last > fence and chain.last and not await is_valid(server, key, chain.last, START):
        raise FenceLost(f"another writer of {key.turn} has stored a valid entry instead of the one at {chain.last}")
    return Tail(None, last)
