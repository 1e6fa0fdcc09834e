"""Routes that list turns (running, or with a label or outcome), and cancel the turns of a session."""

import asyncio
from datetime import UTC, date, datetime
from typing import cast, get_args

import msgspec
from starlette.responses import Response

from tailrace.features.common.day_parameter import day_of
from tailrace.features.common.label_filters import OF_LABELS, metadata_of
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import FROM, PAGE, TO
from tailrace.gateway.http.route import SESSIONS, TURNS, Route, query
from tailrace.gateway.resources.paging import Page, page_of
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.entries import Outcome
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.records import PAGE_ITEMS_MAX, GetSession, ListRunning, ListTurns, TurnOrder, TurnRecord
from tailrace.proto.runtime.settings import NoSettings

TEXT_CHARS_MAX = 1000
COSTLIEST_DAYS_MAX = 31
ENDED: tuple[str, ...] = get_args(Outcome)
# Query parameters that select turns by a label of the same name.
LABELS = ("user", "model", "key")


class TurnList(Page[TurnRecord], frozen=True, kw_only=True):
    """Turns, newest first; with `status=running` the running ones, oldest first, with their text so far.

    With `order=first_token_s` the turns that waited longest for their first token, and with `order=-cost_usd` those
    that cost most, in one page.
    """


class CancelledSession(msgspec.Struct, frozen=True):
    """A session, and its turns that this request has ended."""

    session: SessionId
    """The id of the session."""
    cancelled: list[TurnId]
    """The turns that this request has ended."""


async def get_turns(request: ApiRequest, history: HistoryClient, reader: TurnReader) -> Response:
    """`GET /v1/turns`: turns by words, user, model, key, metadata, outcome and day, newest, slowest or costliest first.

    `status=running` lists those that run, oldest first. Conditions are combined: a turn must fulfil all of them. `q`
    finds turns whose message and answer contain all of its words. `order=first_token_s` lists the turns of some
    days whose first token took longest, and `order=-cost_usd` those of at most 31 days that cost most: at most `limit`,
    and as many as fit in one page.
    """
    scope, (after, limit) = request.access, page_of(request)
    query = _query_of(request, after, limit)
    found = await history.query(scope, query)
    turns = await asyncio.gather(*(reader.refresh(ScopedKey(scope, one.turn), one) for one in found.turns))
    shown = [one for one in turns if one.outcome == "running" or isinstance(query, ListTurns)]
    has_one_page = isinstance(query, ListTurns) and query.order != "asked_at"
    return json_response(TurnList(data=shown, next=None if has_one_page else found.next))


def _query_of(request: ApiRequest, after: str | None, limit: int) -> ListRunning | ListTurns:
    """Returns the query for the parameters of `request`. Raises Refused."""
    parameters = request.query_params
    labels = {name: parameters[name] for name in LABELS if name in parameters} | metadata_of(request)
    first, last = day_of(request, "from"), day_of(request, "to")
    status = parameters.get("status")
    if status not in (None, "running", *ENDED):
        why = f"`status` must be one of running, {', '.join(ENDED)}; leave it out for all turns"
        raise Refused("request_invalid", why, param="status")
    if status != "running":
        if "session" in parameters:
            why = (
                "`session` can be combined with `status=running` only: "
                "all turns of a session are listed at /v1/sessions/{session}/turns"
            )
            raise Refused("request_invalid", why, param="session")
        if len(text := parameters.get("q", "")) > TEXT_CHARS_MAX:
            why = (
                f"`q` has {len(text):,} characters, and at most {TEXT_CHARS_MAX:,} are allowed: search for fewer words"
            )
            raise Refused("request_invalid", why, param="q")
        order = _order_of(request, first, last)
        return ListTurns(labels, parameters.get("q"), first, last, after, limit, cast("Outcome | None", status), order)
    if labels or first or last or "q" in parameters or "order" in parameters:
        raise Refused("request_invalid", "`status=running` can be combined with `session` only: leave the others out")
    return ListRunning(parameters.get("session"), after, limit)


def _order_of(request: ApiRequest, first: date | None, last: date | None) -> TurnOrder:
    """Returns the parameter `order`. Raises Refused."""
    parameters = request.query_params
    order = parameters.get("order", "asked_at")
    if order not in get_args(TurnOrder):
        why = f"`order` must be one of {', '.join(get_args(TurnOrder))}; leave it out for the newest turns first"
        raise Refused("request_invalid", why, param="order")
    if order != "asked_at":
        if first is None:
            raise Refused("request_invalid", f"`order={order}` needs a day: `from=2026-01-31`", param="from")
        if "q" in parameters or "after" in parameters:
            raise Refused("request_invalid", f"`order={order}` has one page, and no `q` or `after`", param="order")
    if order == "-cost_usd" and first is not None:
        days = ((last or datetime.now(UTC).date()) - first).days + 1
        if days > COSTLIEST_DAYS_MAX:
            why = f"`order=-cost_usd` reads at most {COSTLIEST_DAYS_MAX} days at once, and these are {days}"
            raise Refused("request_invalid", f"{why}: send a later `from` or an earlier `to`", param="from")
    return cast("TurnOrder", order)


async def post_cancel(request: ApiRequest, log: TurnLog, history: HistoryClient) -> Response:
    """`POST /v1/sessions/{session}/cancel`: ends the running turns of a session. Their text so far is kept.

    The response names the turns that this request has ended.
    """
    scope = request.access
    session = (await history.query(scope, GetSession(request.path_params["session"]))).session
    cancelled: list[TurnId] = []
    after: str | None = None
    while True:
        page = await history.query(scope, ListRunning(session, after, PAGE_ITEMS_MAX))
        ended = await asyncio.gather(*(_cancel(log, scope, one.turn, request.principal.key) for one in page.turns))
        cancelled += [one.turn for one, is_cancelled in zip(page.turns, ended, strict=True) if is_cancelled]
        if (after := page.next) is None:
            return json_response(CancelledSession(session, cancelled))


async def _cancel(log: TurnLog, scope: Scope, turn: TurnId, by: str | None) -> bool:
    """Cancels a turn; returns False if it has ended otherwise, or has left the log."""
    try:
        return (await cancel(log, ScopedKey(scope, turn), "session", by)).outcome == "cancelled"
    except TurnUnknown:
        return False


FILTERS = (
    query(
        "status",
        "Only turns with this outcome; running ones are listed oldest first.",
        enum=["running", "completed", "cancelled", "failed"],
    ),
    query("session", "Only items of this session."),
    query("q", "Only turns that contain all of these words in their message and answer."),
    *OF_LABELS,
    FROM,
    TO,
    query(
        "order",
        "The order; with `from`, also `first_token_s`, the slowest first, and `-cost_usd`, the costliest first.",
        enum=list(get_args(TurnOrder)),
    ),
)

ROUTES = [
    Route("GET", "/v1/turns", get_turns, "read", TURNS, result=TurnList, parameters=(*FILTERS, *PAGE)),
    Route("POST", "/v1/sessions/{session}/cancel", post_cancel, "write", SESSIONS, result=CancelledSession),
]

FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
