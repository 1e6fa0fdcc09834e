"""Advice for routes of CopilotKit's runtime that do not exist here."""

from starlette.requests import Request

from tailrace.protocols.common.absent_routes import message_for

RUNTIME = "/api/copilotkit"
ROUTES = (
    "the runtime's address is this one, and its routes are GET /api/copilotkit/info and POST "
    "/api/copilotkit/agent/{agent}/run, …/connect and …/stop/{thread}"
)
ADVICE = {f"{RUNTIME}/threads": "a thread is a session: GET /v1/sessions lists them"}


def advise(request: Request) -> str | None:
    """See Feature.advise."""
    path = request.scope["path"]
    return ROUTES if path.rstrip("/") == RUNTIME else message_for(path, ADVICE)
