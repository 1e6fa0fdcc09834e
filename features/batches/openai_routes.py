"""OpenAI's Batch API over Tailrace's batches: create, list, read, cancel. Source: OpenAI's API reference, "Batch"."""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from tailrace.features.batches.new_batch import (
    KEY_OF_BATCH,
    BatchBuilder,
    BatchOptions,
    InputChecker,
    add_all,
    draft_batch,
    read_new,
)
from tailrace.features.batches.openai_input import add_request, error_line, parse_lines
from tailrace.features.batches.read_batch import batch_of, cancel_batch, refresh_all, refused_lines
from tailrace.features.batches.records import EXPIRED_FAILURE, ListBatches, StoredBatch
from tailrace.features.files.records import FileRecord, GetFile
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX
from tailrace.gateway.http.parameters import AFTER_ITEM, AZURE
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.http.route import Route, Section, query
from tailrace.gateway.resources.paging import limit_of, list_page
from tailrace.gateway.turns.draft import Draft
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import BatchSource
from tailrace.proto.errors import BlobUnknown, Refused, not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnId, is_token
from tailrace.proto.nats import BlobStore, TurnLog
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.protocols.common import examples
from tailrace.protocols.common.failure import LOST

PREFIX = "batch_"
LIMIT_MAX = 100
LIFE = timedelta(hours=24)
# The file of a batch's results: its turn, and which of the results it has.
RESULT_FILE = re.compile(r"file-([0-9a-f-]{36})-(output|error)")
STATUSES = {"running": "in_progress", "completed": "completed", "cancelled": "cancelled", "failed": "failed"}
# The fields that hold the time of a batch's end, each with the status of such batches.
END_TIMES = {
    "finalizing_at": "completed",
    "cancelling_at": "cancelled",
    "completed_at": "completed",
    "cancelled_at": "cancelled",
    "failed_at": "failed",
    "expired_at": "expired",
}


class NewFileBatch(BatchOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batches`. `parallel`, `via` and `webhook` are Tailrace's."""

    input_file_id: str
    """The id of the uploaded file with one request in each line."""
    endpoint: Literal["/v1/chat/completions", "/v1/responses"]
    """The route that answers the requests."""
    completion_window: Literal["24h"]
    """The only window of OpenAI's API. The batch begins at once."""
    output_expires_after: Any = None
    """Ignored: the results exist as long as the turns."""


async def post(
    request: ApiRequest,
    builder: BatchBuilder,
    bodies: BodyReader,
    blob_store: BlobStore,
    log: TurnLog,
    history: HistoryClient,
) -> Response:
    """`POST /v1/batches`: creates a batch of the requests in an uploaded file.

    Each line of the file is a request to `endpoint`. The results become a file.
    """
    new, raw = await request.read(NewFileBatch)
    draft = draft_batch(request, raw)
    add = partial(_add_all, draft=draft, new=new, history=history, bodies=bodies, blob_store=blob_store)
    key, *_ = await builder.submit(draft, new, add)
    stored = await read_new(log, key, draft)
    headers = {"location": f"/v1/batches/{PREFIX}{key.turn}", "tailrace-turn": key.turn}
    return json_response(await _render(stored, blob_store, key), headers=headers)


async def _input_file(scope: Scope, history: HistoryClient, file: str) -> FileRecord:
    """Returns the record of the input file. Raises Refused."""
    if not is_token(file):
        raise not_found("file")
    record = await history.query(scope, GetFile(file))
    if record.purpose != "batch":
        message = f"`{file}` was uploaded for {record.purpose}: upload it with the purpose `batch`"
        raise Refused("request_invalid", message, param="input_file_id")
    return record


async def _add_all(
    inputs: InputChecker,
    *,
    draft: Draft,
    new: NewFileBatch,
    history: HistoryClient,
    bodies: BodyReader,
    blob_store: BlobStore,
) -> tuple[BatchSource, Sequence[bytes]]:
    """Adds the lines of a file. Adds none if one is not valid."""
    scope = draft.principal.access
    record = await _input_file(scope, history, new.input_file_id)
    if record.bytes > SMALL_BYTES_MAX:
        await bodies.large_bodies.reserve_more(inputs.held, scope.tenant, record.bytes, held=draft.body_bytes)
    try:
        content = await blob_store.read(scope.tenant, Blob(record.sha256, record.bytes))
    except BlobUnknown as error:
        raise not_found("file") from error
    requests, errors = await asyncio.to_thread(parse_lines, content, new.endpoint)
    inputs.added_bytes = record.bytes
    if errors:
        source = BatchSource(record.file, new.endpoint, refused=len(errors), is_invalid=True)
        return source, list(map(msgspec.json.encode, errors))
    add = partial(add_request, endpoint=new.endpoint, bodies=bodies, inputs=inputs)
    refused = await add_all(requests, add, error_line)
    return BatchSource(record.file, new.endpoint, refused=len(refused)), refused


async def list_batches(request: ApiRequest, log: TurnLog, history: HistoryClient, blob_store: BlobStore) -> Response:
    """`GET /v1/batches`: the batches of uploaded files, newest first, in pages.

    In the format of OpenAI's Batch API.
    """
    scope, after = request.access, request.query_params.get("after")
    after_batch = None if after is None else TurnId(after.removeprefix(PREFIX))
    query = ListBatches(limit=limit_of(request, 20, LIMIT_MAX), of="openai", after_batch=after_batch)
    found = await history.query(scope, query)
    current = await refresh_all(log, scope, found.batches)
    data = [await _render(one, blob_store, ScopedKey(scope, one.batch)) for one in current]
    return json_response({"object": "list", **list_page(data, has_more=found.next is not None)})


async def get(request: ApiRequest, log: TurnLog, history: HistoryClient, blob_store: BlobStore) -> Response:
    """`GET /v1/batches/{file_batch}`: one batch with its progress and the ids of its result files.

    In the format of OpenAI's Batch API.
    """
    key, stored, _ = await _batch_of(request, log, history)
    return json_response(await _render(stored, blob_store, key))


async def post_cancel(request: ApiRequest, log: TurnLog, history: HistoryClient, blob_store: BlobStore) -> Response:
    """`POST /v1/batches/{file_batch}/cancel`: cancels the batch and its running turns; returns the batch.

    Requests that have ended keep their results.
    """
    key, stored, turn = await _batch_of(request, log, history)
    stored = await cancel_batch(log, key, stored, turn, request.principal.key)
    return json_response(await _render(stored, blob_store, key))


async def _batch_of(
    request: ApiRequest, log: TurnLog, history: HistoryClient
) -> tuple[ScopedKey, StoredBatch, Turn | None]:
    found = await batch_of(request, log, history, "file_batch", PREFIX)
    source_of(found[1])
    return found


async def _render(stored: StoredBatch, blob_store: BlobStore, key: ScopedKey) -> dict[str, Any]:
    """Returns the batch object. Reads the blob of the inputs if the batch is invalid, for its errors."""
    counts, source, ended_at = stored.counts, source_of(stored), stored.ended_at
    status = "expired" if stored.error and stored.error.code == EXPIRED_FAILURE else STATUSES[stored.outcome]
    if source.is_invalid:
        status = "failed" if stored.is_over else "validating"
    total = counts.of + (0 if source.is_invalid else source.refused)
    has_errors = total > counts.done and stored.is_over and not source.is_invalid
    # Answers of a message batch that is cancelled are stored after the batch's end, and not counted.
    has_output = stored.is_over and (counts.done or (counts.message_batch and stored.outcome != "completed"))
    ended = None if ended_at is None else unix(ended_at)
    return {
        "id": f"{PREFIX}{stored.batch}",
        "object": "batch",
        "endpoint": source.endpoint,
        "errors": await _errors(stored, blob_store, key) if status == "failed" else None,
        "input_file_id": source.file,
        "completion_window": "24h",
        "status": status,
        "output_file_id": _result_file(stored, "output") if has_output else None,
        "error_file_id": _result_file(stored, "error") if has_errors else None,
        "created_at": unix(stored.asked_at),
        "in_progress_at": None if source.is_invalid else unix(stored.asked_at),
        "expires_at": unix(stored.asked_at + LIFE),
        **{name: ended if status == one else None for name, one in END_TIMES.items()},
        "request_counts": {"total": total, "completed": counts.done, "failed": total - counts.of + counts.failed},
        "metadata": stored.metadata or None,
        **({} if stored.owner is None else {"owner": stored.owner}),
    }


def source_of(stored: StoredBatch) -> BatchSource:
    """Returns the file that the batch was created from. Raises Refused for a batch of another API."""
    source = stored.counts.source
    if source is None or source.file is None:
        raise not_found("batch")
    return source


def unix(at: datetime) -> int:
    return int(at.timestamp())


async def _errors(stored: StoredBatch, blob_store: BlobStore, key: ScopedKey) -> dict[str, Any]:
    """Returns why a batch failed: the errors of the lines, or that of the batch."""
    lines = await refused_lines(stored, blob_store, key) if source_of(stored).is_invalid else []
    failure = stored.error or LOST
    general = {"code": failure.code, "message": failure.message, "param": None, "line": None}
    return {"object": "list", "data": [msgspec.Raw(line) for line in lines] or [general]}


def _result_file(stored: StoredBatch, kind: str) -> str:
    return f"file-{stored.batch}-{kind}"


SECTION = Section("batches", "https://platform.openai.com/docs/api-reference/batch")
BATCH = {
    "id": f"batch_{examples.BATCH}",
    "object": "batch",
    "status": "in_progress",
    "input_file_id": examples.FILE,
}
BATCH_LIST = {"object": "list", "data": [BATCH], "has_more": False}
CANCELLED = {**BATCH, "status": "cancelled"}
BATCHES_LIMIT = query("limit", "The maximum number of batches.", type="integer", minimum=1, maximum=100)

ROUTES = [
    Route(
        "GET",
        "/v1/batches",
        list_batches,
        "read",
        SECTION,
        result=BATCH_LIST,
        parameters=(AFTER_ITEM, BATCHES_LIMIT, *AZURE),
    ),
    Route(
        "POST",
        "/v1/batches",
        post,
        "write",
        SECTION,
        body=NewFileBatch,
        result=BATCH,
        parameters=(KEY_OF_BATCH, *AZURE),
    ),
    Route("GET", "/v1/batches/{file_batch}", get, "read", SECTION, result=BATCH, parameters=AZURE),
    Route("POST", "/v1/batches/{file_batch}/cancel", post_cancel, "write", SECTION, result=CANCELLED, parameters=AZURE),
]
