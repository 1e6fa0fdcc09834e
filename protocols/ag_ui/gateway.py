"""The routes of AG-UI, for HttpAgent and TanStack AI, and those of a CopilotKit runtime.

A thread is a session, and a run is a turn.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http import read_body, sse
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.http.json_response import json_response, large_json_response
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.last_event_id import last_event_id, split_part
from tailrace.gateway.http.parameters import CURSOR_SCHEMA, LAST_EVENT_ID_IN_QUERY, LAST_RECEIVED
from tailrace.gateway.http.route import SSE, Route, Section, header, query
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.reader import Reader, StreamContext, refuse_when_draining
from tailrace.gateway.streaming.response import EventStream, HeldStream
from tailrace.gateway.turns.draft import cursor_of_post, draft_turn
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.respond import names_of
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto.errors import Refused
from tailrace.proto.ids import BEFORE_FIRST, TurnId, parse_cursor
from tailrace.proto.nats import BlobStore, Claim, Claims
from tailrace.proto.ownership import ScopedKey, owned_key
from tailrace.proto.records import GetLastTurn, GetSession, TurnRecord
from tailrace.proto.runtime.settings import NoSettings
from tailrace.proto.thinking_prefix import checks_thinking
from tailrace.proto.version import VERSION
from tailrace.protocols.ag_ui.blocks import is_call
from tailrace.protocols.ag_ui.request import (
    CLIENT_NAMES,
    RunAgentInput,
    build_turn,
    context_text,
    decisions_of,
    has_question,
    ignored_fields,
    with_context,
    with_results,
)
from tailrace.protocols.ag_ui.runs import connect, end_again, find_run, name_run, read_thread
from tailrace.protocols.ag_ui.stream import AG_UI, AG_UI_1, JOINED, LIVE, POSTED, make_dialect
from tailrace.protocols.ag_ui.tool_runs import ToolRuns
from tailrace.protocols.common.examples import QUESTION
from tailrace.protocols.common.field_names import name_as_client
from tailrace.protocols.common.read_or_none import read_or_none
from tailrace.protocols.common.unsupported import ignored_header

# The messages of a larger request are not kept for the case of a restart: the stream would hold them.
OWN_BYTES_MAX = 256 * 1024
DEFAULT_AGENT = "default"
GONE_ON = "the thread has gone on since these interrupts: load it again, and send the question without `resume`"
REUSED = "this runId was used with another body: use a new one"


class AgentInfo(msgspec.Struct, frozen=True, rename="camel"):
    """An agent of CopilotKit: a model, or the default one."""

    name: str
    """The name of the agent."""
    class_name: str
    """The kind of the agent."""
    description: str
    """The description of the agent, which pages show."""


class RuntimeInfo(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a CopilotKit client that asks for its runtime."""

    version: str
    """The version of Tailrace."""
    agents: dict[str, AgentInfo]
    """The agents by name."""
    audio_file_transcription_enabled: bool = False
    """Whether the runtime turns speech into text."""
    mode: str = "sse"
    """How the runtime sends events."""


class StopBody(msgspec.Struct, frozen=True, rename="camel"):
    """The body of a request that stops a run."""

    run_id: str | None = None
    """The run to stop; without it, the newest run of the thread."""


class StoppedRun(msgspec.Struct, frozen=True):
    """The run, and whether it was stopped."""

    stopped: bool
    """Whether this request has ended the run."""
    turn: TurnId
    """The turn of the run."""
    outcome: str
    """How the turn ended."""


async def post_run(
    request: ApiRequest,
    submitter: TurnSubmitter,
    streams: StreamContext,
    catalogue: Catalogue,
    claims: Claims,
    turns: TurnReader,
) -> ASGIApp:
    """`POST /api/agui`: answers the newest message of a thread with the events of AG-UI.

    A repeated request gets the same run; with `Last-Event-ID`, the rest of its stream. The response header
    `tailrace-ignored` names the fields that have no effect. `POST /api/copilotkit/agent/{agent}/run` does the same with
    the model of this name; the agent `default` has the session's model, or the operator's default.
    """
    agent = request.path_params.get("agent", DEFAULT_AGENT)
    fields, raw = await request.read(dict[str, Any], has_model_output=True)
    run = read_body.convert(fields, RunAgentInput)
    own = msgspec.json.encode(fields.get("messages", [])) if len(raw) <= OWN_BYTES_MAX else None
    reader = Reader(streams, request)
    with name_as_client(CLIENT_NAMES), as_run():
        async with reader.reserve():
            # Only TanStack AI runs tools in this way: CopilotKit has paths of its own.
            begin = "" if run.is_1 or "agent" in request.path_params else POSTED if cursor_of_post(request) else LIVE
            dialect = make_dialect(f"{begin}own" if own else begin, is_1=run.is_1, own=own)
            if run.resume:
                known = frozenset(one.tool_call_id for one in run.messages if one.role == "tool")
                variant = f"{begin}run {run.run_id} {' '.join(sorted(known))}"
                dialect = make_dialect(variant, is_1=run.is_1, own=own, run=run.run_id, known=known)
            if run.resume and not has_question(run):
                key, cursor = await decide(request, run, raw, submitter, claims, turns), cursor_of_post(request)
                headers: dict[str, str] = {}
            else:
                default_key = run.run_id
                if run.resume:
                    default_key = await find_question_key(request, run, raw, streams.history, claims, turns)
                    run = with_results(run)
                model = None if agent == DEFAULT_AGENT else agent
                new_turn = await convert_body(len(raw), build_turn, run, model)
                if text := context_text(run):
                    new_turn = await add_context(new_turn, text, streams.history, request, catalogue)
                draft = draft_turn(request, new_turn, raw, default_key=default_key, is_followed=True)
                stored = await submitter.submit(draft)
                key, cursor, headers = stored.key, draft.cursor, names_of(stored)
            if cursor and (again := await end_again(streams.log, key, cursor, reader.part, dialect)) is not None:
                await reader.release()
                return again
    headers |= ignored_header(ignored_fields(fields))
    # The first event is sent at once: a client resumes only after its first id.
    response = EventStream(reader, key, dialect, cursor or BEFORE_FIRST, headers=headers)
    response.add_headers({"tailrace-turn": key.turn, "request-id": key.turn})
    return response


async def decide(
    request: ApiRequest, run: RunAgentInput, raw: bytes, submitter: TurnSubmitter, claims: Claims, turns: TurnReader
) -> ScopedKey:
    """Decides the interrupts of a thread. Returns the turn that follows, which gets the run's id. Raises Refused.

    `useInterrupt` of CopilotKit sends the id of the run that was interrupted, which keeps its claim.
    """
    decisions, sha256 = decisions_of(run), await hash_body(raw)
    claim = await claims.find(request.access.tenant, owned_key(request.access, run.run_id))
    if claim is not None and claim.body_sha256 != sha256:
        await require_interrupted(request, run, claim, turns)
    following: ScopedKey | None = None
    for call, decision in decisions.items():
        following = await submitter.steps.decide_call(request.principal, run.thread_id, call, decision)
    if following is None:
        raise Refused("request_invalid", "`resume` lacks the decision about another call of the answer", param="resume")
    if claim is None:
        await claims.claim(request.access.tenant, owned_key(request.access, run.run_id), Claim(following.turn, sha256))
    return following


async def require_interrupted(request: ApiRequest, run: RunAgentInput, claim: Claim, turns: TurnReader) -> None:
    """Raises Refused if the turn that has the id of `run` is not the one that was interrupted."""
    turn = await turns.read(ScopedKey(request.access, claim.turn))
    if turn.session != run.thread_id or not decisions_of(run).keys() <= calls_of(turn):
        raise Refused("run_id_reused", REUSED, param="runId")


def calls_of(turn: TurnRecord) -> set[str]:
    return {block["id"] for block in turn.content if is_call(block)}


async def find_question_key(
    request: ApiRequest, run: RunAgentInput, raw: bytes, history: HistoryClient, claims: Claims, turns: TurnReader
) -> str:
    """Returns the idempotency key of a question that comes with decisions: the run's id, if no other run has it.

    Raises Refused if the thread does not wait for the decisions.
    """
    key, sha256 = run.run_id, await hash_body(raw)
    claim = await claims.find(request.access.tenant, owned_key(request.access, key))
    if claim is not None and claim.body_sha256 != sha256:
        await require_interrupted(request, run, claim, turns)
        key = sha256
        claim = await claims.find(request.access.tenant, owned_key(request.access, key))
    if claim is None:
        newest = await history.query(request.access, GetLastTurn(run.thread_id))
        if not {entry.interrupt_id for entry in run.resume or ()} <= calls_of(newest):
            raise Refused("call_decided", GONE_ON, param="resume")
    return key


async def add_context(
    new_turn: NewTurn, text: str, history: HistoryClient, request: ApiRequest, catalogue: Catalogue
) -> NewTurn:
    """Returns the turn with the context of its page. Raises Refused.

    Models that do not check what stood before their thinking may refuse a message with `clear_at`: they get the context
    with the system prompt.
    """
    session = await read_or_none(history.query(request.access, GetSession(new_turn.session or "")))
    name = new_turn.model or (None if session is None else session.model)
    if checks_thinking((await catalogue.offer(request.access.tenant)).model(name).id):
        return msgspec.structs.replace(new_turn, messages=with_context(new_turn.messages or [], text))
    system = new_turn.system or (None if session is None else session.system_prompt) or []
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system
    return msgspec.structs.replace(new_turn, system=[*blocks, {"type": "text", "text": text}])


async def get_thread_or_run(
    request: ApiRequest,
    streams: StreamContext,
    claims: Claims,
    submitter: TurnSubmitter,
    blob_store: BlobStore,
    tool_runs: ToolRuns,
) -> ASGIApp:
    """`GET /api/agui`: with `threadId`, the messages of a thread, its active run and its interrupts; with `runId`, the
    events of a run.

    `offset` is the id of the last received event, or -1; `Last-Event-ID` takes precedence over it. The messages have
    the format of TanStack AI. An unknown thread has no messages.
    """
    thread, run = request.query_params.get("threadId"), request.query_params.get("runId")
    if (thread is None) == (run is None):
        raise Refused("request_invalid", "either `threadId` or `runId` is required")
    if thread is not None:
        found = await read_thread(streams, submitter.steps, blob_store, request.access, thread)
        run = "" if found.newest is None else await name_run(claims, request.access, found.newest)
        is_active = await tool_runs.wait(request.access, found)
        return await large_json_response(await asyncio.to_thread(found.page, run, is_active=is_active))
    assert run is not None  # noqa: S101
    reader, last = Reader(streams, request), last_event_id(request, "offset")
    seq, reader.part = split_part("" if last == "-1" else last)
    cursor = parse_cursor(seq or "0")

    key = await find_run(streams.log, claims, streams.history, request.access, run)
    if cursor:
        if (again := await end_again(streams.log, key, cursor, reader.part, JOINED)) is not None:
            return again
        # TanStack AI treats every status but 200 as final, so it waits inside the stream.
        return HeldStream(reader, key, JOINED, cursor)
    refuse_when_draining(streams.draining)
    return EventStream(reader, key, JOINED)


async def get_info(request: ApiRequest, catalogue: Catalogue) -> Response:
    """`GET /api/copilotkit/info`: the agents of a CopilotKit runtime: `default`, and one for each model."""
    models = [model.id for model in (await catalogue.offer(request.access.tenant)).models]
    agents = {DEFAULT_AGENT: AgentInfo(DEFAULT_AGENT, "Tailrace", "The model of the session")}
    agents |= {name: AgentInfo(name, "Tailrace", f"The model {name}") for name in models}
    return json_response(RuntimeInfo(VERSION, agents))


async def post_connect(
    request: ApiRequest, streams: StreamContext, submitter: TurnSubmitter, blob_store: BlobStore
) -> ASGIApp:
    """`POST /api/copilotkit/agent/{agent}/connect`: streams all runs of a thread, and follows the newest one.

    An unknown thread has no events.
    """
    fields, _ = await request.read(dict[str, Any], has_model_output=True)
    run = read_body.convert(fields, RunAgentInput)
    refuse_when_draining(streams.draining)
    thread = await read_thread(streams, submitter.steps, blob_store, request.access, run.thread_id)
    has_reasoning = any(message.role == "reasoning" for message in run.messages)
    start = await connect(thread, request.access, is_1=run.is_1, has_reasoning=has_reasoning)
    if start is None:
        return Response(headers={"content-type": sse.MEDIA_TYPE, **sse.HEADERS})
    return EventStream(Reader(streams, request), start, AG_UI_1 if run.is_1 else AG_UI)


async def post_stop(request: ApiRequest, streams: StreamContext, claims: Claims, turns: TurnReader) -> Response:
    """`POST /api/copilotkit/agent/{agent}/stop/{thread}`: ends a run of the thread and keeps its text.

    Without `runId` in the body, this is the newest run. A run that has ended stays.
    """
    body = StopBody()
    # CopilotKit names the type of a body that it does not send.
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        body, _ = await request.read(StopBody)
    thread, scope = request.path_params["thread"], request.access
    run = body.run_id
    if run is None:
        run = (await streams.history.query(scope, GetLastTurn(thread))).turn
    key = await find_run(streams.log, claims, streams.history, scope, run)
    before = await turns.read(key)
    if before.session != thread:
        raise Refused("turn_not_found", "this run is not of this thread")
    ended = await turns.cancel(key, request.principal.key)
    is_stopped = before.outcome == "running" and ended.outcome == "cancelled"
    return json_response(StoppedRun(is_stopped, key.turn, ended.outcome))


@contextmanager
def as_run() -> Iterator[None]:
    """In a Refused from the block, names the run in place of its idempotency key."""
    try:
        yield
    except Refused as refused:
        if refused.code == "idempotency_key_reused":
            raise Refused("run_id_reused", REUSED, param="runId") from refused
        raise


SECTION = Section("ag-ui", "https://docs.ag-ui.com/concepts/events")
OFFSET_SCHEMA = {"type": "string", "pattern": "^(-1|[0-9]{1,19}(-[0-9]{1,9})?)$"}
RESUMING = (header("Last-Event-ID", LAST_RECEIVED, **CURSOR_SCHEMA), *LAST_EVENT_ID_IN_QUERY)
THREAD = query("threadId", "The thread whose messages are returned.", examples=["support-4711"])
RUN = query("runId", "The run whose events are streamed.")
OFFSET = query("offset", "With `runId`: the id of the last received event; -1: none.", **OFFSET_SCHEMA)
PAGE = {
    "messages": [{"id": "in_1", "role": "user", "parts": [{"type": "text", "content": QUESTION}]}],
    "activeRun": {"runId": "run-1"},
    "interrupts": None,
}

READING = (THREAD, RUN, OFFSET, *RESUMING)
AGENT = "/api/copilotkit/agent/{agent}"

run = partial(
    Route, "POST", endpoint=post_run, need="write", section=SECTION, body=RunAgentInput, streams=SSE, events="ag-ui-1"
)
ROUTES = [
    run("/api/agui", parameters=RESUMING),
    Route(
        "GET",
        "/api/agui",
        get_thread_or_run,
        "read",
        SECTION,
        result=PAGE,
        streams=SSE,
        events="ag-ui-1",
        parameters=READING,
    ),
    Route("GET", "/api/copilotkit/info", get_info, "read", SECTION, result=RuntimeInfo),
    run(f"{AGENT}/run", parameters=RESUMING),
    run(f"{AGENT}/connect", endpoint=post_connect, need="read"),
    Route("POST", f"{AGENT}/stop/{{thread}}", post_stop, "write", SECTION, body=StopBody, result=StoppedRun),
]


def start(gateway: Gateway, _: NoSettings) -> Parts:
    """Makes the service that ends runs with calls of the page's tools."""
    runs = ToolRuns(gateway)
    return Parts(services=(runs,), go_on=runs.go_on)


FEATURE = Feature(NoSettings, start, routes=ROUTES, dialects=(AG_UI, AG_UI_1))
