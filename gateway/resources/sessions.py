"""Routes of sessions: create, list, read, rename and delete conversations."""

import asyncio
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import KEY_OF_RESOURCE, NUMBERED_PAGE, OF_USER, PAGE
from tailrace.gateway.http.route import SESSIONS, Route, query
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.resources.create_once import create_once
from tailrace.gateway.resources.deletion import DeletedObject, delete_response
from tailrace.gateway.resources.paging import NumberedPage, Page, is_newest_first, number_of, page_of
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.request_body import (
    BODY_LEVELS_MAX,
    check_name,
    check_session,
    check_system,
    check_user,
    refuse_blob_references,
)
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import Refused
from tailrace.proto.nats import Claims
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetSession, ListSessions, ListSessionTurns, SessionRecord, TurnRecord
from tailrace.proto.resources import Branch, ChangeSession, CreateSession, ListBranches

TITLE_CHARS_MAX = 500
# Every answer about a session contains it, and each answer is one NATS message.
SYSTEM_BYTES_MAX = 128 * 1024


class NewSessionBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/sessions`; every field is optional."""

    id: str | None = None
    """The id of the session; the gateway makes one if it is left out."""
    title: str | None = None
    """The title of the session."""
    model: str | None = None
    """The model of turns that name none."""
    system_prompt: str | list[dict[str, Any]] | None = None
    """The system prompt of turns that have none."""
    project_id: str | None = None
    """The project of the session."""
    user: str | None = None
    """The end user of the session. The user that a JWT names takes precedence."""


class ChangeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `PATCH /v1/sessions/{session}`. A field that is left out does not change; null removes its value."""

    title: str | UnsetType | None = UNSET
    """The title of the session."""
    model: str | UnsetType | None = UNSET
    """The model of turns that name none."""
    system_prompt: str | list[dict[str, Any]] | UnsetType | None = UNSET
    """The system prompt of turns that have none."""


class SessionList(NumberedPage[SessionRecord], frozen=True, kw_only=True):
    """Sessions, newest first; `sessions` repeats `data`."""

    sessions: list[SessionRecord]
    """The same as `data`, as other servers for Claude name it. The next release sends it only with `page`."""


class SessionTurns(Page[TurnRecord], frozen=True, kw_only=True):
    """The turns of a session; `turns` repeats `data`."""

    turns: list[TurnRecord]
    """The same as `data`, for older clients. The next release leaves it out."""


class BranchList(Page[Branch], frozen=True, kw_only=True):
    """Branches, newest leaf first."""


async def sessions(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/sessions`: all sessions, or those of `?project_id=` and `?user=`, newest first, in pages.

    Each session has the totals of its turns. A page is requested by `after`, or by its number.
    """
    scope, page = request.access, number_of(request)
    parameters = request.query_params
    check_name("project_id", parameters.get("project_id"))
    query = ListSessions(page.after, page.limit, parameters.get("project_id"), page.offset, parameters.get("user"))
    found = await history.query(scope, query)
    return json_response(
        SessionList(
            data=found.sessions,
            sessions=found.sessions,
            next=found.next,
            pagination=page.pagination(found.total, len(found.sessions), has_more=found.next is not None),
        )
    )


async def post(
    request: ApiRequest, admissions: Admissions, history: HistoryClient, catalogue: Catalogue, claims: Claims
) -> Response:
    """`POST /v1/sessions`: creates a session without turns. Status 200, which clients of other servers check.

    A turn can also name a new session itself, with `create_session`.
    """
    scope = request.access
    new, raw = await request.read(NewSessionBody)
    check_session("id", new.id)
    check_name("project_id", new.project_id)
    check_user(new.user)
    maker = request.principal.user
    user = maker or new.user
    _check(new, await catalogue.offer(scope.tenant))

    async def create(name: str) -> SessionRecord:
        session = CreateSession(name, new.title, new.model, new.system_prompt, new.project_id, user, maker)
        async with admissions.count(request.principal, len(raw)):
            return await history.query(scope, session)

    async def find(name: str) -> SessionRecord:
        return await history.query(scope, GetSession(name))

    made = await create_once(request, raw, claims, "session", new.id, create, find)
    return json_response(made, headers={"location": f"/v1/sessions/{made.session}"})


async def session(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/sessions/{session}`: one session, with the totals of all its branches."""
    scope = request.access
    query = GetSession(request.path_params["session"])
    return json_response(await history.query(scope, query))


async def patch(request: ApiRequest, history: HistoryClient, catalogue: Catalogue) -> Response:
    """`PATCH /v1/sessions/{session}`: changes the title, and the defaults of its next turns.

    A field that is left out does not change; null removes its value.
    """
    scope = request.access
    new, _ = await request.read(ChangeBody)
    _check(new, await catalogue.offer(scope.tenant))
    query = ChangeSession(request.path_params["session"], new.title, new.model, new.system_prompt)
    return json_response(await history.query(scope, query))


async def delete(request: ApiRequest, deleter: Deleter) -> Response:
    """`DELETE /v1/sessions/{session}`: deletes a session with all its turns.

    The text of the turns is erased from the log and the database. Sums of usage keep the tokens and the cost.
    """
    scope = request.access
    return await delete_response(deleter, scope, "session", request.path_params["session"])


async def turns(request: ApiRequest, history: HistoryClient, reader: TurnReader) -> Response:
    """`GET /v1/sessions/{session}/turns`: the session's turns, in pages, oldest first; newest first with `?order=desc`.

    The list has the turns of all branches.
    """
    scope, (after, limit) = request.access, page_of(request)
    query = ListSessionTurns(request.path_params["session"], after, limit, is_newest_first(request, "asc"))
    found = await history.query(scope, query)
    current = await asyncio.gather(*(reader.refresh(ScopedKey(scope, one.turn), one) for one in found.turns))
    return json_response(SessionTurns(data=current, turns=current, next=found.next))


async def branches(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/sessions/{session}/branches`: the turns that no other turn continues, each with the turns before it.

    Each branch is one way to read the conversation.
    """
    scope, (after, limit) = request.access, page_of(request)
    query = ListBranches(request.path_params["session"], after, limit)
    found = await history.query(scope, query)
    return json_response(BranchList(data=found.branches, next=found.next))


def check_text(field: str, text: str | None, chars_max: int) -> None:
    """Raises Refused if `text` is empty or longer than `chars_max`. None is valid."""
    if text is not None and not 1 <= len(text) <= chars_max:
        raise Refused("request_invalid", f"`{field}` must have from 1 to {chars_max} characters.")


def _check(new: NewSessionBody | ChangeBody, offer: Offer) -> None:
    """Checks what the types do not. Raises Refused."""
    if new.title is not UNSET:
        check_text("title", new.title, TITLE_CHARS_MAX)
    if isinstance(new.model, str):
        if not new.model:
            raise Refused(
                "request_invalid", "`model` is empty: name a model, or send null for the default", param="model"
            )
        offer.model(new.model)
    if new.system_prompt is UNSET:
        return
    if is_deeper(new.system_prompt, BODY_LEVELS_MAX):
        raise Refused("request_invalid", f"the body is nested more than {BODY_LEVELS_MAX} levels deep")
    refuse_blob_references(new.system_prompt)
    check_system("system_prompt", new.system_prompt)
    if len(msgspec.json.encode(new.system_prompt)) > SYSTEM_BYTES_MAX:
        raise Refused("request_invalid", f"`system_prompt` has more than {SYSTEM_BYTES_MAX} bytes: send it with turns")


OF_PROJECT = query("project_id", "Only items of this project.")
TURN_ORDER = query("order", "The order of the turns; `asc`, oldest first, by default.", enum=["asc", "desc"])

ROUTES = [
    Route(
        "GET",
        "/v1/sessions",
        sessions,
        "read",
        SESSIONS,
        result=SessionList,
        parameters=(*NUMBERED_PAGE, OF_PROJECT, OF_USER),
    ),
    Route(
        "POST",
        "/v1/sessions",
        post,
        "write",
        SESSIONS,
        body=NewSessionBody,
        result=SessionRecord,
        parameters=(KEY_OF_RESOURCE,),
    ),
    Route("GET", "/v1/sessions/{session}", session, "read", SESSIONS, result=SessionRecord),
    Route("PATCH", "/v1/sessions/{session}", patch, "manage", SESSIONS, body=ChangeBody, result=SessionRecord),
    Route("DELETE", "/v1/sessions/{session}", delete, "manage", SESSIONS, result=DeletedObject),
    Route(
        "GET",
        "/v1/sessions/{session}/turns",
        turns,
        "read",
        SESSIONS,
        result=SessionTurns,
        parameters=(TURN_ORDER, *PAGE),
    ),
    Route("GET", "/v1/sessions/{session}/branches", branches, "read", SESSIONS, result=BranchList, parameters=PAGE),
]
