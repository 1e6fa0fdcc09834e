"""Doubles in memory of the services that Tailrace's processes share, for tests of a feature or of another extension.

They replace nats-server and the database, and need neither. The rules are the product's own: `MemoryLog` is a `TurnLog`
whose appends, reads and followers run the code of `proto/nats` over a list. For example, a function that ends a turn:

>>> import asyncio
>>> from tailrace.proto.chain import START
>>> from tailrace.proto.end_entry import build_end
>>> from tailrace.proto.entries import Message, Request
>>> from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
>>> from tailrace.proto.nats import TurnLog
>>> from tailrace.proto.ownership import ScopedKey
>>> from tailrace.testing import MemoryLog
>>> async def give_up(log: TurnLog, key: TurnKey) -> None:
...     turn = await log.read_turn(ScopedKey.whole(key))
...     await log.append(key, turn.chain, build_end(turn, "cancelled"))
>>> async def test_a_turn_that_is_given_up_is_cancelled() -> None:
...     log, key = MemoryLog(), TurnKey(Tenant("acme"), TurnId("turn-1"))
...     fields = {"model": "claude-sonnet-5-5", "max_tokens": 100, "session": SessionId("s")}
...     await log.append(key, START, Request(messages=[Message("user", "Why?")], **fields))
...     await give_up(log, key)
...     assert (await log.read_turn(ScopedKey.whole(key))).outcome == "cancelled"
>>> asyncio.run(test_a_turn_that_is_given_up_is_cancelled())

A double answers at once and never fails, unless a test says otherwise: `MemoryLog.append_errors` for example. Time is
the event loop's. What only a server can show (its disk, its leader, its permissions) needs a real one.
"""

from tailrace.testing.buckets import MemoryClaims, MemoryStepRecords, MemoryTombstones
from tailrace.testing.deliveries import MemoryDeliveries, MemoryDelivery
from tailrace.testing.limits import MemoryCounters, MemorySlots
from tailrace.testing.log import MemoryLog, TurnEntries
from tailrace.testing.store import MemoryStore

__all__ = [
    "MemoryClaims",
    "MemoryCounters",
    "MemoryDeliveries",
    "MemoryDelivery",
    "MemoryLog",
    "MemorySlots",
    "MemoryStepRecords",
    "MemoryStore",
    "MemoryTombstones",
    "TurnEntries",
]
