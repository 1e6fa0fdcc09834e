"""The routes that tutorials teach, so that their pages run as they are. Behind each is a turn like any other.

Their answers are generated in the request and lost with it. These are in the log: a stream that was cut is taken up at
`/v1/turns/{turn}/events` (the header `tailrace-turn` names the turn), and every conversation is in the history.
"""

import hashlib
import re
import secrets
from base64 import urlsafe_b64encode
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.clients.native.routes import cursor_of, stream_of
from tailrace.gateway.clients.native.text import TEXT
from tailrace.gateway.clients.tutorials.content import CONTENT
from tailrace.gateway.clients.tutorials.delta import DELTA
from tailrace.gateway.clients.tutorials.job import JOB
from tailrace.gateway.dependencies import gateway_of, tenant_of, turn_named
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.respond import accepted, answer, asked
from tailrace.gateway.turns.submit import claimed_key
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, Tenant, TurnId

COOKIE = "tailrace_chat"
# As `secrets.token_urlsafe(24)` makes them. Who knows one is in that conversation, so nobody can guess one.
COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{32}")
COOKIE_AGE_S = 30 * 24 * 3600
# As many characters as 16 random bytes have in base64; a UUID has more.
FIRST_KEY_CHARS_MIN = 22


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /chat/stream`."""

    message: str
    max_tokens: int | None = None
    system: str | None = None


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /chat`."""

    message: str


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /ai/chat`."""

    messages: list[Line]
    model: str | None = None


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/start-job`: `prompt`, or `message`, which means the same."""

    prompt: str | None = None
    message: str | None = None
    model: str | None = None
    system: str | None = None
    max_tokens: int | None = None


class Started(msgspec.Struct, frozen=True):
    """A job that is in the log, and where to watch it."""

    job_id: TurnId
    session: SessionId
    stream: str
    status: Literal["queued"] = "queued"


async def chat_stream(request: Request) -> ASGIApp:
    """`POST /chat/stream`: one question, its answer in the dialect `delta`; a failure is told in the stream."""
    prompt, raw = await asked(request, Prompt)
    ask = NewTurn(message=prompt.message, max_tokens=prompt.max_tokens, system=prompt.system)
    return await answer(request, ask, raw, DELTA, is_streamed=True, is_first_word_awaited=False)


async def chat(request: Request) -> ASGIApp:
    """`POST /chat`: bare text, in the conversation that the cookie names. A cookie that is none of ours begins one.

    With an Idempotency-Key the first POST of a conversation may be repeated, too: it is given the same cookie again.
    """
    said, raw = await asked(request, Said)
    name = request.cookies.get(COOKIE, "")
    if COOKIE_VALUE.fullmatch(name) is None:
        key = claimed_key(request)
        name = secrets.token_urlsafe(24) if key is None else first_name(tenant_of(request), key, raw)
    # Sessions are listed, and their names stand in headers: none of that may tell the cookie.
    session = f"chat:{hashlib.sha256(name.encode()).hexdigest()}"
    # Two tabs have one cookie: what one of them asks ends no answer in the other.
    ask = NewTurn(message=said.message, session=session, create_session=True, on_busy="branch")
    secure = "; Secure" if request.url.scheme == "https" else ""
    cookie = f"{COOKIE}={name}; Path=/chat; Max-Age={COOKIE_AGE_S}; HttpOnly; SameSite=Lax{secure}"
    # The same words with the same Idempotency-Key are another question in another conversation.
    return await answer(request, ask, raw + name.encode(), TEXT, is_streamed=True, headers={"set-cookie": cookie})


def first_name(tenant: Tenant, key: str, raw: bytes) -> str:
    """What a conversation is called that begins with `key`: whoever lost the answer lost its cookie, too.

    So the key is as good as the cookie. Raises Refused for one that somebody else might think of as well.
    """
    if len(key) < FIRST_KEY_CHARS_MIN:
        raise Refused(
            "idempotency_key_invalid",
            "before there is a cookie, whoever knows the Idempotency-Key is in the conversation: "
            f"make it random, {FIRST_KEY_CHARS_MIN} characters or more, as a UUID is",
        )
    digest = hashlib.sha256(f"{COOKIE}\0{tenant}\0{key}\0".encode() + raw).digest()
    return urlsafe_b64encode(digest[:24]).decode()


async def ai_chat(request: Request) -> ASGIApp:
    """`POST /ai/chat`: a conversation told from its beginning, its answer in the dialect `content`."""
    told, raw = await asked(request, Conversation)
    ask = msgspec.structs.replace(spoken(told.messages), model=told.model)
    return await answer(request, ask, raw, CONTENT, is_streamed=True)


async def start_job(request: Request) -> Response:
    """`POST /api/start-job`: 202 with the job's id, which is the turn's."""
    job, raw = await asked(request, Job)
    if (job.prompt is None) == (job.message is None):
        raise Refused("request_invalid", "send `prompt`, a string")
    ask = NewTurn(
        message=job.prompt or job.message or "", model=job.model, system=job.system, max_tokens=job.max_tokens
    )
    key, asked_for = await accepted(request, ask, raw)
    stream = f"/api/stream/{key.turn}"
    started = Started(job_id=key.turn, session=asked_for.session, stream=stream)
    return json_response(started, status=202, headers={"location": stream, "tailrace-turn": key.turn})


async def job_stream(request: Request) -> ASGIApp:
    """`GET /api/stream/{job_id}`: the job in the dialect `job`, from its beginning or from a cursor on."""
    return stream_of(gateway_of(request), turn_named(request, "job_id"), cursor_of(request), JOB, request.method)


def spoken(lines: list[Line]) -> NewTurn:
    """A conversation in OpenAI's words: what its system says goes before it."""
    system = "\n\n".join(line.content for line in lines if line.role == "system")
    messages = [Message(line.role, line.content) for line in lines if line.role != "system"]
    return NewTurn(messages=messages, system=system or None)


ROUTES = [
    Route("/chat/stream", chat_stream, methods=["POST"]),
    Route("/chat", chat, methods=["POST"]),
    Route("/ai/chat", ai_chat, methods=["POST"]),
    Route("/api/start-job", start_job, methods=["POST"]),
    Route("/api/stream/{job_id}", job_stream, methods=["GET"]),
]
