"""Authentication and authorization of every route that is not public."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from tailrace.gateway import metrics
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.scopes import need_of
from tailrace.gateway.http import error_responses
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.http.response_start import on_response_start
from tailrace.proto.errors import LogError, Refused, not_found
from tailrace.proto.runtime import tracing

Endpoint = Callable[[ApiRequest], Awaitable[ASGIApp]]


def guard(route: Route, endpoint: Endpoint, authenticator: Authenticator, bodies: BodyReader) -> Route:
    """Returns `route` with authentication before `endpoint`, which receives an ApiRequest.

    What the endpoint's request holds is released when it has returned its response, or failed.
    """
    needs = {method: need_of(method, route.path) for method in route.methods or ()}

    async def authenticate_and_call(request: Request) -> ASGIApp:
        began_at = time.monotonic()
        need, principal = needs[request.method], None
        if need != "public":
            principal = await authenticator.authenticate(request)
            if principal.turn is not None and request.path_params.get("turn") != principal.turn:
                raise not_found("turn")
            if need not in principal.scopes:
                raise Refused(
                    "scope_missing",
                    f"This needs a key with the scope `{need}`: tailrace keys create --tenant NAME --scope {need}",
                )
        authenticated = ApiRequest(request.scope, request.receive, principal, bodies)
        try:
            async with authenticated.until_answered:
                response = await endpoint(authenticated)
        except (Refused, LogError) as error:
            response = error_responses.render_error(error, request.scope)
        # Each is called now, when the endpoint is done: the response may begin much later.
        headers = [headers_of(route.path) for headers_of in authenticated.response_headers]
        return finish(response, request, route.path, headers, began_at)

    return Route(route.path, authenticate_and_call, methods=sorted(needs), name=route.name)


def finish(
    response: ASGIApp, request: Request, path: str, headers: Iterable[Mapping[str, str]], began_at: float
) -> ASGIApp:
    """Returns `response` with further headers. Measures the time until it begins, by the route's `path`."""

    def start(message: Message) -> None:
        for more in headers:
            MutableHeaders(scope=message).update(more)
        status = f"{message['status'] // 100}xx"
        waited_s = time.monotonic() - began_at
        metrics.REQUEST_S.labels(path, request.method, status).observe(waited_s, tracing.exemplar())

    return on_response_start(response, start)
