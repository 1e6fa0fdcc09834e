"""Settlement: replaces the estimates that limits have reserved for a turn by its real usage (PROTOCOL R37).

A settlement runs before the turn's delivery is acknowledged or its log is purged, so at least once; the counters accept
the amount of a turn only once. The `end` includes broken calls, all attempts and cancelled turns.
"""

from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats import Counters, Slots
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


def rated_tokens(usage: Usage) -> int:
    """Returns the tokens that count against a rate limit: all but those read from a cache, as in Anthropic's limits."""
    return usage.input_tokens + usage.output_tokens + usage.cache_creation_input_tokens
