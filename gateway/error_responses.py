"""Errors as responses: one envelope, and never a traceback."""

import math
from typing import Literal

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.http.retry_later import ComeAgain, comes_back
from tailrace.proto.errors import CODES, LogError, Refused

logger = structlog.get_logger()

JSON = "application/json"

# What the router says by status alone.
BY_STATUS = {
    404: ("route_not_found", "there is nothing here: GET / lists the routes, /docs describes them"),
    405: ("method_not_allowed", "this route does not take that method: see the Allow header"),
}
RETRY_AFTER_S = 2


class Problem(msgspec.Struct, frozen=True):
    message: str
    type: str
    code: str
    param: None = None


class Envelope(msgspec.Struct, frozen=True):
    """One body for everybody: what Anthropic's clients look for, OpenAI's too, and Tailrace's own."""

    error: Problem
    type: Literal["error"] = "error"


def response(
    code: str,
    message: str,
    *,
    retry_after_s: float | None = None,
    headers: dict[str, str] | None = None,
    scope: Scope | None = None,
) -> Response:
    """The error `code` of proto.errors.CODES, in the envelope; to an EventSource in `scope` that it is soon over."""
    metrics.REFUSED.labels(code).inc()
    row = CODES[code]
    if scope is not None and row.is_retryable and comes_back(scope):
        return ComeAgain(retry_after_s or RETRY_AFTER_S)
    # What is not there may be there the next moment, and is somebody's business in either case.
    extra = {"cache-control": "no-store", **(headers or {})}
    if row.status == 503 or retry_after_s is not None:
        extra["retry-after"] = str(math.ceil(retry_after_s or RETRY_AFTER_S))
    if row.status == 408:
        # The rest of that body may never come, and nothing else can on this connection.
        extra["connection"] = "close"
    if row.status == 401:
        extra["www-authenticate"] = "Bearer"
    envelope = Envelope(Problem(message, row.type, code))
    return Response(msgspec.json.encode(envelope), row.status, extra, JSON)


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101
    turn: str | None = getattr(request.state, "turn", None)
    named = {"tailrace-turn": turn, "request-id": turn, "x-request-id": turn} if turn is not None else None
    return response(error.code, error.message, retry_after_s=error.retry_after_s, headers=named, scope=request.scope)


async def log_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LogError)  # noqa: S101
    return response(error.code, str(error), scope=request.scope)


async def http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code, message = BY_STATUS.get(error.status_code, ("request_invalid", "the request cannot be answered"))
    return response(code, message, headers=dict(error.headers or {}))


class Unbroken:
    """ASGI middleware: what breaks inside becomes a response here, so that what is outside adds its headers to it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def begin(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, begin)
        except Exception as error:
            if is_begun:
                # Too late for a status: the connection is closed, and the client sees a body cut short.
                raise
            await (await unexpected(Request(scope), error))(scope, receive, send)


async def unexpected(_: Request, error: Exception) -> Response:
    logger.error("request broke", error=type(error).__name__, exc_info=error)
    return response("internal", "something broke here; it has been logged")
