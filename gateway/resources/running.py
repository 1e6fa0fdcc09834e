"""Routes of running turns: list them, and cancel all of a session."""

import asyncio

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.resources.paging import LIMIT_MAX, Page, page_of
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import SessionId, Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.records import GetSession, ListRunning, TurnRecord
from tailrace.proto.subjects import TurnKey


class RunningTurns(Page[TurnRecord], frozen=True, kw_only=True):
    """Running turns, oldest first, with their text so far."""


class CancelledSession(msgspec.Struct, frozen=True):
    """A session, and those of its turns that this request has ended."""

    session: SessionId
    cancelled: list[TurnId]


async def get_turns(request: ApiRequest, history: HistoryClient, reader: TurnReader) -> Response:
    """`GET /v1/turns?status=running`: the running turns, oldest first, in pages; `session`: those of one session."""
    tenant, (after, limit) = request.tenant, page_of(request)
    if request.query_params.get("status") != "running":
        raise Refused(
            "request_invalid", "send `status=running`; ended turns are listed at /v1/sessions/{session}/turns"
        )
    found = await history.ask(tenant, ListRunning(request.query_params.get("session"), after, limit))
    turns = await asyncio.gather(*(reader.refresh(TurnKey(tenant, one.turn), one) for one in found.turns))
    running = [one for one in turns if one.outcome == "running"]
    return json_response(RunningTurns(data=running, has_more=found.next is not None, next=found.next))


async def post_cancel(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`POST /v1/sessions/{session}/cancel`: ends the running turns of a session. Their text so far is kept."""
    tenant = request.tenant
    session = (await history.ask(tenant, GetSession(request.path_params["session"]))).session
    cancelled: list[TurnId] = []
    after: str | None = None
    while True:
        page = await history.ask(tenant, ListRunning(session, after, LIMIT_MAX))
        ended = await asyncio.gather(*(_cancel(log, tenant, one.turn) for one in page.turns))
        cancelled += [one.turn for one, is_cancelled in zip(page.turns, ended, strict=True) if is_cancelled]
        if (after := page.next) is None:
            return json_response(CancelledSession(session, cancelled))


async def _cancel(log: TurnLog, tenant: Tenant, turn: TurnId) -> bool:
    """Cancels a turn; returns False if it has ended otherwise, or has left the log."""
    try:
        return (await cancel(log, TurnKey(tenant, turn))).outcome == "cancelled"
    except TurnUnknown:
        return False


ROUTES = [
    Route("/v1/turns", get_turns, methods=["GET"]),
    Route("/v1/sessions/{session}/cancel", post_cancel, methods=["POST"]),
]
