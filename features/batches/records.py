"""Records of batches, and the queries about them that persistence and generators answer.

The turns of a batch are ordinary turns: their records are in proto/records.py.
"""

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from tailrace.proto.entries import BatchSource, Failure, Outcome, Via
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, TurnId, TurnKey
from tailrace.proto.ownership import owner_of
from tailrace.proto.records import Query, TurnRecord

Api = Literal["openai", "anthropic"]
# The code of a batch, or of one of its turns, that was not answered in time.
EXPIRED_FAILURE = "deadline_exceeded"


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The progress of a batch, as the database stores it beside the batch's turn."""

    of: int
    parallel: int
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    via: Via = "messages"
    message_batch: str | None = None
    source: BatchSource | None = msgspec.field(default=None, name="file")
    inputs: tuple[str, int] | None = None
    """The blob of the inputs, if there is a source: the refused lines are in it."""


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. In `counts`, `done` turns are completed and `failed` turns ended otherwise, also as `cancelled` or
    `expired`.
    """

    batch: TurnId
    session: SessionId
    outcome: Outcome | Literal["running"]
    counts: BatchCounts
    error: Failure | None
    metadata: dict[str, str]
    asked_at: datetime
    ended_at: datetime | None
    """None while it runs, and for a batch that has left the log without an end."""
    owner: str | None = None
    """The user of the credential that has created it. None: the tenant."""

    @property
    def is_over(self) -> bool:
        """Whether the batch no longer runs."""
        return self.outcome != "running"


class BatchPage(msgspec.Struct, frozen=True):
    """Batches, newest first. `next` is the cursor of the next page, None on the last."""

    batches: list[StoredBatch]
    next: str | None


class NumberedTurn(msgspec.Struct, frozen=True):
    """The turn of input number `index`, counted from 0."""

    index: int
    turn: TurnRecord


class BatchTurns(msgspec.Struct, frozen=True):
    """The existing turns in the order of the inputs. `next` is the number of the next page's first input."""

    turns: list[NumberedTurn]
    next: int


class GetBatch(Query[StoredBatch], frozen=True):
    """One batch. Refused: batch_not_found."""

    query: ClassVar[str] = "batch"
    owned: ClassVar[tuple[str, ...] | None] = ("batch",)
    batch: TurnId


class ListBatches(Query[BatchPage], frozen=True):
    """A page of batches, newest first; with `of`, the batches of one other API. Refused: cursor_invalid,
    batch_not_found.

    The page begins after the cursor `after`, or after the batch `after_batch`, or ends before the batch `before_batch`.
    """

    query: ClassVar[str] = "batches"
    owned: ClassVar[tuple[str, ...] | None] = ()
    after: str | None = None
    limit: int = 50
    of: Api | None = None
    after_batch: TurnId | None = None
    before_batch: TurnId | None = None


class ListBatchTurns(Query[BatchTurns], frozen=True):
    """The turns of a batch, from input number `first` on, at most `limit`."""

    query: ClassVar[str] = "batch_turns"
    owned: ClassVar[tuple[str, ...] | None] = ("batch",)
    batch: TurnId
    first: int = 0
    limit: int = 50


def counts_of(turn: Turn) -> BatchCounts | None:
    """Returns the progress of a batch, or None if the turn is not a batch."""
    if turn.request is None or turn.request.batch is None:
        return None
    batch, progress = turn.request.batch, turn.progress
    return BatchCounts(
        of=batch.count,
        parallel=batch.parallel,
        done=progress.done if progress else 0,
        failed=progress.failed if progress else 0,
        cancelled=progress.cancelled if progress else 0,
        expired=progress.expired if progress else 0,
        cost_nano_usd=progress.cost_nano_usd if progress else 0,
        via=turn.request.via,
        message_batch=progress.message_batch if progress else None,
        source=batch.source,
        inputs=None if batch.source is None else (batch.sha256, batch.bytes),
    )


def stored_batch(key: TurnKey, turn: Turn) -> StoredBatch:
    """Returns the record of a folded batch. Raises TurnUnknown if the turn is not a batch."""
    counts = counts_of(turn)
    if counts is None or turn.request is None or turn.asked_at is None:
        raise TurnUnknown(f"{key.turn} is not a batch")
    return StoredBatch(
        batch=key.turn,
        session=turn.request.session,
        outcome=turn.outcome,
        counts=counts,
        error=turn.error,
        metadata=turn.request.metadata or {},
        asked_at=turn.asked_at,
        ended_at=turn.ended_at,
        owner=owner_of(turn.request),
    )


CANCEL_MESSAGE_BATCH = "cancel_message_batch"


class CancelMessageBatch(msgspec.Struct, frozen=True):
    """Cancels one of Anthropic's Message Batches, because its batch is being deleted and has not completed.

    The reply is empty, also if Anthropic does not have the message batch or it has ended. Refused: backend_….
    """

    message_batch: str
