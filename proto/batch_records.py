"""A batch as it is told, by its fold or by the database, and what persistence is asked about batches. Shapes only.

Its turns are ordinary ones, and are told as such (records.py).
"""

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from tailrace.proto.entries import Failure, Outcome, Via
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.records import Query, TurnRecord
from tailrace.proto.subjects import TurnKey


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a batch has come, as the database keeps it beside its turn."""

    of: int
    parallel: int
    done: int = 0
    failed: int = 0
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    via: Via = "messages"
    message_batch: str | None = None


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. `done` of its turns are completed, `failed` have ended otherwise."""

    batch: TurnId
    session: SessionId
    outcome: Outcome | Literal["running"]
    counts: BatchCounts
    error: Failure | None
    metadata: dict[str, str]
    asked_at: datetime
    ended_at: datetime | None


class BatchPage(msgspec.Struct, frozen=True):
    """Newest first. `next` is the cursor of the next page, None on the last."""

    batches: list[StoredBatch]
    next: str | None


class NumberedTurn(msgspec.Struct, frozen=True):
    """The turn of a batch's input number `index`, from 0."""

    index: int
    turn: TurnRecord


class BatchTurns(msgspec.Struct, frozen=True):
    """In the order of the inputs, those that there are. `next` is the input that the next page begins with."""

    turns: list[NumberedTurn]
    next: int


class GetBatch(Query[StoredBatch], frozen=True):
    """batch_not_found."""

    query: ClassVar[str] = "batch"
    batch: TurnId


class ListBatches(Query[BatchPage], frozen=True):
    """cursor_invalid."""

    query: ClassVar[str] = "batches"
    after: str | None = None
    limit: int = 50


class ListBatchTurns(Query[BatchTurns], frozen=True):
    """The turns of a batch's inputs from number `first` on, `limit` of them."""

    query: ClassVar[str] = "batch_turns"
    batch: TurnId
    first: int = 0
    limit: int = 50


def counts_of(turn: Turn) -> BatchCounts | None:
    """None for a turn that is no batch."""
    if turn.request is None or turn.request.batch is None:
        return None
    asked, progress = turn.request.batch, turn.progress
    return BatchCounts(
        of=asked.count,
        parallel=asked.parallel,
        done=progress.done if progress else 0,
        failed=progress.failed if progress else 0,
        cost_nano_usd=progress.cost_nano_usd if progress else 0,
        via=turn.request.via,
        message_batch=progress.message_batch if progress else None,
    )


def stored_batch(key: TurnKey, turn: Turn) -> StoredBatch:
    """A folded batch; raises TurnUnknown for a fold of anything else."""
    counts = counts_of(turn)
    if counts is None or turn.request is None or turn.asked_at is None:
        raise TurnUnknown(f"{key.turn} is no batch")
    return StoredBatch(
        batch=key.turn,
        session=turn.request.session,
        outcome=turn.outcome,
        counts=counts,
        error=turn.error,
        metadata=turn.request.metadata or {},
        asked_at=turn.asked_at,
        ended_at=turn.ended_at,
    )
