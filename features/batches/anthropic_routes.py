"""Anthropic's Message Batches API over Tailrace's batches: create, list, read, cancel, delete, get results.

A request that `POST /v1/messages` would refuse does not stop the others: its result is `errored`. Source: Anthropic's
docs, "Message Batches API".
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.features.batches.new_batch import (
    CUSTOM_ID,
    INPUTS_MAX,
    KEY_OF_BATCH,
    BatchBuilder,
    BatchOptions,
    InputChecker,
    add_all,
    draft_batch,
    read_new,
)
from tailrace.features.batches.read_batch import (
    EndedInput,
    batch_of,
    cancel_batch,
    ended_inputs,
    refresh_all,
    render_with_refused,
)
from tailrace.features.batches.records import EXPIRED_FAILURE, ListBatches, StoredBatch
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http import read_body
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import BETA
from tailrace.gateway.http.route import JSON_LINES, Route, Section, query
from tailrace.gateway.resources.paging import limit_of, list_page, require_one_cursor
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.gateway.turns.account_choice import refuse_account_headers
from tailrace.gateway.turns.delete import Deleter
from tailrace.proto.entries import BatchSource, Failure
from tailrace.proto.errors import CODES, Refused, not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnId
from tailrace.proto.nats import BlobStore, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.protocols.anthropic.request import MessagesRequest
from tailrace.protocols.anthropic.request import build_turn as build_message_turn
from tailrace.protocols.anthropic.stream import message_of
from tailrace.protocols.common import examples
from tailrace.protocols.common.failure import LOST, error_type, failure_of

PREFIX = "msgbatch_"
ENDPOINT = "/v1/messages"
LIMIT_MAX = 1_000
LIFE = timedelta(hours=24)
HEADERS = {"content-type": "application/x-ndjson", "cache-control": "no-store"}
# The former beta header of this API. It is removed, because `/v1/messages` would refuse it.
OWN_BETA = "message-batches-2024-09-24"
NAME_INVALID = "`custom_id` is 1 to 64 characters of A-Z a-z 0-9 _ -, unique in the batch"
STREAMED = "a request of a batch cannot be streamed: leave `stream` out"
NOT_ENDED = "the batch is still processed: get its results when `processing_status` is `ended`"
NOT_DELETED = "the batch is still processed: cancel it before you delete it"


class MessageBatchInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request of a batch: `params` is the body of `POST /v1/messages`."""

    custom_id: str
    """The client's own name for this request."""
    params: dict[str, Any]
    """The body of `POST /v1/messages`."""


class NewMessageBatch(BatchOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/messages/batches`. `parallel`, `via`, `metadata` and `webhook` are Tailrace's own."""

    requests: Annotated[list[MessageBatchInput], Meta(min_length=1, max_length=INPUTS_MAX)]
    """The requests of the batch."""


async def post(request: ApiRequest, builder: BatchBuilder, log: TurnLog) -> Response:
    """`POST /v1/messages/batches`: creates a batch of Messages requests.

    All requests are checked before the batch is stored.
    """
    new, raw = await request.read(NewMessageBatch)
    refuse_account_headers(request.headers)
    _check_names(new)
    add = partial(_add_all, new=new, headers=_headers(request))
    draft = draft_batch(request, raw)
    key, *_ = await builder.submit(draft, new, add)
    headers = {"location": f"/v1/messages/batches/{PREFIX}{key.turn}", "tailrace-turn": key.turn}
    return json_response(render_batch(await read_new(log, key, draft)), headers=headers)


def _check_names(new: NewMessageBatch) -> None:
    names: set[str] = set()
    for index, one in enumerate(new.requests):
        if CUSTOM_ID.fullmatch(one.custom_id) is None or one.custom_id in names:
            raise Refused("request_invalid", NAME_INVALID, param=f"requests[{index}].custom_id")
        names.add(one.custom_id)


def _headers(request: ApiRequest) -> Headers:
    """Returns the headers that apply to each request of the batch. `X-Session-ID` does not."""
    betas = ",".join(request.headers.getlist("anthropic-beta"))
    kept = {"anthropic-beta": ",".join(beta for beta in betas.split(",") if beta.strip() != OWN_BETA)}
    version = request.headers.get("anthropic-version")
    return Headers(kept if version is None else kept | {"anthropic-version": version})


async def _add_all(
    inputs: InputChecker, *, new: NewMessageBatch, headers: Headers
) -> tuple[BatchSource, Sequence[bytes]]:
    named = ((one.custom_id, one.params) for one in new.requests)
    refused = await add_all(named, partial(_add, inputs=inputs, headers=headers), _refused_line)
    return BatchSource(None, ENDPOINT, refused=len(refused)), refused


async def _add(custom_id: str, params: dict[str, Any], inputs: InputChecker, headers: Headers) -> None:
    body = read_body.convert(params, MessagesRequest)
    if body.stream:
        raise Refused("request_invalid", STREAMED, param="stream")
    await inputs.add(custom_id, build_message_turn(body, params, headers))


async def list_batches(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`GET /v1/messages/batches`: the batches of Messages requests, newest first, in pages.

    In the format of Anthropic's Message Batches API.
    """
    scope = request.access
    require_one_cursor(request, "after_id", "before_id")
    after, before = (
        TurnId(name.removeprefix(PREFIX)) if (name := request.query_params.get(parameter)) is not None else None
        for parameter in ("after_id", "before_id")
    )
    limit = limit_of(request, 20, LIMIT_MAX)
    query = ListBatches(limit=limit, of="anthropic", after_batch=after, before_batch=before)
    found = await history.query(scope, query)
    current = await refresh_all(log, scope, found.batches)
    return json_response(list_page(list(map(render_batch, current)), has_more=found.next is not None))


async def get(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`GET /v1/messages/batches/{message_batch}`: one batch, and the counts of its results after it has ended.

    The counts are 0 until the batch has ended, as in Anthropic's API.
    """
    _, stored, _ = await _batch_of(request, log, history)
    return json_response(render_batch(stored))


async def post_cancel(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`POST /v1/messages/batches/{message_batch}/cancel`: cancels the batch and its running turns.

    Requests that have ended keep their results.
    """
    key, stored, turn = await _batch_of(request, log, history)
    stored = await cancel_batch(log, key, stored, turn, request.principal.key)
    return json_response(render_batch(stored))


async def delete(request: ApiRequest, log: TurnLog, history: HistoryClient, deleter: Deleter) -> Response:
    """`DELETE /v1/messages/batches/{message_batch}`: deletes a batch that has ended, with its turns.

    The text of the turns is erased from the log and the database.
    """
    key, stored, _ = await _batch_of(request, log, history)
    if not stored.is_over:
        raise Refused("request_invalid", NOT_DELETED)
    await deleter.delete(key.scope, "turn", key.turn)
    return json_response({"id": f"{PREFIX}{key.turn}", "type": "message_batch_deleted"})


async def results(request: ApiRequest, streams: StreamContext, blob_store: BlobStore) -> ASGIApp:
    """`GET /v1/messages/batches/{message_batch}/results`: one line of JSON for each request, after the batch's end.

    In the order of the requests.
    """
    key, stored, turn = await _batch_of(request, streams.log, streams.history)
    if not stored.is_over:
        raise Refused("request_invalid", NOT_ENDED)
    inputs = ended_inputs(streams, blob_store, key, turn, range(stored.counts.of))
    pieces = render_with_refused(inputs, partial(result_line, stored=stored), stored, blob_store, key)
    return Download(Reader(streams, request), pieces, HEADERS, is_stream=True)


async def _batch_of(
    request: ApiRequest, log: TurnLog, history: HistoryClient
) -> tuple[ScopedKey, StoredBatch, Turn | None]:
    found = await batch_of(request, log, history, "message_batch", PREFIX)
    _source(found[1])
    return found


def _source(stored: StoredBatch) -> BatchSource:
    """Returns the source of the batch. Raises Refused if it was created through another API."""
    source = stored.counts.source
    if source is None or source.endpoint != ENDPOINT:
        raise not_found("batch")
    return source


def render_batch(stored: StoredBatch) -> dict[str, Any]:
    """Returns the batch object. As in Anthropic's API, all requests are `processing` until the batch has ended."""
    counts, refused, ended_at = stored.counts, _source(stored).refused, stored.ended_at
    name, is_over = f"{PREFIX}{stored.batch}", stored.is_over
    rest = counts.of - counts.done - counts.failed
    numbers = {
        "canceled": counts.cancelled,
        "errored": refused + counts.failed - counts.cancelled - counts.expired,
        "expired": counts.expired,
        "succeeded": counts.done,
    }
    numbers[_result_type_without_turn(stored)] += rest
    return {
        "id": name,
        "type": "message_batch",
        "processing_status": "ended" if is_over else "in_progress",
        "request_counts": {"processing": 0 if is_over else counts.of + refused}
        | (numbers if is_over else dict.fromkeys(numbers, 0)),
        "created_at": _time(stored.asked_at),
        "expires_at": _time(stored.asked_at + LIFE),
        "ended_at": _time(ended_at),
        "archived_at": None,
        "cancel_initiated_at": _time(ended_at) if stored.outcome == "cancelled" else None,
        # A path, because the gateway does not know its own address behind a proxy. The SDKs resolve it.
        "results_url": f"/v1/messages/batches/{name}/results" if is_over else None,
        **({} if stored.owner is None else {"owner": stored.owner}),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _result_type_without_turn(stored: StoredBatch) -> str:
    """Returns the result type of the inputs that did not run."""
    if stored.outcome == "cancelled":
        return "canceled"
    return "expired" if stored.error is not None and stored.error.code == EXPIRED_FAILURE else "errored"


def result_line(ended: EndedInput, stored: StoredBatch) -> dict[str, Any]:
    """Returns the result of one input: its message, or the reason why it has none."""
    turn, result = ended.turn, {"type": _result_type_without_turn(stored)}
    if turn is not None and turn.outcome == "cancelled" and stored.outcome == "failed":
        # The end of its batch has cancelled it, and is the reason why it has no answer.
        turn = None
    if turn is not None and turn.outcome == "completed":
        return {"custom_id": ended.custom_id, "result": {"type": "succeeded", "message": message_of(turn)}}
    if turn is not None:
        result["type"] = "canceled" if turn.outcome == "cancelled" else "errored"
    if result["type"] == "errored":
        failure = stored.error or LOST if turn is None else failure_of(turn)
        if failure.code == EXPIRED_FAILURE:
            return {"custom_id": ended.custom_id, "result": {"type": "expired"}}
        return _render_error(ended.custom_id, error_type(failure), failure, None if turn is None else turn.turn)
    return {"custom_id": ended.custom_id, "result": result}


def _refused_line(custom_id: str, refused: Refused) -> dict[str, Any]:
    return _render_error(custom_id, CODES[refused.code].type, refused, None)


def _render_error(custom_id: str, kind: str, error: Failure | Refused, turn: TurnId | None) -> dict[str, Any]:
    details = {} if error.details is None else {"details": error.details}
    problem = {"type": kind, "message": error.message, "code": error.code, **details}
    response = {"type": "error", "error": problem, "request_id": turn}
    return {"custom_id": custom_id, "result": {"type": "errored", "error": response}}


SECTION = Section("batches", "https://docs.anthropic.com/en/api/creating-message-batches")
BATCH = {"id": f"msgbatch_{examples.BATCH}", "type": "message_batch", "processing_status": "in_progress"}
BATCH_LIST = {"data": [BATCH], "has_more": False}
DELETED = {"id": BATCH["id"], "type": "message_batch_deleted"}
ENDED = {**BATCH, "processing_status": "ended"}
LISTING = (
    query("after_id", "Only batches that are older than this one."),
    query("before_id", "Only batches that are newer than this one."),
    query("limit", "The maximum number of batches.", type="integer", minimum=1, maximum=1000),
    BETA,
)

ROUTES = [
    Route("GET", "/v1/messages/batches", list_batches, "read", SECTION, result=BATCH_LIST, parameters=LISTING),
    Route(
        "POST",
        "/v1/messages/batches",
        post,
        "write",
        SECTION,
        body=NewMessageBatch,
        result=BATCH,
        parameters=(KEY_OF_BATCH, BETA),
    ),
    Route("GET", "/v1/messages/batches/{message_batch}", get, "read", SECTION, result=BATCH, parameters=(BETA,)),
    Route(
        "DELETE", "/v1/messages/batches/{message_batch}", delete, "manage", SECTION, result=DELETED, parameters=(BETA,)
    ),
    Route(
        "GET",
        "/v1/messages/batches/{message_batch}/results",
        results,
        "read",
        SECTION,
        streams=JSON_LINES,
        parameters=(BETA,),
    ),
    Route(
        "POST",
        "/v1/messages/batches/{message_batch}/cancel",
        post_cancel,
        "write",
        SECTION,
        result=ENDED,
        parameters=(BETA,),
    ),
]
