"""Refuses requests of Claude's Managed Agents on paths that Tailrace has for its own sessions.

`client.beta.sessions` of Anthropic's SDKs calls `/v1/sessions`, with another body and meaning. These requests are
recognised by their beta header, which the SDK always sends.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway.http import error_responses
from tailrace.gateway.http.absent_routes import NO_AGENTS

PATH = "/v1/sessions"
BETA = "managed-agents-"
MESSAGE = (
    f"`{PATH}` is Tailrace's own and not that of Claude's Managed Agents (`client.beta.sessions`): {NO_AGENTS}. "
    "Tailrace's sessions are described in /docs; send no `anthropic-beta` to them"
)


class ManagedAgentsAdvice:
    """ASGI middleware that answers such requests with 404 and advice."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PATH) and _has_beta(Headers(scope=scope)):
            await error_responses.response("route_not_found", MESSAGE)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _has_beta(headers: Headers) -> bool:
    names = ",".join(headers.getlist("anthropic-beta")).split(",")
    return any(name.strip().startswith(BETA) for name in names)
