"""A question and its answer in one exchange, as every protocol but our own has it: accepted, then told in a dialect."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from tailrace.gateway.clients.dialect import Dialect
from tailrace.gateway.dependencies import caller_of, gateway_of, refuse_when_draining, tenant_of
from tailrace.gateway.streaming.event_stream import EventStream
from tailrace.gateway.streaming.pacing import pace_of
from tailrace.gateway.turns import read_body
from tailrace.gateway.turns.json_answer import JsonAnswer
from tailrace.gateway.turns.request_body import NewTurn, check
from tailrace.gateway.turns.submit import accept, claimed_key
from tailrace.proto import entries
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.subjects import TurnKey

B = TypeVar("B", bound=msgspec.Struct)


async def asked(request: Request, kind: type[B], *, is_text_taken: bool = False) -> tuple[B, bytes]:
    """The body as a `kind`, and as it came: of somebody who may ask. Raises Refused.

    `is_text_taken`: JSON may come as `text/plain`, as fetch calls a string. A stranger's page is out by then.
    """
    # First of all who it is: a stranger's body is not even read.
    tenant_of(request)
    settings = gateway_of(request).settings
    types = read_body.JSON_OR_TEXT if is_text_taken else read_body.ONLY_JSON
    raw = await read_body.read(request, types, bytes_max=settings.body_bytes_max, timeout_s=settings.body_timeout_s)
    return read_body.decode(raw, kind), raw


async def accepted(
    request: Request, ask: NewTurn, raw: bytes, *, idempotency_key: str | None = None
) -> tuple[TurnKey, entries.Request]:
    """Puts `ask` into the log, once for each Idempotency-Key: the turn, and what it was asked. Raises Refused.

    `raw` is the body as it came: what a repeated POST has to equal. `idempotency_key` is for a client that sends none.
    """
    gateway, caller = gateway_of(request), caller_of(request)
    check(ask)
    refuse_when_draining(gateway)
    # How the caller stands is told in headers, also when it is refused.
    admission = request.state.admission = gateway.limits.admission(caller)
    return await accept(gateway, caller, ask, claimed_key(request) or idempotency_key, raw, admission)


async def answer(
    request: Request,
    ask: NewTurn,
    raw: bytes,
    dialect: Dialect,
    *,
    is_streamed: bool,
    is_first_word_awaited: bool = True,
    headers: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> ASGIApp:
    """Has `ask` accepted, and answers with the turn: its stream, or its one body. Raises Refused.

    `is_first_word_awaited`: a failure before it has an HTTP status, and is not told inside a stream.
    The response names the turn and its session, so that a stream that was cut is taken up at
    `/v1/turns/{turn}/events?dialect=…`.
    """
    gateway, pace = gateway_of(request), pace_of(request)
    is_stream = is_streamed or dialect.render_json is None
    async with gateway.streams.reserve(request) if is_stream else nullcontext():
        key, asked_for = await accepted(request, ask, raw, idempotency_key=idempotency_key)
    # An error that this turn comes to names it, too.
    request.state.turn = key.turn
    named = {**names_of(key, asked_for), **(headers or {})}
    if dialect.render_json is None or is_stream:
        return EventStream(
            gateway, key, BEFORE_FIRST, dialect, named, is_first_word_awaited=is_first_word_awaited, pace=pace
        )
    return JsonAnswer(gateway, key, dialect.render_json, named)


def names_of(key: TurnKey, asked_for: entries.Request) -> dict[str, str]:
    """The response headers that name a turn's session, its project, and the turn where clients look for it."""
    return {
        "x-session-id": asked_for.session,
        # Where the SDKs of Anthropic and OpenAI look for what to name in a bug report.
        "request-id": key.turn,
        "x-request-id": key.turn,
        # And where AI SDK's workflow transport looks for what to come back with.
        "x-workflow-run-id": key.turn,
        # The turn's own: a repeated POST may have named another one.
        **({"x-project-id": asked_for.project} if asked_for.project is not None else {}),
    }
