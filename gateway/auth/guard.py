"""Who may: every route but the public ones is asked through here, whatever carried the credential."""

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.scopes import Need, need_of
from tailrace.gateway.dependencies import gateway_of, no_turn
from tailrace.proto.errors import Refused


def guarded(route: Route) -> Route:
    """`route`, asked only by callers who may: their Principal is then in the request's state."""
    needs = {method: need_of(method, route.path) for method in route.methods or ()}

    async def endpoint(request: Request) -> ASGIApp:
        need = needs[request.method]
        if need != "public":
            caller = await gateway_of(request).door.caller(request)
            _check(caller, need, request)
            request.state.caller = caller
        answer: ASGIApp = await route.endpoint(request)
        return answer

    return Route(route.path, endpoint, methods=sorted(needs), name=route.name)


def _check(caller: Principal, need: Need | None, request: Request) -> None:
    """Raises Refused: 404 for another turn than the caller's one, 403 for what is beyond its scopes."""
    if caller.turn is not None and request.path_params.get("turn") != caller.turn:
        raise no_turn()
    if need not in caller.scopes:
        raise Refused("scope_missing", f"this credential may not do that: it lacks the scope `{need}`")
