"""Authentication and authorization of every route that is not public."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway import error_responses
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.scopes import Need, need_of
from tailrace.gateway.dependencies import ApiRequest
from tailrace.gateway.streaming.response import StreamedResponse
from tailrace.proto.errors import LogError, Refused, not_found


def guard(route: Route) -> Route:
    """Returns `route` with authentication before its endpoint, which receives an ApiRequest.

    What the endpoint's request holds is released when it has returned its response, or failed.
    """
    needs = {method: need_of(method, route.path) for method in route.methods or ()}

    async def endpoint(request: Request) -> ASGIApp:
        need, principal = needs[request.method], None
        if need != "public":
            principal = await request.app.state.gateway.authenticator.authenticate(request)
            _authorize(principal, need, request)
        authenticated = ApiRequest(request.scope, request.receive, principal)
        response: ASGIApp
        try:
            async with authenticated.until_answered:
                response = await route.endpoint(authenticated)
        except (Refused, LogError) as error:
            response = error_responses.of(error, request.scope)
        for headers in authenticated.response_headers:
            add_headers(response, headers(route.path))
        return response

    return Route(route.path, endpoint, methods=sorted(needs), name=route.name)


def add_headers(response: ASGIApp, headers: Mapping[str, str]) -> None:
    if isinstance(response, StreamedResponse):
        response.add_headers(headers)
    elif isinstance(response, Response):
        response.headers.update(headers)


def _authorize(principal: Principal, need: Need | None, request: Request) -> None:
    """Raises Refused: 404 for another turn than the principal's only one, 403 for a missing scope."""
    if principal.turn is not None and request.path_params.get("turn") != principal.turn:
        raise not_found("turn")
    if need not in principal.scopes:
        raise Refused(
            "scope_missing", f"This credential lacks the scope `{need}`. Use one that has it (tailrace keys create)."
        )
