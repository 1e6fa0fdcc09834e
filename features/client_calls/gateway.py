"""Routes of calls of client tools that wait for a decision: the sessions, the calls, and the decision about one."""

import re
from typing import Annotated, Literal

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from tailrace.features.client_calls.continuations import PATH, Continuations
from tailrace.features.client_calls.records import Block, DecideCall, Decision, ListCalls, ListParked, SessionCalls
from tailrace.features.client_calls.result_content import check_result, without_marks
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import SESSIONS, Route, query
from tailrace.gateway.resources import sessions
from tailrace.gateway.resources.paging import page_of
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.request_body import BODY_LEVELS_MAX, refuse_blob_references
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.ids import Tenant, TurnId
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


class DecidedCall(SessionCalls, frozen=True, kw_only=True):
    """The calls of the turn after a decision about one of them."""

    undecided_calls: list[str]
    """The ids of the calls that still wait for a decision."""
    waits_because: str | None = None
    """Why the next turn was not started yet, although all calls are decided. It is started later."""


async def get_calls(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/sessions/{session}/calls`: the calls of the client's tools for which the session waits.

    The list is empty if the session requires no action. With `turn`: the calls of this turn and their decisions.
    """
    asked = ListCalls(request.path_params["session"], request.query_params.get("turn"))
    return json_response(await history.query(request.tenant, asked))


async def post_decision(
    request: ApiRequest, admissions: Admissions, history: HistoryClient, continuations: Continuations
) -> Response:
    """`POST /v1/sessions/{session}/calls/{call}`: decides about a call: its result, or that it is denied.

    When all calls of the turn are decided, the next turn starts, once: `next` is its id. A repeated request changes
    nothing and gets the same answer. With a JWT that names a user, the session must be of this user.
    """
    tenant, session, principal = request.tenant, request.path_params["session"], request.principal
    body, raw = await request.read(DecisionBody)
    decision = decision_of(body)
    if len(raw) > RESULT_BYTES_MAX:
        raise Refused("body_too_large", TOO_LARGE)
    if isinstance(decision.result, list):
        await continuations.require_files(tenant, decision.result, len(raw))
    if body.result not in (UNSET, decision.result):
        request.response_headers.append({"tailrace-ignored": "cache_control"})
    asked = DecideCall(session, request.path_params["call"], decision, principal.key, principal.user, body.turn)
    async with admissions.count(principal, len(raw)):
        found = await history.query(tenant, asked)
    kind = "denied" if decision.result is None else "result"
    logger.info("call decided", tenant=tenant, session=session, call=asked.call, decision=kind, by=principal.key)
    following, why = found.next, None
    if following is None and not found.undecided:
        following, why = await _start(continuations, history, tenant, found)
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


async def _start(
    continuations: Continuations, history: HistoryClient, tenant: Tenant, found: SessionCalls
) -> tuple[TurnId | None, str | None]:
    """Starts the next turn. Returns its id, or why it starts later: the decision is stored in either case."""
    try:
        return await continuations.start(tenant, found.session), None
    except (Refused, LogError) as error:
        if not isinstance(error, Refused) or error.code != "call_not_found":
            return None, str(error)
        # The session waits no more: another request or process has started the turn meanwhile.
        return (await history.query(tenant, ListCalls(found.session, found.turn))).next, None


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
    found = await history.query(request.tenant, ListParked(after, limit, parameters.get("user"), int(age_s)))
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
    Route("GET", "/v1/sessions/{session}/calls", get_calls, "read", SESSIONS, result=SessionCalls, parameters=(TURN,)),
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
    return Parts(services=(continuations,), background=(continuations.run,))


FEATURE = Feature(NoSettings, start, routes=ROUTES, wrap=wrap)
