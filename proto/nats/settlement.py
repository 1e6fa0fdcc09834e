"""Settlement: replaces the estimates that limits have reserved for a turn by its real usage (PROTOCOL R37).

It runs before the turn's delivery is acknowledged or its log is purged, so at least once; the counters accept the
amount of a turn only once. The `end` includes broken calls, all attempts and cancelled turns. Reservations for inputs
of a batch that never became turns are given back under the id that the turn would have had.
"""

from collections.abc import Iterable

from tailrace.proto import batch
from tailrace.proto.entries import Reservation
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats import Counters, Slots, Tombstones
from tailrace.proto.usage import Usage


class Settlement:
    """Settles reservations with the counters and slots of the limits."""

    def __init__(self, counters: Counters, slots: Slots) -> None:
        self._counters = counters
        self._slots = slots

    async def settle(self, key: TurnKey, turn: Turn) -> None:
        """Replaces an ended turn's reservations by its usage. Raises LogUnavailable: call it again."""
        if turn.request is None or turn.end is None:
            return
        used = {"tokens": rated_tokens(turn.end.usage), "nusd": turn.end.cost_nano_usd}
        for hold in turn.request.holds or ():
            if hold.unit == "slot":
                await self._slots.release(Seq(hold.amount))
            else:
                await self._counters.add_once(hold.subject, used[hold.unit] - hold.amount, key.turn)


async def give_back(tombstones: Tombstones, counters: Counters, child: TurnKey, line: bytes) -> None:
    """Gives back the reservations of a batch's input `line` that will never become the turn `child`.

    Raises LogUnavailable: call it again.
    """
    # The reservations of a deleted turn were settled when it was deleted.
    holds = batch.decode_input(line).holds
    if holds and not await tombstones.is_deleted(child):
        await _give_back_holds(counters, child, holds)


async def give_back_deleted(counters: Counters, child: TurnKey, line: bytes) -> None:
    """Gives back the reservations of a batch's input `line` that the caller has just marked as deleted.

    Raises LogUnavailable.
    """
    await _give_back_holds(counters, child, batch.decode_input(line).holds or ())


async def _give_back_holds(counters: Counters, child: TurnKey, holds: Iterable[Reservation]) -> None:
    for hold in holds:
        await counters.add_once(hold.subject, -hold.amount, child.turn)


def rated_tokens(usage: Usage) -> int:
    """Returns the tokens that count against a rate limit: all but those read from a cache, as in Anthropic's limits."""
    return usage.input_tokens + usage.output_tokens + usage.cache_creation_input_tokens
