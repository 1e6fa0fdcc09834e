"""Tailrace's own routes of batches: create, list, read, get results, cancel.

A batch is a turn, and `links.events` is its event stream. Batches that have left the log are read from the database.
"""

from datetime import datetime
from functools import partial
from typing import Any, Literal

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.features.batches.new_batch import KEY_OF_BATCH, BatchBuilder, NewBatch, draft_batch
from tailrace.features.batches.read_batch import (
    EndedInput,
    batch_of,
    cancel_batch,
    ended_inputs,
    refresh_all,
    render_lines,
)
from tailrace.features.batches.records import ListBatches, StoredBatch
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import PAGE
from tailrace.gateway.http.route import JSON_LINES, Route, Section, query
from tailrace.gateway.resources.paging import Page, page_of
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.proto.entries import Failure, Outcome, Via
from tailrace.proto.ids import SessionId, TurnId, parse_cursor
from tailrace.proto.nats import BlobStore, TurnLog
from tailrace.proto.usage import NANO_USD_PER_USD, Usage


class AcceptedBatch(msgspec.Struct, frozen=True):
    """A batch that is in the log. `of`: the number of its inputs."""

    batch: TurnId
    """The id of the batch."""
    session: SessionId
    """The session that holds the batch."""
    of: int
    """The number of inputs."""
    links: dict[str, str]
    """Paths by name: the batch, its events, its results, and its cancellation."""


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
    owner: str | None
    """The user of the credential that has created it; null: the tenant."""
    asked_at: datetime
    """When the batch was accepted."""
    ended_at: datetime | None
    """When the batch ended; null while it runs, and if its end is not known."""
    links: dict[str, str]
    """Paths by name: the batch, its events, its results, and its cancellation."""


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


async def post(request: ApiRequest, builder: BatchBuilder) -> Response:
    """`POST /v1/turn-batches`: creates a batch of all inputs, or no batch if one input is not valid.

    Answers 202 with its id. All inputs are checked before the batch is stored. The answers are turns, at half the price
    with `via: message_batches`.
    """
    new, raw = await request.read(NewBatch)
    add = partial(builder.add_inputs, tenant=request.access.tenant, new=new)
    key, accepted, _ = await builder.submit(draft_batch(request, raw), new, add)
    of = accepted.batch.count if accepted.batch is not None else 0
    body = AcceptedBatch(batch=key.turn, session=accepted.session, of=of, links=links_of(key.turn))
    headers = {"location": links_of(key.turn)["self"], "tailrace-turn": key.turn}
    return json_response(body, status=202, headers=headers)


async def batches(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`GET /v1/turn-batches`: all batches, newest first, in pages.

    For a key with the scope `read`. The batches are in the order of creation.
    """
    scope = request.access
    after, limit = page_of(request)
    found = await history.query(scope, ListBatches(after, limit))
    current = await refresh_all(log, scope, found.batches)
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
        owner=stored.owner,
        asked_at=stored.asked_at,
        ended_at=stored.ended_at,
        links=links_of(stored.batch),
    )


def links_of(turn: TurnId) -> dict[str, str]:
    """Returns the paths of a batch by name: the batch, its events, its results, and its cancellation."""
    path = f"/v1/turn-batches/{turn}"
    return {
        "self": path,
        "events": f"/v1/turns/{turn}/events",
        "results": f"{path}/results",
        "cancel": f"{path}/cancel",
    }


SECTION = Section("batches")
AFTER_INDEX = query("after", "The `index` of the last received line.", type="integer", minimum=0)

ROUTES = [
    Route("GET", "/v1/turn-batches", batches, "read", SECTION, result=BatchList, parameters=PAGE),
    Route(
        "POST",
        "/v1/turn-batches",
        post,
        "write",
        SECTION,
        body=NewBatch,
        result=AcceptedBatch,
        status=202,
        parameters=(KEY_OF_BATCH,),
    ),
    Route("GET", "/v1/turn-batches/{batch}", get, "read", SECTION, result=BatchRecord),
    Route(
        "GET",
        "/v1/turn-batches/{batch}/results",
        results,
        "read",
        SECTION,
        streams=JSON_LINES,
        parameters=(AFTER_INDEX,),
    ),
    Route("POST", "/v1/turn-batches/{batch}/cancel", post_cancel, "write", SECTION, result=BatchRecord),
]
