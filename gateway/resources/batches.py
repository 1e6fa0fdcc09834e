"""Routes of batches: create, list, read, get results, cancel.

A batch is a turn, and `links.events` is its event stream. Batches that have left the log are read from the database.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient, close_record
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import KEY_OF_BATCH, PAGE
from tailrace.gateway.http.route import BATCHES, JSON_LINES, Route, query
from tailrace.gateway.resources.batch_body import BatchBuilder, NewBatch
from tailrace.gateway.resources.paging import Page, page_of
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.draft import Draft
from tailrace.gateway.turns.idempotency_key import AUTO, idempotency_key_of
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto import batch, entries
from tailrace.proto.batch_records import GetBatch, ListBatches, ListBatchTurns, StoredBatch, stored_batch
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import Failure, Outcome, Via
from tailrace.proto.errors import BlobUnknown, Refused, TurnUnknown, not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, parse_cursor
from tailrace.proto.nats import BlobStore, TurnLog
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.usage import NANO_USD_PER_USD, Usage

# How many turns of a batch are read from the log at once.
READ_AT_ONCE = 32
# Of how many turns the log is asked at once whether they exist, which takes 0.1 s if one does not.
CHECKED_AT_ONCE = 8 * READ_AT_ONCE
# How long results wait for the running turns of a batch that was stopped. Their generator ends them within a second.
END_WAIT_S = 5.0


class AcceptedBatch(msgspec.Struct, frozen=True):
    """A batch that is in the log. `of`: the number of its inputs."""

    batch: TurnId
    """The id of the batch."""
    session: SessionId
    """The session that holds the batch."""
    of: int
    """The number of inputs."""
    links: dict[str, str]
    """Paths by name: the batch, its results, and its cancellation."""


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A batch and its progress. `done`: completed turns; `failed`: turns that ended otherwise."""

    batch: TurnId
    """The id of the batch."""
    session: SessionId
    """The session that holds the batch."""
    outcome: Outcome | Literal["running"]
    """How the batch ended, or `running`."""
    done: int
    """The number of completed turns."""
    failed: int
    """The number of turns that ended otherwise."""
    of: int
    """The number of inputs."""
    parallel: int
    """How many turns run at once."""
    via: Via
    """Which API of Anthropic answers the turns."""
    message_batch: str | None
    """The id of Anthropic's message batch."""
    cost_usd: float
    """The cost of all turns so far, in dollars."""
    error: Failure | None
    """Why the batch failed, if it did."""
    metadata: dict[str, str]
    """Labels of the batch and its turns."""
    asked_at: datetime
    """When the batch was accepted."""
    ended_at: datetime | None
    """When the batch ended; null while it runs, and if its end is not known."""
    links: dict[str, str]
    """Paths by name: the batch, its results, and its cancellation."""


class BatchList(Page[BatchRecord], frozen=True, kw_only=True):
    """Batches, newest first."""


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the results. Without a `turn`: the batch ended before this input became a turn."""

    index: int
    custom_id: str
    turn: TurnId | None = None
    outcome: Outcome = "cancelled"
    text: str = ""
    content: list[dict[str, Any]] = []
    stop_reason: str | None = None
    schema_valid: bool | None = None
    error: Failure | None = None
    usage: Usage = Usage()
    cost_usd: float | None = 0.0


async def post(request: ApiRequest, submitter: TurnSubmitter, builder: BatchBuilder) -> Response:
    """`POST /v1/turn-batches`: creates a batch of all inputs, or of none if one is not valid. 202 with its id.

    All inputs are checked before the batch is stored. The answers are turns, at half the price with `via:
    message_batches`.
    """
    new, raw = await request.read(NewBatch)
    key, accepted, _ = await submitter.store(draft_batch(request, raw), partial(builder.build, new=new))
    of = accepted.batch.count if accepted.batch is not None else 0
    body = AcceptedBatch(batch=key.turn, session=accepted.session, of=of, links=links_of(key.turn))
    headers = {"location": links_of(key.turn)["self"], "tailrace-turn": key.turn}
    return json_response(body, status=202, headers=headers)


def draft_batch(request: ApiRequest, raw: bytes) -> Draft:
    """Returns the draft of a batch. Raises Refused for the idempotency key `auto`."""
    idempotency_key = idempotency_key_of(request)
    if idempotency_key == AUTO:
        raise Refused(
            "idempotency_key_invalid", "A batch does not support `auto`; send an Idempotency-Key of your own."
        )
    return Draft(request.principal, raw, idempotency_key, response_headers=request.response_headers)


async def batches(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`GET /v1/turn-batches`: all batches, newest first, in pages.

    For a key with the scope `read`. The order is that of creation.
    """
    tenant = request.tenant
    after, limit = page_of(request)
    found = await history.query(tenant, ListBatches(after, limit))
    current = await refresh_all(log, tenant, found.batches)
    return json_response(BatchList(data=[batch_record(one) for one in current], next=found.next))


async def get(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`GET /v1/turn-batches/{batch}`: one batch with its progress.

    `done` and `failed` count the turns that have ended.
    """
    _, stored, _ = await batch_of(request, log, history)
    return json_response(batch_record(stored))


async def post_cancel(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`POST /v1/turn-batches/{batch}/cancel`: cancels the batch and its running turns; returns the batch.

    Turns that have ended keep their answers.
    """
    key, stored, turn = await batch_of(request, log, history)
    return json_response(batch_record(await cancel_batch(log, key, stored, turn, request.principal.key)))


async def results(request: ApiRequest, streams: StreamContext, blob_store: BlobStore) -> ASGIApp:
    """`GET /v1/turn-batches/{batch}/results`: one line of JSON for each input whose turn has ended, in order.

    Lines appear as turns end. `after` continues after the last received line.
    """
    key, stored, turn = await batch_of(request, streams.log, streams.history)
    after = request.query_params.get("after")
    of = stored.counts.of
    numbers = range(min(0 if after is None else parse_cursor(after) + 1, of), of)
    inputs = ended_inputs(streams, blob_store, key, turn, numbers)
    headers = {"content-type": "application/x-ndjson", "cache-control": "no-store"}
    return Download(Reader(streams, request), render_lines(inputs, result), headers, is_stream=True)


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
    streams: StreamContext, blob_store: BlobStore, key: TurnKey, turn: Turn | None, numbers: range
) -> AsyncGenerator[list[EndedInput], None]:
    """Yields the inputs with these numbers that have ended, from the log or, without `turn`, from the database."""
    if turn is not None and turn.request is not None and turn.request.batch is not None:
        return _ended_inputs(streams.log, blob_store, key, turn.request.batch, numbers, turn.outcome)
    return _stored_inputs(streams.history, key, numbers)


async def _stored_inputs(
    history: HistoryClient, key: TurnKey, numbers: range
) -> AsyncGenerator[list[EndedInput], None]:
    """Yields the inputs of a batch that has left the log. The database has its turns, but not its inputs."""
    first = numbers.start
    while first < numbers.stop:
        limit = min(READ_AT_ONCE, numbers.stop - first)
        page = await history.query(key.tenant, ListBatchTurns(key.turn, first, limit))
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
    key: TurnKey,
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
            stored = await log.find_stored(batch.child_key(key, number) for number in ahead)
        some = {number: batch.child_key(key, number) for number in numbers[first : first + READ_AT_ONCE]}
        read = [child for child in some.values() if is_whole or child in stored]
        found = await asyncio.gather(*(_turn(log, child, is_over=is_over) for child in read))
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
                name = batch.custom_id(batch.decode_input(inputs[number])) if inputs else ""
                page.append(EndedInput(number, name, None))
        yield page


async def _turn(log: TurnLog, key: TurnKey, *, is_over: bool) -> Turn | None:
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
                await log.wait_for_end(key)
        return await log.read_turn(key, turn)
    except TurnUnknown:
        return None


async def lines_of(blob_store: BlobStore, key: TurnKey, inputs: Blob) -> list[bytes]:
    """Returns the lines of the batch's blob; an empty list once it has expired."""
    try:
        return batch.split_inputs(await blob_store.read(key.tenant, inputs))
    except BlobUnknown:
        return []


async def refused_lines(stored: StoredBatch, blob_store: BlobStore, key: TurnKey) -> list[bytes]:
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
    key: TurnKey,
) -> AsyncGenerator[bytes, None]:
    """Yields the lines of the requests that were refused, and then those of `render_lines`."""
    for line in await refused_lines(stored, blob_store, key):
        yield line + b"\n"
    async for piece in render_lines(inputs, render):
        yield piece


def custom_id_of(turn: TurnRecord) -> str:
    return turn.metadata.get(batch.CUSTOM_ID, "")


def result(ended: EndedInput) -> BatchResult:
    """Returns the result line of an input. It has no `turn` if the input never ran."""
    turn = ended.turn
    if turn is None:
        return BatchResult(index=ended.number, custom_id=ended.custom_id)
    return BatchResult(
        index=ended.number,
        custom_id=ended.custom_id,
        turn=turn.turn,
        outcome="failed" if turn.outcome == "running" else turn.outcome,
        text=turn.text,
        content=turn.content,
        stop_reason=turn.stop_reason,
        schema_valid=turn.schema_valid,
        error=turn.error,
        usage=turn.usage,
        cost_usd=turn.cost_usd,
    )


async def batch_of(
    request: ApiRequest, log: TurnLog, history: HistoryClient, parameter: str = "batch", prefix: str = ""
) -> tuple[TurnKey, StoredBatch, Turn | None]:
    """Returns the batch in the path, and its turn if the log still has it. Raises Refused if there is no such batch."""
    try:
        key = request.turn(parameter, prefix)
    except Refused as error:
        if error.code != "turn_not_found":
            raise
        raise not_found("batch") from error
    return await find_batch(key, log, history)


async def find_batch(key: TurnKey, log: TurnLog, history: HistoryClient) -> tuple[TurnKey, StoredBatch, Turn | None]:
    """Returns the batch, and its turn if the log still has it. Raises Refused if there is no such batch."""
    try:
        turn = await log.read_turn(key)
    except TurnUnknown:
        return key, close_record(await history.query(key.tenant, GetBatch(key.turn))), None
    try:
        return key, stored_batch(key, turn), turn
    except TurnUnknown as error:
        raise not_found("batch") from error


async def cancel_batch(
    log: TurnLog, key: TurnKey, stored: StoredBatch, turn: Turn | None, by: str | None
) -> StoredBatch:
    """Cancels a batch and its running turns if the log still has it; returns the batch.

    `by` is the credential of the client that requests it.
    """
    return stored if turn is None else stored_batch(key, await cancel(log, key, "request", by))


async def refresh_all(log: TurnLog, tenant: Tenant, found: Sequence[StoredBatch]) -> list[StoredBatch]:
    """Returns each batch of a list from the database as the log has it now."""
    return await asyncio.gather(*(refresh(log, TurnKey(tenant, one.batch), one) for one in found))


async def refresh(log: TurnLog, key: TurnKey, stored: StoredBatch) -> StoredBatch:
    """Returns the batch as the log has it if it is running; the database only knows its request and its end."""
    if stored.outcome != "running":
        return stored
    try:
        return stored_batch(key, await log.read_turn(key))
    except TurnUnknown:
        return close_record(stored)


def batch_record(stored: StoredBatch) -> BatchRecord:
    """Returns a stored batch as the API shows it, with its cost in dollars."""
    counts = stored.counts
    return BatchRecord(
        batch=stored.batch,
        session=stored.session,
        outcome=stored.outcome,
        done=counts.done,
        failed=counts.failed,
        of=counts.of,
        parallel=counts.parallel,
        via=counts.via,
        message_batch=counts.message_batch,
        cost_usd=counts.cost_nano_usd / NANO_USD_PER_USD,
        error=stored.error,
        metadata=stored.metadata,
        asked_at=stored.asked_at,
        ended_at=stored.ended_at,
        links=links_of(stored.batch),
    )


def links_of(turn: TurnId) -> dict[str, str]:
    path = f"/v1/turn-batches/{turn}"
    return {
        "self": path,
        "events": f"/v1/turns/{turn}/events",
        "results": f"{path}/results",
        "cancel": f"{path}/cancel",
    }


AFTER_INDEX = query("after", "The `index` of the last received line.", type="integer", minimum=0)

ROUTES = [
    Route("GET", "/v1/turn-batches", batches, "read", BATCHES, result=BatchList, parameters=PAGE),
    Route(
        "POST",
        "/v1/turn-batches",
        post,
        "write",
        BATCHES,
        body=NewBatch,
        result=AcceptedBatch,
        status=202,
        parameters=(KEY_OF_BATCH,),
    ),
    Route("GET", "/v1/turn-batches/{batch}", get, "read", BATCHES, result=BatchRecord),
    Route(
        "GET",
        "/v1/turn-batches/{batch}/results",
        results,
        "read",
        BATCHES,
        streams=JSON_LINES,
        parameters=(AFTER_INDEX,),
    ),
    Route("POST", "/v1/turn-batches/{batch}/cancel", post_cancel, "write", BATCHES, result=BatchRecord),
]
