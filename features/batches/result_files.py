"""The output and error files of OpenAI's batches, among the files of `/v1/files`.

They are not stored, but rendered from the turns of their batch when a client reads them, so they exist as long as the
turns do.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from functools import partial, wraps
from typing import Any, NamedTuple

import msgspec
from starlette.types import ASGIApp, Receive

from tailrace.features.batches import input_lines
from tailrace.features.batches.openai_input import CHAT
from tailrace.features.batches.openai_routes import PREFIX, RESULT_FILE, source_of
from tailrace.features.batches.read_batch import (
    EndedInput,
    custom_id_of,
    ended_inputs,
    find_batch,
    render_lines,
    render_with_refused,
)
from tailrace.features.batches.records import EXPIRED_FAILURE, StoredBatch
from tailrace.features.files.file_object import render_file
from tailrace.features.files.records import FileRecord
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.clients.blobs import HEADERS
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import Route
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.proto.errors import CODES, Refused, not_found
from tailrace.proto.ids import TurnId
from tailrace.proto.nats import BlobStore
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.failure import LOST, error_type, failure_of
from tailrace.protocols.openai import chat_object, responses_stream

# The size of a result file is found by rendering all results. Rendering stops after so many bytes.
COUNTED_BYTES_MAX = 100 * 1024 * 1024


class ResultFile(NamedTuple):
    """The output or error file of a batch."""

    name: str
    created_at: datetime
    pieces: AsyncGenerator[bytes, None]


class ResultFiles:
    """The result files of all batches."""

    def __init__(self, streams: StreamContext, blob_store: BlobStore) -> None:
        self._streams = streams
        self._blob_store = blob_store

    async def get(self, request: ApiRequest, name: re.Match[str]) -> ASGIApp:
        """Returns the file object of the result file `name`. Raises Refused."""
        found = await self._find(request, name)
        size = await rendered_size(Reader(self._streams, request), request.receive, found.pieces)
        record = FileRecord(
            file=name[0],
            sha256="",
            bytes=size,
            filename=found.name,
            media_type="application/jsonl",
            purpose="batch_output",
            created_at=found.created_at,
            expires_at=None,
        )
        return json_response(render_file(record, request))

    async def get_content(self, request: ApiRequest, name: re.Match[str]) -> ASGIApp:
        """Returns the results. Raises Refused."""
        found = await self._find(request, name)
        return Download(Reader(self._streams, request), found.pieces, HEADERS, is_stream=True)

    async def delete(self, _request: ApiRequest, _name: re.Match[str]) -> ASGIApp:
        """Raises Refused."""
        raise Refused("request_invalid", "the results of a batch are deleted with its turn: DELETE /v1/turns/{turn}")

    async def _find(self, request: ApiRequest, name: re.Match[str]) -> ResultFile:
        """Returns the result file of this name. Raises Refused if its batch does not exist or has not ended."""
        key, kind = ScopedKey(request.access, TurnId(name[1])), name[2]
        try:
            _, stored, turn = await find_batch(key, self._streams.log, self._streams.history)
            source = source_of(stored)
        except Refused as error:
            raise (not_found("file") if error.code == "batch_not_found" else error) from error
        if not stored.is_over:
            raise not_found("file")
        inputs = ended_inputs(self._streams, self._blob_store, key, turn, range(stored.counts.of))
        if kind == "output":
            pieces = render_lines(inputs, partial(output_line, endpoint=source.endpoint))
        else:
            render = partial(failed_line, stored=stored)
            pieces = render_with_refused(inputs, render, stored, self._blob_store, key)
        return ResultFile(f"{PREFIX}{stored.batch}_{kind}.jsonl", stored.ended_at or stored.asked_at, pieces)


Handler = Callable[[ResultFiles, ApiRequest, re.Match[str]], Awaitable[ASGIApp]]
HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "/v1/files/{file_id}"): ResultFiles.get,
    ("GET", "/v1/files/{file_id}/content"): ResultFiles.get_content,
    ("DELETE", "/v1/files/{file_id}"): ResultFiles.delete,
}


def wrap(route: Route) -> Route:
    """Returns a route of one file with the result files of batches, and any other route as it is."""
    handle, endpoint = HANDLERS.get((route.method, route.path)), route.endpoint
    if handle is None:
        return route

    @wraps(endpoint)
    async def respond(request: ApiRequest, result_files: ResultFiles, **services: Any) -> ASGIApp:
        name = RESULT_FILE.fullmatch(request.path_params["file_id"])
        response: ASGIApp = await (
            endpoint(request, **services) if name is None else handle(result_files, request, name)
        )
        return response

    # Services are given by the types of the parameters, and `wraps` copies those of the endpoint.
    respond.__annotations__ = {**endpoint.__annotations__, "result_files": ResultFiles}
    return msgspec.structs.replace(route, endpoint=respond)


async def rendered_size(reader: Reader, receive: Receive, pieces: AsyncGenerator[bytes, None]) -> int:
    """Returns the size of results by rendering them. This costs as much as a download, and counts as a stream.

    Raises Refused if the credential ends or the client disconnects before that.
    """

    async def render() -> int:
        size = 0
        async with aclosing(pieces):
            async for piece in pieces:
                size += len(piece)
                if size > COUNTED_BYTES_MAX:
                    break
        return min(size, COUNTED_BYTES_MAX)

    async with reader.open(receive, None):
        await reader.acquire()
        async with reader.until_interrupted():
            return await render()
    if reader.is_expired and not reader.has_left:
        raise credential_invalid()
    raise Refused("request_invalid", "the client disconnected before the response")


def output_line(ended: EndedInput, endpoint: str) -> dict[str, Any] | None:
    """Returns the line of a completed turn, None for others."""
    turn = ended.turn
    if turn is None or turn.outcome != "completed":
        return None
    # `custom_id` is no metadata of the client.
    metadata = {name: value for name, value in turn.metadata.items() if name != input_lines.CUSTOM_ID}
    shown = msgspec.structs.replace(turn, metadata=metadata)
    is_chat = endpoint == CHAT
    body = msgspec.Raw(chat_object.render_completion(shown)) if is_chat else responses_stream.response_of(shown)
    return _line(turn, {"status_code": 200, "request_id": turn.turn, "body": body})


def failed_line(ended: EndedInput, stored: StoredBatch) -> dict[str, Any] | None:
    """Returns the line of an input that was not completed, None for others."""
    turn = ended.turn
    if turn is not None and turn.outcome == "completed":
        return None
    if turn is not None and turn.outcome == "failed":
        failure = failure_of(turn)
        status = CODES[failure.code].status if failure.code in CODES else 500
        problem = {"message": failure.message, "type": error_type(failure), "code": failure.code, "param": None}
        return _line(turn, {"status_code": status, "request_id": turn.turn, "body": {"error": problem}})
    line = {"id": None, "custom_id": ended.custom_id, "response": None} if turn is None else _line(turn, None)
    return {**line, "error": _batch_error(stored, turn)}


def _batch_error(stored: StoredBatch, turn: TurnRecord | None) -> dict[str, str]:
    """Returns why an input has no response: the end of its batch, or that of its turn."""
    if stored.outcome == "cancelled":
        return {"code": "batch_cancelled", "message": "This request could not be executed: the batch was cancelled."}
    failure = stored.error or (LOST if turn is None else failure_of(turn))
    if failure.code == EXPIRED_FAILURE:
        return {"code": "batch_expired", "message": "This request could not be executed before the batch ended."}
    return {"code": failure.code, "message": failure.message}


def _line(turn: TurnRecord, response: dict[str, Any] | None) -> dict[str, Any]:
    return {"id": f"batch_req_{turn.turn}", "custom_id": custom_id_of(turn), "response": response, "error": None}
