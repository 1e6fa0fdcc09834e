"""The routes that streaming tutorials teach, so that their pages run without changes.

Each request becomes an ordinary turn: a stream that was cut can be resumed at `/v1/turns/{turn}/events` (the response
header `tailrace-turn` has the id), and every conversation is in the history.
"""

import hashlib
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.clients.native.routes import cursor_of, stream_of
from tailrace.gateway.clients.native.text_stream import TEXT
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import GONE, KEY, KEY_SCHEMA, RESUMING
from tailrace.gateway.http.route import SSE, Route, Section, header
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.gateway.turns.draft import draft_turn
from tailrace.gateway.turns.idempotency_key import idempotency_key_of
from tailrace.gateway.turns.respond import Responder
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.ownership import Scope, owned_key
from tailrace.proto.runtime import base64url
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.common.field_names import name_as_client
from tailrace.protocols.tutorials.chat_cookie import COOKIE, cookie_of, format_cookie, new_cookie
from tailrace.protocols.tutorials.content_stream import CONTENT
from tailrace.protocols.tutorials.delta_stream import DELTA, render_refusal
from tailrace.protocols.tutorials.html_stream import HTML
from tailrace.protocols.tutorials.job_stream import JOB
from tailrace.protocols.tutorials.request import (
    AIChatRequest,
    ChatRequest,
    ChatStreamRequest,
    StartJobRequest,
    ai_chat_turn,
    chat_stream_turn,
    chat_turn,
    job_turn,
)
from tailrace.protocols.tutorials.state_stream import STATE

# The length of 16 random bytes in base64; a UUID is longer.
FIRST_KEY_CHARS_MIN = 22


class StartedJob(msgspec.Struct, frozen=True):
    """A new job, stored in the log, and the path of its stream."""

    job_id: TurnId
    """The id of the job, which is the turn's."""
    session: SessionId
    """The session of the turn."""
    stream: str
    """The path of the job's stream."""
    status: Literal["queued"] = "queued"
    """The job waits for a generator."""


async def post_chat_stream(request: ApiRequest, responder: Responder) -> ASGIApp:
    """`POST /chat/stream`: answers one prompt in the dialect `delta`. A failure or refusal is an event, too.

    For a page that was written after a tutorial for another server. The `error` of a failure is `auth_error`,
    `rate_limit` (with `retry_after`, in seconds), `token_limit`, `network_error` (a retry may help) or `unknown`. With
    `Accept: application/json` or `Last-Event-ID`, a refusal is the usual error, so that libraries that resume repeat
    the request.
    """
    body, raw = await request.read(ChatStreamRequest)
    return await responder.answer(request, chat_stream_turn(body), raw, DELTA, is_streamed=True, waits_for_answer=False)


async def post_chat(request: ApiRequest, responder: Responder) -> ASGIApp:
    """`POST /chat`: answers in plain text, in the conversation that the cookie identifies, or in a new one.

    `GET /` sets the cookie, too. The browser keeps it for 30 days; the conversation has no time limit. The session is
    `chat:` and the SHA-256 of the cookie. With an Idempotency-Key the first POST of a conversation can be repeated: it
    gets the same cookie again. Such a key gives access to the conversation.
    """
    body, raw = await request.read(ChatRequest)
    cookie = cookie_of(request)
    if cookie is None:
        key = idempotency_key_of(request)
        cookie = new_cookie() if key is None else cookie_of_key(request.access, key, raw)
    # Hashed, because session names are listed and sent in headers, and must not reveal the cookie.
    session = f"chat:{hashlib.sha256(cookie.encode()).hexdigest()}"
    # The cookie is part of the compared body: the same text and Idempotency-Key in another conversation is a conflict.
    raw += cookie.encode()
    return await responder.answer(
        request,
        chat_turn(body, session),
        raw,
        TEXT,
        is_streamed=True,
        headers={"set-cookie": format_cookie(cookie, request)},
    )


def cookie_of_key(scope: Scope, key: str, raw: bytes) -> str:
    """Returns the cookie of the conversation that a POST with this Idempotency-Key and body starts.

    The cookie is derived, so that a client that lost the response gets the same cookie from the repeated POST. The key
    then grants as much as the cookie: raises Refused for a key that is short enough to guess.
    """
    if len(key) < FIRST_KEY_CHARS_MIN:
        raise Refused(
            "idempotency_key_invalid",
            "the Idempotency-Key of a first message gives access to the conversation: "
            f"send a random one of at least {FIRST_KEY_CHARS_MIN} characters, for example a UUID",
        )
    digest = hashlib.sha256(f"{COOKIE}\0{scope.tenant}\0{owned_key(scope, key)}\0".encode() + raw).digest()
    return base64url.encode(digest[:24])


async def post_ai_chat(request: ApiRequest, responder: Responder) -> ASGIApp:
    """`POST /ai/chat`: continues a conversation that is sent in full. Answers in the dialect `content`.

    Each request begins a new session, which has all of its messages. If the turn fails, the connection breaks off after
    `data: {"error"}`.
    """
    body, raw = await request.read(AIChatRequest)
    return await responder.answer(request, ai_chat_turn(body), raw, CONTENT, is_streamed=True)


async def post_job(request: ApiRequest, submitter: TurnSubmitter) -> Response:
    """`POST /api/start-job`, `POST /api/process`: starts a job. Answers 202 with the job's id, which is the turn's.

    The stream of the job can be read any number of times, also after its end.
    """
    body, raw = await request.read(StartJobRequest)
    with name_as_client({} if body.prompt is None else {"message": "prompt"}):
        key, entry, _ = await submitter.submit(draft_turn(request, job_turn(body), raw))
    stream = f"/api/stream/{key.turn}"
    started = StartedJob(job_id=key.turn, session=entry.session, stream=stream)
    return json_response(started, status=202, headers={"location": stream, "tailrace-turn": key.turn})


async def get_job_stream(request: ApiRequest, streams: StreamContext) -> ASGIApp:
    """`GET /api/stream/{job_id}`: streams the job in the dialect `job`, from its start or from the cursor on.

    `Last-Event-ID` continues without a gap. `progress` (0 to 100) is an estimate from the length of the text; of a
    batch, it is the share of ended requests. At most four states a second are sent, fewer for a long text.
    """
    return stream_of(Reader(streams, request), request, request.turn("job_id"), cursor_of(request), JOB)


KEY_WITHOUT_COOKIE = header(
    "Idempotency-Key",
    "A repeated request with the same key and body gets the same turn. Without the cookie, the key has at least "
    "22 random characters, and `auto` is refused.",
    **KEY_SCHEMA,
)

SECTION = Section("tutorials")

STREAMED = (KEY, *RESUMING)

post = partial(Route, "POST", need="write", section=SECTION)
start_job = partial(post, endpoint=post_job, body=StartJobRequest, result=StartedJob, status=202, parameters=(KEY,))
ROUTES = [
    post(
        "/chat/stream",
        post_chat_stream,
        body=ChatStreamRequest,
        streams=SSE,
        events="delta",
        parameters=STREAMED,
        render_refusal=render_refusal,
    ),
    post("/chat", post_chat, body=ChatRequest, streams="text/plain", parameters=(KEY_WITHOUT_COOKIE,)),
    post("/ai/chat", post_ai_chat, body=AIChatRequest, streams=SSE, events="content", parameters=STREAMED),
    start_job("/api/start-job"),
    start_job("/api/process"),
    Route(
        "GET",
        "/api/stream/{job_id}",
        get_job_stream,
        "read",
        SECTION,
        streams=SSE,
        events="job",
        parameters=RESUMING,
        statuses=GONE,
    ),
]


def set_cookie(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the endpoint of a page, whose responses set the cookie of `POST /chat` for a browser without one."""

    @wraps(endpoint)
    async def respond(request: Request, **services: Any) -> Response:
        response: Response = await endpoint(request, **services)
        if cookie_of(request) is None:
            response.headers["set-cookie"] = format_cookie(new_cookie(), request)
        return response

    return respond


def wrap(route: Route) -> Route:
    """Returns the route of the page `/`, which sets the cookie, and any other route as it is."""
    return msgspec.structs.replace(route, endpoint=set_cookie(route.endpoint)) if route.path == "/" else route


FEATURE = Feature(
    NoSettings,
    lambda _gateway, _settings: Parts(),
    routes=ROUTES,
    dialects=(DELTA, CONTENT, JOB, STATE, HTML),
    wrap=wrap,
)
