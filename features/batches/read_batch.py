"""Reads batches and their turns, from the log or, if they have left it, from the database; cancels batches.

Each protocol renders what these functions return.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Literal, NamedTuple

import msgspec

from tailrace.features.batches import input_lines
from tailrace.features.batches.records import GetBatch, ListBatchTurns, StoredBatch, stored_batch
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.streaming.reader import StreamContext
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto import entries
from tailrace.proto.blobs import Blob
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import Outcome
from tailrace.proto.errors import BlobUnknown, Refused, TurnUnknown, not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import BlobStore, TurnLog
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold

# How many turns of a batch are read from the log at once.
READ_AT_ONCE = 32
# How many turns are looked up in the log at once. A look-up takes 0.1 s if a turn does not exist.
CHECKED_AT_ONCE = 8 * READ_AT_ONCE
# How long results wait for the running turns of a batch that was stopped. Their generator ends them within a second.
END_WAIT_S = 5.0


async def batch_of(
    request: ApiRequest, log: TurnLog, history: HistoryClient, parameter: str = "batch", prefix: str = ""
) -> tuple[ScopedKey, StoredBatch, Turn | None]:
    """Returns the batch in the path, and its turn if the log still has it. Raises Refused if there is no such batch."""
    try:
        key = request.turn(parameter, prefix)
    except Refused as error:
        if error.code != "turn_not_found":
            raise
        raise not_found("batch") from error
    return await find_batch(key, log, history)


async def find_batch(
    key: ScopedKey, log: TurnLog, history: HistoryClient
) -> tuple[ScopedKey, StoredBatch, Turn | None]:
    """Returns the batch, and its turn if the log still has it. Raises Refused if there is no such batch."""
    try:
        turn = await log.read_turn(key)
    except TurnUnknown:
        return key, _close(await history.query(key.scope, GetBatch(key.turn))), None
    try:
        return key, stored_batch(key.plain, turn), turn
    except TurnUnknown as error:
        raise not_found("batch") from error


async def cancel_batch(
    log: TurnLog, key: ScopedKey, stored: StoredBatch, turn: Turn | None, by: str | None
) -> StoredBatch:
    """Cancels a batch and its running turns if the log still has it; returns the batch.

    `by` is the credential of the client that requests it.
    """
    return stored if turn is None else stored_batch(key.plain, await cancel(log, key, "request", by))


async def refresh_all(log: TurnLog, scope: Scope, found: Sequence[StoredBatch]) -> list[StoredBatch]:
    """Returns the listed batches with their current state from the log."""
    return await asyncio.gather(*(refresh(log, ScopedKey(scope, one.batch), one) for one in found))


async def refresh(log: TurnLog, key: ScopedKey, stored: StoredBatch) -> StoredBatch:
    """Returns the batch as the log has it if it is running; the database only knows its request and its end."""
    if stored.outcome != "running":
        return stored
    try:
        return stored_batch(key.plain, await log.read_turn(key))
    except TurnUnknown:
        return _close(stored)


def _close(stored: StoredBatch) -> StoredBatch:
    """Returns a batch that has left the log: as failed if it has no end, since none can be appended."""
    return stored if stored.is_over else msgspec.structs.replace(stored, outcome="failed", error=LOST_FAILURE)


class EndedInput(NamedTuple):
    """Input `number` of a batch whose turn has ended. Without a turn: the batch ended before the input became one."""

    number: int
    custom_id: str
    turn: TurnRecord | None


async def render_lines(
    pages: AsyncGenerator[list[EndedInput], None], render: Callable[[EndedInput], object]
) -> AsyncGenerator[bytes, None]:
    """Yields a line of JSON for each input of `pages` that `render` returns a value for."""
    encode = msgspec.json.Encoder().encode
    async with aclosing(pages):
        async for page in pages:
            lines = (line for one in page if (line := render(one)) is not None)
            yield b"".join(encode(line) + b"\n" for line in lines)


def ended_inputs(
    streams: StreamContext, blob_store: BlobStore, key: ScopedKey, turn: Turn | None, numbers: range
) -> AsyncGenerator[list[EndedInput], None]:
    """Yields the inputs with these numbers that have ended, from the log or, without `turn`, from the database."""
    if turn is not None and turn.request is not None and turn.request.batch is not None:
        return _ended_inputs(streams.log, blob_store, key, turn.request.batch, numbers, turn.outcome)
    return _stored_inputs(streams.history, key, numbers)


async def _stored_inputs(
    history: HistoryClient, key: ScopedKey, numbers: range
) -> AsyncGenerator[list[EndedInput], None]:
    """Yields the inputs of a batch that has left the log. The database has its turns, but not its inputs."""
    first = numbers.start
    while first < numbers.stop:
        limit = min(READ_AT_ONCE, numbers.stop - first)
        page = await history.query(key.scope, ListBatchTurns(key.turn, first, limit))
        turns = {one.index: one.turn for one in page.turns}
        some = range(first, min(page.next, numbers.stop))
        yield [
            EndedInput(number, custom_id_of(turns[number]), turns[number])
            if number in turns
            else EndedInput(number, "", None)
            for number in some
        ]
        first = page.next


async def _ended_inputs(
    log: TurnLog,
    blob_store: BlobStore,
    key: ScopedKey,
    of: entries.Batch,
    numbers: range,
    outcome: Outcome | Literal["running"],
) -> AsyncGenerator[list[EndedInput], None]:
    inputs: list[bytes] | None = None
    is_over, is_whole = outcome != "running", outcome == "completed"
    stored: set[TurnKey] = set()
    for first in range(0, len(numbers), READ_AT_ONCE):
        if not is_whole and first % CHECKED_AT_ONCE == 0:
            ahead = numbers[first : first + CHECKED_AT_ONCE]
            stored = await log.find_stored(input_lines.child_key(key.plain, number) for number in ahead)
        some = {number: input_lines.child_key(key.plain, number) for number in numbers[first : first + READ_AT_ONCE]}
        read = [child for child in some.values() if is_whole or child in stored]
        found = await asyncio.gather(*(_turn(log, ScopedKey(key.scope, child.turn), is_over=is_over) for child in read))
        turns = dict(zip(read, found, strict=True))
        # A page without turns waits for nothing.
        await asyncio.sleep(0)
        page = []
        for number, child in some.items():
            turn = turns.get(child)
            if turn is not None and turn.end is not None:
                record = record_from_fold(child, turn)
                page.append(EndedInput(number, custom_id_of(record), record))
            elif turn is None and is_over:
                # Read only if needed: the inputs may be as long as a request body.
                inputs = await lines_of(blob_store, key, Blob(of.sha256, of.bytes)) if inputs is None else inputs
                name = input_lines.custom_id(input_lines.decode_input(inputs[number])) if inputs else ""
                page.append(EndedInput(number, name, None))
        yield page


async def _turn(log: TurnLog, key: ScopedKey, *, is_over: bool) -> Turn | None:
    """Returns a turn of the batch; None if it was never stored, or was deleted.

    While the log has a batch it also has its turns, which are younger. `is_over`: the batch has ended. Its generator
    then ends the running turns; waits for that, at most END_WAIT_S.
    """
    try:
        turn = await log.read_turn(key)
        if turn.end is not None or not is_over:
            return turn
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT_S):
                await log.wait_for_end(key.plain)
        return await log.read_turn(key, turn)
    except TurnUnknown:
        return None


async def lines_of(blob_store: BlobStore, key: ScopedKey, inputs: Blob) -> list[bytes]:
    """Returns the lines of the batch's blob; an empty list once it has expired."""
    try:
        return input_lines.split_inputs(await blob_store.read(key.tenant, inputs))
    except BlobUnknown:
        return []


async def refused_lines(stored: StoredBatch, blob_store: BlobStore, key: ScopedKey) -> list[bytes]:
    """Returns the lines of the requests that were refused; an empty list once their blob has expired."""
    counts = stored.counts
    if counts.inputs is None or counts.source is None or not counts.source.refused:
        return []
    return (await lines_of(blob_store, key, Blob(*counts.inputs)))[counts.of :]


async def render_with_refused(
    inputs: AsyncGenerator[list[EndedInput], None],
    render: Callable[[EndedInput], object],
    stored: StoredBatch,
    blob_store: BlobStore,
    key: ScopedKey,
) -> AsyncGenerator[bytes, None]:
    """Yields the lines of the requests that were refused, and then the lines of `render_lines`."""
    for line in await refused_lines(stored, blob_store, key):
        yield line + b"\n"
    async for piece in render_lines(inputs, render):
        yield piece


def custom_id_of(turn: TurnRecord) -> str:
    return turn.metadata.get(input_lines.CUSTOM_ID, "")
