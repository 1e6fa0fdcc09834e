"""Counts the tokens that turns generated while no reader was connected to any gateway.

The gateway that accepted a turn checks every few seconds whether the turn has readers. It asks other gateways only if
it has none itself. From the times at which the deltas were stored, it then computes the share without readers.
"""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from tailrace.gateway import metrics
from tailrace.gateway.streaming.feed import is_delta
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.proto.entries import End
from tailrace.proto.errors import LogError
from tailrace.proto.ids import BEFORE_FIRST, TurnKey
from tailrace.proto.models import model_label
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime.race import is_set_within

# A client that creates a turn and then opens its stream needs a moment.
FIRST_LOOK_S = 1.0
LOOK_EVERY_S = 5.0


def watch_readers(presence: ReaderPresence, key: TurnKey, model: str) -> None:
    """Begins to watch a stored turn, in a task of the gateway."""
    presence.group.create_task(_watch(presence, key, model))


async def _watch(presence: ReaderPresence, key: TurnKey, model: str) -> None:
    """Looks for readers until the turn has ended or left the log; then counts.

    If the log is unavailable, or the gateway drains before the turn's end, the turn is not counted.
    """
    times, is_unread, wait_s = list[datetime](), list[bool](), FIRST_LOOK_S
    with suppress(LogError):
        while not await is_set_within(presence.draining, wait_s):
            wait_s, has_readers = LOOK_EVERY_S, presence.fan_out.has_readers(key)
            if not has_readers:
                if await presence.is_over(key):
                    break
                has_readers = await presence.has_readers_anywhere(key)
            times.append(datetime.now(UTC))
            is_unread.append(not has_readers)
        else:
            # The gateway drains. The tokens of a turn that runs on are not known yet.
            if not await presence.log.has_end(key):
                return
        if any(is_unread):
            tokens = await _count_unread(presence.log, key, times, is_unread)
            metrics.UNREAD_TOKENS.labels(model_label(model)).inc(tokens)


async def _count_unread(log: TurnLog, key: TurnKey, times: Sequence[datetime], is_unread: Sequence[bool]) -> float:
    """Returns the output tokens of an ended turn, times the share of its deltas that were stored without readers.

    A delta belongs to the next look, or to the last one.
    """
    deltas = unread = tokens = 0
    after = BEFORE_FIRST
    while page := await log.read_entries(key, after):
        after = page[-1].seq
        for stored in page:
            if isinstance(stored.entry, End):
                tokens = stored.entry.usage.output_tokens
            elif is_delta(stored):
                deltas += 1
                unread += is_unread[min(bisect_left(times, stored.at), len(times) - 1)]
    return tokens * unread / deltas if deltas else 0.0
