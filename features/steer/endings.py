"""Ends steered turns after the response: at the end of a content block, or when the log is available again.

The successor is stored already, and waits for the end of the turn. If this process dies, the turn ends by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import structlog

from tailrace.proto import events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Event, StoredEntry
from tailrace.proto.errors import FenceLost, LogError, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, fold
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey

logger = structlog.get_logger()

# The pause after a failure of the log.
AGAIN_S = 1.0


class Endings:
    """Tasks that end steered turns later, as long as this process lives. They are repeated while the log fails."""

    def __init__(self) -> None:
        self._tasks: dict[TurnKey, asyncio.Task[None]] = {}

    def start(self, key: TurnKey, end: Callable[[], Awaitable[None]]) -> None:
        """Begins to end a turn, unless a task with this key runs already."""
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._end(key, end))

    async def run(self) -> None:
        """Waits until it is cancelled, and then cancels the tasks."""
        try:
            await asyncio.Event().wait()
        finally:
            for task in self._tasks.values():
                task.cancel()

    async def _end(self, key: TurnKey, end: Callable[[], Awaitable[None]]) -> None:
        try:
            while True:
                try:
                    await end()
                except TurnUnknown:
                    return
                except LogError as error:
                    logger.info("steered turn not ended yet", turn=key.turn, why=str(error))
                    await asyncio.sleep(AGAIN_S)
                else:
                    return
        finally:
            del self._tasks[key]


async def end_at_boundary(log: TurnLog, key: ScopedKey, successor: TurnId, by: str | None) -> None:
    """Ends the turn after the next content block whose end is its last entry. Returns at its end. Raises LogError.

    If the generator appends the next block first, a later block end is tried.
    """
    turn = EMPTY_TURN
    async with aclosing(log.follow(key)) as batches:
        async for batch in batches:
            turn = fold(batch, turn)
            if not batch or not _is_block_end(batch[-1]):
                continue
            end = build_end(turn, "cancelled", cause="steer", by=by, successor=successor)
            try:
                await log.append(key.plain, turn.chain, end)
            except FenceLost:
                # The next block has begun, or the turn has ended.
                continue
            logger.info("turn ended at a boundary", turn=key.turn, successor=successor)


def _is_block_end(stored: StoredEntry) -> bool:
    entry = stored.entry
    return isinstance(entry, Event) and isinstance(events.decode(entry.event), events.BlockStop)
