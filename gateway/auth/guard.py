"""Authentication and authorization of every route that is not public."""

import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.scopes import need_of
from tailrace.gateway.http import error_responses
from tailrace.gateway.http.read_body import BodyReader
from tailrace.proto.errors import LogError, Refused, not_found
from tailrace.proto.runtime import tracing

Endpoint = Callable[[ApiRequest], Awaitable[ASGIApp]]


def guard(route: Route, endpoint: Endpoint, authenticator: Authenticator, bodies: BodyReader) -> Route:
    """Returns `route` with authentication before `endpoint`, which receives an ApiRequest.

    What the endpoint's request holds is released when it has returned its response, or failed.
    """
    needs = {method: need_of(method, route.path) for method in route.methods or ()}

    async def guarded(request: Request) -> ASGIApp:
        began_at = time.monotonic()
        need, principal = needs[request.method], None
        if need != "public":
            principal = await authenticator.authenticate(request)
            if principal.turn is not None and request.path_params.get("turn") != principal.turn:
                raise not_found("turn")
            if need not in principal.scopes:
                raise Refused(
                    "scope_missing",
                    f"This credential lacks the scope `{need}`. Use one that has it (tailrace keys create).",
                )
        authenticated = ApiRequest(request.scope, request.receive, principal, bodies)
        try:
            async with authenticated.until_answered:
                response = await endpoint(authenticated)
        except (Refused, LogError) as error:
            response = error_responses.of(error, request.scope)
        for headers in authenticated.response_headers:
            response = add_headers(response, headers(route.path))
        return observe_begin(response, route.path, began_at)

    return Route(route.path, guarded, methods=sorted(needs), name=route.name)


def observe_begin(response: ASGIApp, path: str, began_at: float) -> ASGIApp:
    """Returns `response`, whose time until it begins is observed. `path` is that of the route, with its parameters."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = f"{message['status'] // 100}xx"
                waited_s = time.monotonic() - began_at
                metrics.REQUEST_S.labels(path, scope["method"], status).observe(waited_s, tracing.exemplar())
            await send(message)

        await response(scope, receive, send_observed)

    return respond


def add_headers(response: ASGIApp, headers: Mapping[str, str]) -> ASGIApp:
    """Returns `response` with further headers."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await response(scope, receive, send_with_headers)

    return respond
