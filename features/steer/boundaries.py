"""Ends a turn at the end of a content block, for a steer `at: boundary`.

This is a hint: the successor is stored already, and waits for the end of the turn. If this process dies, or the
generator appends the next block first, a later block end is tried, and at last the turn ends by itself.
"""

import asyncio
from contextlib import aclosing

import structlog

from tailrace.proto import events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Event, StoredEntry
from tailrace.proto.errors import FenceLost, LogError
from tailrace.proto.fold import fold
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.nats import TurnLog

logger = structlog.get_logger()


class Boundaries:
    """The turns that end at their next boundary, as long as this process lives."""

    def __init__(self, log: TurnLog) -> None:
        self._log = log
        self._watched: dict[TurnKey, asyncio.Task[None]] = {}

    def watch(self, key: TurnKey, successor: TurnId, by: str | None) -> None:
        """Begins to wait for the boundary of a turn, unless it is watched already."""
        if key not in self._watched:
            self._watched[key] = asyncio.create_task(self._end_quietly(key, successor, by))

    async def run(self) -> None:
        """Waits until it is cancelled, and then watches no more turns."""
        try:
            await asyncio.Event().wait()
        finally:
            for task in self._watched.values():
                task.cancel()

    async def _end_quietly(self, key: TurnKey, successor: TurnId, by: str | None) -> None:
        try:
            await end_at_boundary(self._log, key, successor, by)
        except LogError as error:
            logger.info("turn not ended at a boundary", turn=key.turn, why=str(error))
        finally:
            del self._watched[key]


async def end_at_boundary(log: TurnLog, key: TurnKey, successor: TurnId, by: str | None) -> None:
    """Ends the turn after the next content block whose end is its last entry. Returns at its end. Raises LogError."""
    entries: list[StoredEntry] = []
    async with aclosing(log.follow(key)) as batches:
        async for batch in batches:
            entries += batch
            if not batch or not _is_block_end(batch[-1]):
                continue
            turn = fold(entries)
            end = build_end(turn, "cancelled", cause="steer", by=by, successor=successor)
            try:
                await log.append(key, turn.chain, end)
            except FenceLost:
                # The next block has begun, or the turn has ended.
                continue
            logger.info("turn ended at a boundary", turn=key.turn, successor=successor)


def _is_block_end(stored: StoredEntry) -> bool:
    entry = stored.entry
    return isinstance(entry, Event) and isinstance(events.decode(entry.event), events.BlockStop)
