"""The routes of AI SDK: for `useChat` with `resume: true`, and for WorkflowChatTransport.

A chat of `useChat` is a session, and a run of the workflow transport is a turn. The same path parameter holds both.
"""

import asyncio
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.clients.native.routes import cursor_of, stream_of
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http import read_body
from tailrace.gateway.http.json_response import json_response, large_json_response
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.parameters import GONE, KEY, RESUMING
from tailrace.gateway.http.query_parameters import is_true
from tailrace.gateway.http.route import SSE, Route, Section, query
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.reader import Reader, StreamContext, refuse_when_draining
from tailrace.gateway.streaming.response import EventStream, HeldStream, Start
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.respond import Responder
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import TurnId, is_token
from tailrace.proto.nats import BlobStore, TurnLog
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.records import GetLastTurn, GetTurn, TurnRecord
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.ai_sdk.message import build_messages
from tailrace.protocols.ai_sdk.request import UIChatRequest, build_turn, client_names, unknown_fields
from tailrace.protocols.ai_sdk.stream import UI, Earlier, message_id, replay_dialect, step_chunks
from tailrace.protocols.common.built_turn import BuiltTurn, answer
from tailrace.protocols.common.earlier_steps import goes_on, read_steps
from tailrace.protocols.common.event_count import count_data_events, count_events, has_unsure_count
from tailrace.protocols.common.examples import QUESTION
from tailrace.protocols.common.newest_branch import newest_branch
from tailrace.protocols.common.read_or_none import read_or_none
from tailrace.protocols.common.stored_messages import read_texts, resolve

# A page that loaded its messages while the answer ran requests the stream at most this much later.
LATE_S = 10.0
# Each reader of a replay holds the long texts of the earlier steps in memory. Longer steps are left out.
EARLIER_BYTES_MAX = 1024 * 1024
OF_AG_UI = "this is a run of AG-UI (HttpAgent, CopilotKit, TanStack AI): send it to POST /api/agui"
START_INDEX = re.compile(r"-?[0-9]{1,9}")


class StoppedTurn(msgspec.Struct, frozen=True):
    """The stopped turn and its outcome."""

    turn: TurnId
    """The id of the stopped turn."""
    outcome: str
    """How the turn ended."""


async def post_chat(request: ApiRequest, responder: Responder) -> ASGIApp:
    """`POST /api/chat`: answers the newest message of a chat with a UI message stream.

    Messages that the chat already has are not stored again; different messages start a branch. The response header
    `tailrace-ignored` names unknown fields.
    """
    fields, raw = await request.read(dict[str, Any], is_text_allowed=True, has_model_output=True)
    if "threadId" in fields and "runId" in fields:
        raise Refused("request_invalid", OF_AG_UI)
    chat = read_body.convert(fields, UIChatRequest)
    built = BuiltTurn(await convert_body(len(raw), build_turn, chat), unknown_fields(fields), client_names(chat))
    return await answer(responder, request, built, raw, UI, is_streamed=True, idempotency_key=chat.idempotency_key)


async def get_stream(request: ApiRequest, streams: StreamContext, turns: TurnReader, blob_store: BlobStore) -> ASGIApp:
    """`GET /api/chat/{chat}/stream`: streams the running answer from its start, or from the chunk `startIndex` on.

    Answers 204 if no answer is running or has ended within the last seconds. `startIndex` counts from 0, or from the
    end if it is negative; with it, an answer that has ended is streamed, too. `replay=true`: `startIndex`
    counts the chunks of a stream that began without it. Such a stream also has the earlier steps of the message,
    unless their long texts and files have more than 1 MiB. `Last-Event-ID` continues a stream after any chunk with an
    `id:`, and takes precedence over `startIndex`.
    """
    scope, name = request.access, request.path_params["chat"]
    if cursor := cursor_of(request):
        of_cursor = await find_turn_or_chat(streams.log, streams.history, scope, name)
        return stream_of(Reader(streams, request), request, of_cursor, cursor, UI)
    index = start_index(request)
    if index is not None and index > 0 and request.method == "GET":
        # The workflow transport treats every status but 200 as final, so it waits inside the stream.
        find = partial(find_chunk, streams, turns, blob_store, request, index)
        return HeldStream(Reader(streams, request), find, UI)
    refuse_when_draining(streams.draining)
    if index is not None:
        start = await find_chunk(streams, turns, blob_store, request, index)
        return EventStream(Reader(streams, request), start, UI)
    # `useChat` asks on each load, and treats an unknown chat and an answer that is over the same.
    key = await read_or_none(find_turn_or_chat(streams.log, streams.history, scope, name))
    turn = None if key is None else await read_or_none(turns.read(key))
    if key is None or turn is None or is_over(turn, datetime.now(UTC)):
        return Response(status_code=204)
    return EventStream(Reader(streams, request), key, await replay_of(streams, blob_store, key, turn))


async def post_stop(request: ApiRequest, log: TurnLog, history: HistoryClient, turns: TurnReader) -> Response:
    """`POST /api/chat/{chat}/stop`: ends the running answer and keeps its text. An answer that has ended stays.

    The message stays in the chat with its text so far.
    """
    scope, name = request.access, request.path_params["chat"]
    key = await find_turn_or_chat(log, history, scope, name)
    return json_response(StoppedTurn(key.turn, (await turns.cancel(key, request.principal.key)).outcome))


async def get_messages(
    request: ApiRequest, streams: StreamContext, submitter: TurnSubmitter, blob_store: BlobStore
) -> Response:
    """`GET /api/chat/{chat}/messages`: returns the newest branch as UI messages, the initial messages of a page.

    A running answer is not included: `resume: true` streams it.
    """
    branch = await newest_branch(streams, submitter.steps, blob_store, request.access, request.path_params["chat"])
    # In a thread, like the steps of `newest_branch`: 24,000 messages take 100 ms, in which the loop would serve no
    # stream.
    return await large_json_response(await asyncio.to_thread(build_messages, *branch))


async def find_chunk(
    streams: StreamContext, turns: TurnReader, blob_store: BlobStore, request: ApiRequest, index: int
) -> Start:
    """Returns the start of a stream from chunk `index` on; negative: from the end. Raises Refused, LogUnavailable."""
    key = await find_turn_or_chat(streams.log, streams.history, request.access, request.path_params["chat"])
    dialect = UI
    if is_true(request, "replay"):
        dialect = await replay_of(streams, blob_store, key, await turns.read(key))
    try:
        count, is_ended = await count_events(streams, key, dialect, index)
        most = count - is_ended
        if index > 0 and await has_unsure_count(streams, key, dialect, index):
            return Start(key, dialect=dialect, is_replaced=True)
    except TurnUnknown:
        # In the database, deltas are joined: a client may have more chunks, and receives the answer again.
        record = await streams.history.read_past_turn(key)
        count = count_data_events(dialect.render_record(record, 0).events)
        most = max(count, index)
    seen = max(0, count + index) if index < 0 else index
    if seen > most:
        raise Refused("cursor_invalid", f"`startIndex` is beyond the end of the stream, which has {count} chunks")
    headers = {"x-workflow-run-id": key.turn, "x-workflow-stream-tail-index": str(count - 1)}
    return Start(key, seen, headers, dialect)


async def replay_of(streams: StreamContext, blob_store: BlobStore, key: ScopedKey, turn: TurnRecord) -> Dialect:
    """Returns the dialect with the earlier steps of the message, or UI if they are too long or there are none.

    Raises Refused, LogUnavailable.
    """
    if not goes_on(turn):
        return UI
    first, steps = await read_steps(streams.history, key.scope, turn)
    texts = await read_texts(blob_store, key.tenant, steps, EARLIER_BYTES_MAX)
    if texts is None:
        return UI
    name = message_id(first.turn, {**first.metadata, **turn.metadata})
    return replay_dialect(Earlier(name, step_chunks(resolve(steps, texts))))


async def find_turn_or_chat(log: TurnLog, history: HistoryClient, scope: Scope, name: str) -> ScopedKey:
    """Returns the turn with the id `name`, or the newest turn of the chat `name`. Raises Refused."""
    turn = ScopedKey(scope, TurnId(name))
    if is_token(name) and await is_logged(log, turn):
        return turn
    last = await read_or_none(history.query(scope, GetLastTurn(name)))
    return ScopedKey(scope, (last or await history.query(scope, GetTurn(TurnId(name)))).turn)


def is_over(turn: TurnRecord, now: datetime) -> bool:
    """Returns whether the turn ended so long ago that no page still requests its stream."""
    if turn.ended_at is None:
        # A turn that left the log without an end has no time of its end; it is old.
        return turn.outcome != "running"
    return (now - turn.ended_at).total_seconds() > LATE_S


async def is_logged(log: TurnLog, key: ScopedKey) -> bool:
    """Returns whether the log still has the turn, and the user who sees the tenant owns it. Raises LogUnavailable."""
    # Any replica has the first entry, also while there is no leader. Only a leader can say that there is no entry.
    try:
        await log.require_owned(key)
    except TurnUnknown:
        return False
    return True


def start_index(request: ApiRequest) -> int | None:
    """Returns the query parameter `startIndex`, which may be negative; None without it. Raises Refused."""
    text = request.query_params.get("startIndex")
    if text is None:
        return None
    if START_INDEX.fullmatch(text) is None:
        raise Refused("request_invalid", "`startIndex` must be a whole number, the count of received chunks")
    return int(text)


SECTION = Section("ai-sdk", "https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol")
MESSAGES = [{"id": "msg-1", "role": "user", "parts": [{"type": "text", "text": QUESTION}]}]
FIRST_CHUNK = query("startIndex", "The index of the first chunk; negative: from the end.", type="integer")
REPLAY = query("replay", "`true`: `startIndex` counts as in a stream that began without it.")

READING = (FIRST_CHUNK, REPLAY, *RESUMING)

ROUTES = [
    Route(
        "POST",
        "/api/chat",
        post_chat,
        "write",
        SECTION,
        UIChatRequest,
        streams=SSE,
        events="ui",
        parameters=(KEY, *RESUMING),
    ),
    Route(
        "GET",
        "/api/chat/{chat}/stream",
        get_stream,
        "read",
        SECTION,
        streams=SSE,
        events="ui",
        parameters=READING,
        statuses=GONE,
    ),
    Route("POST", "/api/chat/{chat}/stop", post_stop, "write", SECTION, result=StoppedTurn),
    Route("GET", "/api/chat/{chat}/messages", get_messages, "read", SECTION, result=MESSAGES),
]

FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES, dialects=(UI,))
