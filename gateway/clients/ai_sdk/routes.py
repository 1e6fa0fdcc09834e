"""The routes of AI SDK: for `useChat` with `resume: true`, and for WorkflowChatTransport. They convert nothing.

A chat is a session, and the workflow transport's run a turn. Both stand at the same place in the path.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway.clients.ai_sdk import history, message
from tailrace.gateway.clients.ai_sdk.request import ChatRequest, ask_of, unknown
from tailrace.gateway.clients.ai_sdk.stream import DONE, UI, UI_REPLAY
from tailrace.gateway.clients.native.routes import look
from tailrace.gateway.clients.openai.unsupported import ignored_header
from tailrace.gateway.dependencies import Gateway, gateway_of, refuse_when_draining, tenant_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.streaming import sse
from tailrace.gateway.streaming.event_stream import EventStream, begin
from tailrace.gateway.streaming.wait_for_log import WaitForLog
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.respond import answer, asked
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Tenant, TurnId, is_token
from tailrace.proto.records import GetLastTurn, GetTurn, TurnRecord
from tailrace.proto.subjects import TurnKey

# A page that has loaded its messages while the answer ran asks for the rest of it this much later at most.
LATE_S = 10.0
START_INDEX = re.compile(r"-?[0-9]{1,9}")


class Stopped(msgspec.Struct, frozen=True):
    """The answer to a stop: the turn, and how it has ended."""

    turn: TurnId
    outcome: str


async def post(request: Request) -> ASGIApp:
    """`POST /api/chat`: a chat's next answer as a UI message stream.

    Who names a chat goes on with it: what the chat holds is not stored again, and what differs from it is a branch. The
    header `tailrace-ignored` names fields that mean nothing here.
    """
    chat, raw = await asked(request, ChatRequest, is_text_taken=True)
    return await answer(request, ask_of(chat), raw, UI, is_streamed=True, headers=ignored_header(unknown(raw)))


async def stream(request: Request) -> ASGIApp:
    """`GET /api/chat/{chat}/stream`: the running answer, from its beginning; with `startIndex`, from that chunk on.

    204: nothing is running, or was a moment ago. `startIndex` counts from 0, and from the end when it is negative; an
    answer that has ended is then told as well.
    """
    gateway, tenant, name = gateway_of(request), tenant_of(request), request.path_params["chat"]
    index = start_index(request)
    if index is not None and index > 0 and request.method == "GET":
        # To the workflow transport every status but 200 is final, as it is to an EventSource.
        return WaitForLog(gateway, FromChunk(gateway, tenant, name, index), UI)
    refuse_when_draining(gateway)
    if index is not None:
        return await from_chunk(gateway, tenant, name, index)
    key = await resumable(gateway, tenant, name)
    return Response(status_code=204) if key is None else EventStream(gateway, key, BEFORE_FIRST, UI_REPLAY)


async def stop(request: Request) -> Response:
    """`POST /api/chat/{chat}/stop`: ends the running answer; what was said stays. One that has ended stays as it is."""
    gateway, tenant, name = gateway_of(request), tenant_of(request), request.path_params["chat"]
    key = await named(gateway, tenant, name)
    try:
        outcome = (await cancel(gateway.log, key)).outcome
    except TurnUnknown:
        outcome = (await look(gateway, key)).outcome
    return json_response(Stopped(key.turn, outcome))


async def messages(request: Request) -> Response:
    """`GET /api/chat/{chat}/messages`: the newest branch as UI messages, for a page that begins with them.

    The answer that is running is not among them: `resume: true` brings it.
    """
    gateway, tenant, name = gateway_of(request), tenant_of(request), request.path_params["chat"]
    return json_response(message.messages(await history.newest(gateway, tenant, name)))


class FromChunk:
    """The response to a run's reader that comes back for what follows a chunk: which turn it means the log says."""

    def __init__(self, gateway: Gateway, tenant: Tenant, name: str, index: int) -> None:
        self._gateway = gateway
        self._tenant = tenant
        self._name = name
        self._index = index

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = await from_chunk(self._gateway, self._tenant, self._name, self._index)
        await stream(scope, receive, send)

    async def look(self) -> None:
        """Returns when somebody can say which turn it is, or that there is none; raises LogUnavailable."""
        with suppress(Refused):
            await named(self._gateway, self._tenant, self._name)

    async def begin(self, send: Send, status: int) -> None:
        """Without the names of turn and run, which nobody knows yet, and which only a new reader needs."""
        await begin(send, status, {"content-type": UI.media_type, **sse.HEADERS, **UI.headers})


async def from_chunk(gateway: Gateway, tenant: Tenant, name: str, index: int) -> EventStream:
    """The stream from the chunk `index` on, from the end when it is negative; raises Refused, LogUnavailable."""
    key = await named(gateway, tenant, name)
    count, is_ended = await told(gateway, key)
    seen = max(0, count + index) if index < 0 else index
    if is_ended and seen >= count:
        raise Refused("cursor_invalid", f"the stream ends before `startIndex`: it has {count} chunks")
    headers = {"x-workflow-run-id": key.turn, "x-workflow-stream-tail-index": str(count - 1)}
    return EventStream(gateway, key, BEFORE_FIRST, UI, headers, seen=seen)


async def named(gateway: Gateway, tenant: Tenant, name: str) -> TurnKey:
    """The newest turn of the chat of that name, or the turn; raises Refused."""
    turn = TurnKey(tenant, TurnId(name))
    if is_token(name) and await is_logged(gateway, turn):
        return turn
    try:
        return TurnKey(tenant, (await gateway.history.ask(tenant, GetLastTurn(name))).turn)
    except Refused as refused:
        if refused.code != "session_not_found":
            raise
        return TurnKey(tenant, (await gateway.history.ask(tenant, GetTurn(TurnId(name)))).turn)


async def resumable(gateway: Gateway, tenant: Tenant, name: str) -> TurnKey | None:
    """That turn, unless it is over; a chat that was never begun has nothing to resume, and is no error to `useChat`."""
    try:
        key = await named(gateway, tenant, name)
        return None if is_over(await look(gateway, key), datetime.now(UTC)) else key
    except Refused as refused:
        if refused.code != "turn_not_found":
            raise
        return None


def is_over(turn: TurnRecord, now: datetime) -> bool:
    """Whether it has ended, and every page that did not see its end has had the time to ask for it."""
    if turn.ended_at is None:
        # Of one that left the log without an end nobody knows when it was lost: long ago.
        return turn.outcome != "running"
    return (now - turn.ended_at).total_seconds() > LATE_S


async def told(gateway: Gateway, key: TurnKey) -> tuple[int, bool]:
    """How many chunks a turn has by now, and whether that is all."""
    try:
        async with gateway.lives.reading(key, BEFORE_FIRST, from_start=True) as live:
            frames = live.frames(UI, 0, len(live.entries))
            return sum(chunks(frame.events) for frame in frames), live.is_ended
    except TurnUnknown:
        record = await gateway.history.past(key)
        return chunks(UI.render_record(record, 0).events), True


def chunks(events: sse.Events) -> int:
    """Counts chunks as the workflow transport does: `[DONE]` is none."""
    return sum(event.data != DONE for event in events)


async def is_logged(gateway: Gateway, key: TurnKey) -> bool:
    try:
        await gateway.log.turn(key)
    except TurnUnknown:
        return False
    return True


def start_index(request: Request) -> int | None:
    text = request.query_params.get("startIndex")
    if text is None:
        return None
    if START_INDEX.fullmatch(text) is None:
        raise Refused("request_invalid", "`startIndex` is a whole number: how many chunks were received")
    return int(text)


ROUTES = [
    Route("/api/chat", post, methods=["POST"]),
    Route("/api/chat/{chat}/stream", stream, methods=["GET"]),
    Route("/api/chat/{chat}/stop", stop, methods=["POST"]),
    Route("/api/chat/{chat}/messages", messages, methods=["GET"]),
]
