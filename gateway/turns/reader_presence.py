"""Whether a running turn has readers, at this gateway or at any other."""

import asyncio
from typing import NamedTuple

from tailrace.gateway.streaming.feed import FanOut
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.flag import Flag

# How long gateways, this one included, may take to answer that they have readers of the turn.
PRESENCE_TIMEOUT_S = 0.3


class ReaderPresence(NamedTuple):
    """Shared by the tasks that look for readers of running turns: they run in `group` until `draining` is set."""

    log: TurnLog
    rpc: Rpc
    fan_out: FanOut
    group: asyncio.TaskGroup
    draining: Flag

    async def is_over(self, key: TurnKey) -> bool:
        """Returns whether the turn has ended or has left the log. Asks the log only if this gateway has read no end.

        Raises LogUnavailable.
        """
        if self.fan_out.has_ended(key) or await self.log.has_end(key):
            return True
        return not await self.log.has_turn(ScopedKey.whole(key))

    async def has_readers_anywhere(self, key: TurnKey) -> bool:
        """Returns whether a gateway answers within PRESENCE_TIMEOUT_S that it has readers of the turn.

        False may also mean that a gateway with readers was too busy to answer.
        """
        return await self.rpc.has_readers(key, timeout_s=PRESENCE_TIMEOUT_S)
