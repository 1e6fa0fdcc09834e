"""Settlement: replaces the estimates that limits have reserved for a turn by its real usage (PROTOCOL R37).

A settlement runs before the turn's delivery is acknowledged or its log is purged, so at least once; the counters accept
the amount of a turn only once. The `end` includes broken calls, all attempts and cancelled turns.
"""

from collections.abc import Iterable, Sequence

from tailrace.proto.entries import End, Reservation
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats import Counters, Slots
from tailrace.proto.subjects import budget_at
from tailrace.proto.usage import Usage


class Settlement:
    """Settles reservations with the counters and slots of the limits."""

    def __init__(self, counters: Counters, slots: Slots) -> None:
        self._counters = counters
        self._slots = slots

    async def settle(self, key: TurnKey, turn: Turn, steps: Sequence[Reservation] = ()) -> None:
        """Replaces an ended turn's reservations by its usage. Raises LogUnavailable: call it again.

        `steps`: what the turn has reserved beyond the `holds` of its request.
        """
        if turn.request is None or turn.end is None:
            return
        more = {step.subject: step.amount for step in steps}
        for hold in turn.request.holds or ():
            if hold.unit == "slot":
                await self._slots.release(Seq(hold.amount))
                continue
            reserved = hold.amount + more.get(hold.subject, 0)
            for subject, amount in _differences(hold, reserved, turn, turn.end):
                await self._counters.add_once(subject, amount, key.turn)


def _differences(hold: Reservation, reserved: int, turn: Turn, end: End) -> Iterable[tuple[str, int]]:
    """Returns the amounts to add to counters: the usage in place of the reservation.

    Money counts on the day of the turn's acceptance, as in the totals (PROTOCOL R90). A turn of a batch may be accepted
    after the day, or the month, in which the batch has reserved its money.
    """
    if hold.unit == "tokens":
        return [(hold.subject, rated_tokens(end.usage) - reserved)]
    subject = hold.subject if turn.asked_at is None else budget_at(hold.subject, turn.asked_at)
    if subject == hold.subject:
        return [(subject, end.cost_nano_usd - reserved)]
    # First the cost: the counters together are never below it.
    return [(subject, end.cost_nano_usd), (hold.subject, -reserved)]


def rated_tokens(usage: Usage) -> int:
    """Returns the tokens that count against a rate limit: all but those read from a cache, as in Anthropic's limits."""
    return usage.input_tokens + usage.output_tokens + usage.cache_creation_input_tokens
