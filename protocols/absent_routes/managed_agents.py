"""Refuses requests of Claude's Managed Agents on paths that Tailrace has for its own sessions.

`client.beta.sessions` of Anthropic's SDKs calls `/v1/sessions`, with another body and meaning. These requests are
recognised by their beta header, which the SDK always sends.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway.http import error_responses
from tailrace.gateway.http.route import Route

NO_AGENTS = "there are no hosted agents: run the agent in your own program, with POST /v1/messages or /v1/responses"
PATH = "/v1/sessions"
BETA = "managed-agents-"
MESSAGE = (
    f"`{PATH}` is Tailrace's own and not that of Claude's Managed Agents (`client.beta.sessions`): {NO_AGENTS}. "
    "Tailrace's sessions are described in /docs; send no `anthropic-beta` to them"
)


class ManagedAgentsAdvice:
    """The ASGI application of a route that answers such requests with 404 and advice, without authentication."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_for_agents(scope):
            await error_responses.response("route_not_found", MESSAGE)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_for_agents(scope: Scope) -> bool:
    """Returns whether a request is one of Managed Agents on a path of sessions."""
    names = ",".join(Headers(scope=scope).getlist("anthropic-beta")).split(",")
    return scope["path"].startswith(PATH) and any(name.strip().startswith(BETA) for name in names)


def shield(route: Route, app: ASGIApp) -> ASGIApp:
    """See Feature.shield."""
    return ManagedAgentsAdvice(app) if route.path.startswith(PATH) else app
