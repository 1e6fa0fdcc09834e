"""Routes of calls of client tools that wait for a decision: the sessions, the calls, and the decision about one."""

import re
from typing import Annotated, Any, Literal

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from tailrace.features.client_calls.continuations import PATH, Continuations
from tailrace.features.client_calls.records import (
    Block,
    DecideCall,
    Decision,
    ListCalls,
    ListParked,
    SessionCalls,
    result_block,
)
from tailrace.features.client_calls.result_content import check_result, without_marks
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.read_body import convert
from tailrace.gateway.http.route import SESSIONS, Route, query
from tailrace.gateway.resources import sessions
from tailrace.gateway.resources.paging import page_of
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import BODY_LEVELS_MAX, refuse_blob_references
from tailrace.proto.depth import is_deeper
from tailrace.proto.entries import Message
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.ids import TurnId
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.runtime.settings import NoSettings

logger = structlog.get_logger()

# A decision is one message to persistence.
RESULT_BYTES_MAX = 512 * 1024
TOO_LARGE = f"a result has at most {RESULT_BYTES_MAX} bytes: send a larger one with POST /v1/turns"
AGE_S = re.compile("[0-9]{1,9}")
BODIES = 'send {"result": "…"}, or {"decision": "denied", "reason": "…"}'


class DecisionBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a decision: either `result`, or `decision`."""

    result: str | list[Block] | UnsetType = UNSET
    """The result of the tool, which the caller has run: a text, or content blocks in Anthropic's format."""
    is_error: bool = False
    """Whether the tool has failed; `result` then says why."""
    decision: Literal["denied"] | UnsetType = UNSET
    """`denied`: the tool is not run. The model gets that as the result, with `reason`."""
    reason: Annotated[str, Meta(min_length=1)] | None = None
    """Why the call is denied."""
    turn: str | None = None
    """The turn with the call. Only needed for models that number the calls of each turn anew."""


class WaitingCalls(SessionCalls, frozen=True, kw_only=True):
    """The calls of a turn of a session, and why no turn continues it."""

    waits_because: str | None = None
    """Why the next turn was not started yet, although all calls are decided."""


class DecidedCall(WaitingCalls, frozen=True, kw_only=True):
    """The calls of the turn after a decision about one of them."""

    undecided_calls: list[str]
    """The ids of the calls that still wait for a decision."""


async def get_calls(request: ApiRequest, history: HistoryClient, authenticator: Authenticator) -> Response:
    """`GET /v1/sessions/{session}/calls`: the calls of the client's tools for which the session waits.

    The list is empty if the session requires no action. With `turn`: the calls of this turn and their decisions.
    `waits_because`: the API key that made the last decision has ended, so the decision must be repeated.
    """
    asked = ListCalls(request.path_params["session"], request.query_params.get("turn"))
    found = await history.query(request.access, asked)
    why = None
    if found.next is None and found.calls and not found.undecided:
        try:
            authenticator.stand_in(request.access, found.decided_by)
        except Refused as refused:
            why = f"{refused.message} Repeat the decision about a call with a valid credential."
    return json_response(WaitingCalls(**msgspec.structs.asdict(found), waits_because=why))


class Decisions:
    """Stores decisions, and starts the turns that follow."""

    def __init__(self, gateway: Gateway, continuations: Continuations) -> None:
        self._admissions = gateway.admissions
        self._history = gateway.history
        self._continuations = continuations

    async def store(self, principal: Principal, session: str, call: str, body: DecisionBody, size: int) -> SessionCalls:
        """Stores a decision whose body has `size` bytes; returns the calls of the turn. Raises Refused."""
        decision = decision_of(body)
        if size > RESULT_BYTES_MAX:
            raise Refused("body_too_large", TOO_LARGE)
        if isinstance(decision.result, list):
            await self._continuations.require_files(principal.access, decision.result, size)
        # In a tenant with private users, the session must be the user's own, whatever user its turns name.
        user = principal.user if principal.access.is_whole_tenant else None
        asked = DecideCall(session, call, decision, principal.key, user, body.turn)
        async with self._admissions.count(principal, size):
            found = await self._history.query(principal.access, asked)
        kind = "denied" if decision.result is None else "result"
        logger.info(
            "call decided", tenant=principal.access.tenant, session=session, call=call, decision=kind, by=principal.key
        )
        return found

    async def start(self, principal: Principal, found: SessionCalls) -> TurnId | None:
        """Returns the turn that follows a turn of which all calls are decided. Raises Refused, LogError."""
        if found.next is not None:
            return found.next
        try:
            return await self._continuations.start(principal, found.session)
        except Refused as refused:
            if refused.code != "call_not_found":
                raise
            # The session waits no more: another request or process has started the turn meanwhile.
            return (await self._history.query(principal.access, ListCalls(found.session, found.turn))).next

    async def read_decided(self, scope: Scope, session: str) -> list[Message]:
        """See OptionalSteps."""
        calls = (await self._history.query(scope, ListCalls(session))).calls
        results = [result_block(one.call, one.decision) for one in calls if one.decision is not None]
        return [Message("user", results)] if results else []

    async def decide_call(
        self, principal: Principal, session: str, call: str, fields: dict[str, Any]
    ) -> ScopedKey | None:
        """See OptionalSteps."""
        found = await self.store(
            principal, session, call, convert(fields, DecisionBody), len(msgspec.json.encode(fields))
        )
        following = None if found.undecided else await self.start(principal, found)
        return None if following is None else ScopedKey(principal.access, following)


async def post_decision(request: ApiRequest, decisions: Decisions) -> Response:
    """`POST /v1/sessions/{session}/calls/{call}`: decides about a call: its result, or that it is denied.

    When all calls of the turn are decided, the next turn starts, once: `next` is its id. A repeated request changes
    nothing and gets the same answer. If the next turn was not started yet, it starts for the credential of this
    request. With a JWT that names a user, the session must be of this user.
    """
    session, call = request.path_params["session"], request.path_params["call"]
    body, raw = await request.read(DecisionBody)
    found = await decisions.store(request.principal, session, call, body, len(raw))
    if body.result is not UNSET and body.result != without_marks(body.result):
        request.response_headers.append({"tailrace-ignored": "cache_control"})
    following, why = found.next, None
    if not found.undecided:
        try:
            following = await decisions.start(request.principal, found)
        except (Refused, LogError) as error:
            # The decision is stored, and the turn starts later.
            why = str(error)
    return json_response(
        DecidedCall(
            session=found.session,
            turn=found.turn,
            since=found.since,
            calls=found.calls,
            next=following,
            undecided_calls=found.undecided,
            waits_because=why,
        )
    )


def decision_of(body: DecisionBody) -> Decision:
    """Returns the decision of a body. Raises Refused for a body with both kinds or none, and for an invalid result."""
    if (body.result is UNSET) == (body.decision is UNSET):
        raise Refused("request_invalid", f"either `result` or `decision` is required: {BODIES}")
    if body.result is UNSET:
        if body.is_error:
            raise Refused("request_invalid", f"`is_error` needs a `result`: {BODIES}", param="is_error")
        return Decision(reason=body.reason)
    if body.reason is not None:
        raise Refused("request_invalid", f'`reason` needs `decision: "denied"`: {BODIES}', param="reason")
    if body.is_error and not body.result:
        raise Refused("request_invalid", "`result` is empty: it says why the tool has failed", param="result")
    if is_deeper(body.result, BODY_LEVELS_MAX):
        raise Refused("request_invalid", f"the body is nested more than {BODY_LEVELS_MAX} levels deep")
    refuse_blob_references(body.result)
    if isinstance(body.result, list):
        check_result(body.result, is_error=body.is_error)
    return Decision(result=without_marks(body.result), is_error=body.is_error)


async def get_sessions(request: ApiRequest, history: HistoryClient) -> Response:
    parameters = request.query_params
    if "state" not in parameters:
        if "min_age_s" in parameters:
            raise Refused("request_invalid", "`min_age_s` needs `state=requires_action`", param="min_age_s")
        return await sessions.sessions(request, history)
    if parameters["state"] != "requires_action":
        raise Refused("request_invalid", "`state` must be `requires_action`", param="state")
    for name in ("page", "per_page", "project_id"):
        if name in parameters:
            raise Refused("request_invalid", f"`{name}` cannot be combined with `state`: use `after`", param=name)
    after, limit = page_of(request)
    if AGE_S.fullmatch(age_s := parameters.get("min_age_s", "0")) is None:
        raise Refused("request_invalid", "`min_age_s` must be a number of seconds of at most nine digits")
    found = await history.query(request.access, ListParked(after, limit, parameters.get("user"), int(age_s)))
    return json_response(
        sessions.SessionList(data=found.sessions, sessions=found.sessions, next=found.next, pagination=None)
    )


get_sessions.__doc__ = f"""{sessions.sessions.__doc__}
    With `state=requires_action`, only those whose last turn ended with calls of client tools, which wait for
    decisions; the last one that began to wait comes first.
    """

STATE = query(
    "state", "`requires_action`: only sessions whose last turn waits for results of tools.", enum=["requires_action"]
)
MIN_AGE = query(
    "min_age_s", "With `state`: only sessions that have waited for so many seconds.", type="integer", minimum=1
)
TURN = query("turn", "The calls of this turn of the session instead.")

ROUTES = [
    Route("GET", "/v1/sessions/{session}/calls", get_calls, "read", SESSIONS, result=WaitingCalls, parameters=(TURN,)),
    Route("POST", PATH, post_decision, "write", SESSIONS, body=DecisionBody, result=DecidedCall),
]


def wrap(route: Route) -> Route:
    """Returns the route of the list of sessions with the parameter `state`, and any other route as it is."""
    if route.endpoint is not sessions.sessions:
        return route
    return msgspec.structs.replace(route, endpoint=get_sessions, parameters=(*route.parameters, STATE, MIN_AGE))


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the service that starts decided turns, at once and, after a failure, in the background."""
    continuations = Continuations(gateway)
    decisions = Decisions(gateway, continuations)
    steps = OptionalSteps(decide_call=decisions.decide_call, read_decided=decisions.read_decided)
    return Parts(services=(decisions,), background=(continuations.run,), steps=steps)


FEATURE = Feature(NoSettings, start, routes=ROUTES, wrap=wrap)
