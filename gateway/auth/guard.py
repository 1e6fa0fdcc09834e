"""Authentication and authorization of every route that is not public."""

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.scopes import Need, need_of
from tailrace.gateway.dependencies import gateway_of, no_turn
from tailrace.proto.errors import Refused


def guard(route: Route) -> Route:
    """Returns `route` with authentication before its endpoint; the Principal is then in `request.state.caller`."""
    needs = {method: need_of(method, route.path) for method in route.methods or ()}

    async def endpoint(request: Request) -> ASGIApp:
        need = needs[request.method]
        if need != "public":
            principal = await gateway_of(request).door.authenticate(request)
            _authorize(principal, need, request)
            request.state.caller = principal
        answer: ASGIApp = await route.endpoint(request)
        return answer

    return Route(route.path, endpoint, methods=sorted(needs), name=route.name)


def _authorize(principal: Principal, need: Need | None, request: Request) -> None:
    """Raises Refused: 404 for another turn than the principal's only one, 403 for a missing scope."""
    if principal.turn is not None and request.path_params.get("turn") != principal.turn:
        raise no_turn()
    if need not in principal.scopes:
        raise Refused(
            "scope_missing", f"This credential lacks the scope `{need}`. Use one that has it (tailrace keys create)."
        )
