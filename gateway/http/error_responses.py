"""Error responses: one JSON envelope for all client protocols, without tracebacks."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.http import refusal_events, sse
from tailrace.gateway.http.media_type import JSON
from tailrace.gateway.http.retry_later import RetryLater, is_resuming_reader
from tailrace.proto.errors import CODES, LogError, Refused

logger = structlog.get_logger()

# Errors of the router, which have only a status.
BY_STATUS = {
    404: ("route_not_found", "there is nothing here: GET / lists the routes, /docs describes them"),
    405: ("method_not_allowed", "{method} is not allowed on this route; use {allowed}."),
}
ORIGIN_CHARS_MAX = 253
RETRY_AFTER_S = 2
NO_MEMORY = "this gateway has no memory for the request: retry later"


# The SDKs of Anthropic and OpenAI repeat a request with the status 408, 409, 429 or 5xx, unless this header says no.
NO_RETRY = {"x-should-retry": "false"}


class Problem(msgspec.Struct, frozen=True):
    message: str
    """The fault, with the value, and the remedy."""
    type: str
    """The kind of error, as Anthropic's API names it."""
    code: str
    """The code of the error: `tailrace explain CODE` explains it."""
    param: str | None = None
    """The field or query parameter that is wrong, as OpenAI's API names it: `messages[0].content`."""
    details: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """Further fields of some errors, which Anthropic's SDKs read."""


class Envelope(msgspec.Struct, frozen=True):
    """The body that Anthropic's, OpenAI's and Tailrace's own clients understand."""

    error: Problem
    """The fault."""
    type: Literal["error"] = "error"
    """The type of this body in Anthropic's API."""


class ErrorResponse(Response):
    """An error in the envelope, or as the events that the request's client reads (refusal_events.py)."""

    def __init__(self, problem: Problem, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(msgspec.json.encode(Envelope(problem)), status, headers, JSON)
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (render := refusal_events.renderer_of(scope)) is not None:
            retry_after = self.headers.get("retry-after")
            problem = self._problem
            self.body = render(problem.code, problem.message, None if retry_after is None else int(retry_after))
            self.headers.update({"content-type": sse.MEDIA_TYPE, "content-length": str(len(self.body))})
        await super().__call__(scope, receive, send)


def response(
    code: str,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
    details: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    scope: Scope | None = None,
) -> Response:
    """Returns the error `code` of proto.errors.CODES, in the envelope.

    A resuming EventSource in `scope` receives a reconnection delay instead, if the code is retryable.
    """
    metrics.REFUSED.labels(code).inc()
    row = CODES[code]
    if scope is not None and row.is_retryable and is_resuming_reader(scope):
        return RetryLater(retry_after_s or RETRY_AFTER_S)
    # Errors are private to the principal, and a resource that is not found may exist a moment later.
    extra = {"cache-control": "no-store", **(headers or {})}
    if not row.is_retryable:
        extra |= NO_RETRY
    if row.status == 503 or retry_after_s is not None:
        extra["retry-after"] = str(math.ceil(retry_after_s or RETRY_AFTER_S))
    if row.status == 408:
        # The rest of the body may never come, and blocks further requests on this connection.
        extra["connection"] = "close"
    if row.status == 401:
        extra["www-authenticate"] = "Bearer"
    problem = Problem(message, row.type, code, param, details or msgspec.UNSET)
    return ErrorResponse(problem, row.status, extra)


def render_error(error: Refused | LogError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the response for `error`, with further `headers`."""
    headers = {**(headers or {}), **({} if error.may_repeat else NO_RETRY)}
    if isinstance(error, Refused):
        return response(
            error.code,
            error.message,
            param=error.param,
            retry_after_s=error.retry_after_s,
            details=error.details,
            headers=headers,
            scope=scope,
        )
    return response(error.code, str(error), headers=headers, scope=scope)


async def handle_refusal(request: Request, error: Exception) -> Response:
    """Returns the response for a Refused or LogError, with its code's status."""
    assert isinstance(error, Refused | LogError)  # noqa: S101
    return render_error(error, request.scope)


async def handle_http_error(
    request: Request, error: Exception, *, advisers: Iterable[Callable[[Request], str | None]]
) -> Response:
    """Returns the response for an error of Starlette's router, such as an unknown path; see Feature.advise."""
    assert isinstance(error, HTTPException)  # noqa: S101
    code, message = BY_STATUS.get(error.status_code, ("request_invalid", "the request cannot be answered"))
    if error.status_code in BY_STATUS and (advice := next(filter(None, (ask(request) for ask in advisers)), None)):
        return response("route_not_found", advice)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = allowed = _allowed_methods(request)
        message = _preflight_advice(request) or message.format(method=request.method, allowed=allowed)
    return response(code, message, headers=headers)


def _preflight_advice(request: Request) -> str | None:
    """Returns advice for a CORS preflight, which reaches the router if TAILRACE_ORIGINS is not set."""
    origin = request.headers.get("origin")
    if request.method != "OPTIONS" or origin is None:
        return None
    if origin == "null":
        return "A page that was opened from a file may not send requests; serve it over HTTP."
    return f'Origin "{origin[:ORIGIN_CHARS_MAX]}" is not allowed; add it to TAILRACE_ORIGINS.'


def _allowed_methods(request: Request) -> str:
    """Returns the methods of all routes with the path of `request`. Starlette lists those of the first route."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


async def handle_unexpected_error(_: Request, error: Exception) -> Response:
    """Returns the response for an error that is not handled anywhere else, see `render_unexpected_error`."""
    return render_unexpected_error(error)


def render_unexpected_error(error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """Logs the error and returns 503 for a lack of memory, otherwise 500, with further `headers`."""
    # The stack of a thread is memory, too.
    if isinstance(error, MemoryError) or str(error) == "can't start new thread":
        logger.error("no memory for a request")
        return response("server_busy", NO_MEMORY, headers=headers)
    logger.error("request failed", error=type(error).__name__, exc_info=error)
    return response("internal", "an internal error, which has been logged", headers=headers)
