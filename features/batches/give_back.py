"""Gives back the reservations of limits for inputs of a batch that never became turns (PROTOCOL R37).

The id that the turn would have had marks the refund, so that a repeated call has no effect.
"""

from collections.abc import Iterable

from tailrace.features.batches import input_lines
from tailrace.proto.entries import Reservation
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Counters, Tombstones


async def give_back(tombstones: Tombstones, counters: Counters, child: TurnKey, line: bytes) -> None:
    """Gives back the reservations of a batch's input `line` that will never become the turn `child`.

    Raises LogUnavailable: call it again.
    """
    # The reservations of a deleted turn were settled when it was deleted.
    holds = input_lines.decode_input(line).holds
    if holds and not await tombstones.is_deleted(child):
        await _give_back_holds(counters, child, holds)


async def give_back_deleted(counters: Counters, child: TurnKey, line: bytes) -> None:
    """Gives back the reservations of a batch's input `line` that the caller has just marked as deleted.

    Raises LogUnavailable.
    """
    await _give_back_holds(counters, child, input_lines.decode_input(line).holds or ())


async def _give_back_holds(counters: Counters, child: TurnKey, holds: Iterable[Reservation]) -> None:
    for hold in holds:
        await counters.add_once(hold.subject, -hold.amount, child.turn)
