"""MemoryStore: the rows of recorded turns in memory, for the recorder and what reads single turns."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from tailrace.persistence.rows import TurnRow, build_row, turn_record
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tailrace.proto.records import TurnRecord


async def _answer_at_once() -> None:
    """Does nothing."""


class MemoryStore:
    """The product's Store for single turns. A test of lists, searches or sums opens a SQLite file instead."""

    system = "memory"

    def __init__(self) -> None:
        self.rows: dict[TurnKey, TurnRow] = {}
        self.transactions = 0
        self.answered_at = 0.0
        """When the database has last answered, in the time of the event loop."""
        self.write: Callable[[], Awaitable[None]] = _answer_at_once
        """Runs before each transaction: a test may have it wait, or raise an error of a database."""
        self.check: Callable[[], Awaitable[None]] = _answer_at_once
        """The same for the search for lost turns."""
        self.released: list[tuple[Tenant, str]] = []
        """The blobs that were released, with their tenant."""

    async def record(self, rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:  # noqa: ARG002
        """Writes the rows. The row of an ended turn is never overwritten by that of a running one."""
        await self.write()
        self.transactions += 1
        for row in rows:
            key = TurnKey(Tenant(row.tenant), TurnId(row.turn))
            if row.ended_at is not None or (earlier := self.rows.get(key)) is None or earlier.ended_at is None:
                self.rows[key] = row

    def build_row(self, key: TurnKey, turn: Turn) -> TurnRow:
        return build_row(key, turn)

    async def turn(self, key: TurnKey) -> TurnRecord | None:
        row = self.rows.get(key)
        return turn_record(msgspec.structs.asdict(row)) if row is not None else None

    async def running_turns(self) -> list[TurnKey]:
        return [key for key, row in self.rows.items() if row.ended_at is None]

    async def fail_expired(self, first: Seq) -> int:  # noqa: ARG002  # the log in memory keeps all
        await self.check()
        return 0

    async def release_blobs(self, tenant: Tenant, blobs: Sequence[str]) -> None:
        self.released += [(tenant, blob) for blob in blobs]

    def raise_if_damaged(self) -> None:
        """It is never damaged."""
