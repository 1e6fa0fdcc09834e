"""What limits held for a turn by an estimate is settled once the turn has ended, whoever ended it.

It is done before the turn's delivery is acknowledged, or its log is purged: so at least once, by whoever comes to that,
and each counter knows what it was told of a turn already. Calls that were cut off, other attempts, cancelled turns: all
of it is in the `end`, and counts once. What was never asked is settled under the id that its turn would have had.
"""

from tailrace.proto import batch
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq
from tailrace.proto.nats import Counters, Slots, Tombstones
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage


class Settlement:
    def __init__(self, counters: Counters, slots: Slots) -> None:
        self._counters = counters
        self._slots = slots

    async def settle(self, key: TurnKey, turn: Turn) -> None:
        """Puts what an ended turn used in the place of what was held for it. Raises LogUnavailable: settle it again."""
        if turn.request is None or turn.end is None:
            return
        used = {"tokens": rated(turn.end.usage), "nusd": turn.end.cost_nano_usd}
        for hold in turn.request.holds or ():
            if hold.unit == "slot":
                await self._slots.release(Seq(hold.amount))
            else:
                await self._counters.add_once(hold.subject, used[hold.unit] - hold.amount, key.turn)

    async def add(self, request: Request, name: str, usage: Usage, nano_usd: int) -> None:
        """Adds what was used for a turn beside all that its log tells of, once for each `name`.

        Raises LogUnavailable.
        """
        used = {"tokens": rated(usage), "nusd": nano_usd}
        for hold in request.holds or ():
            if hold.unit != "slot":
                await self._counters.add_once(hold.subject, used[hold.unit], name)


async def give_back(tombstones: Tombstones, counters: Counters, child: TurnKey, line: bytes) -> None:
    """Gives back what limits hold for one of a batch's turns, which the log does not have: it will never be asked.

    Raises LogUnavailable: give it back again.
    """
    # One that was deleted has settled its own.
    if not await tombstones.exists(child):
        for hold in batch.decode_input(line).holds or ():
            await counters.add_once(hold.subject, -hold.amount, child.turn)


def rated(usage: Usage) -> int:
    """The tokens that count against a rate. What is read from a cache does not, as with Anthropic's own limits."""
    return usage.input_tokens + usage.output_tokens + usage.cache_creation_input_tokens
