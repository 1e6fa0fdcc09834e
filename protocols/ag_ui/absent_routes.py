"""Advice for routes of CopilotKit's runtime that do not exist here."""

from starlette.requests import Request

from tailrace.protocols.common.absent_routes import message_for

ADVICE = {
    "/api/copilotkit/threads": "a thread is a session: GET /v1/sessions lists them",
    "/api/copilotkit": "the runtime's address is this one, and its routes are GET /api/copilotkit/info and POST "
    "/api/copilotkit/agent/{agent}/run, …/connect and …/stop/{thread}",
}


def advise(request: Request) -> str | None:
    """See Feature.advise."""
    return message_for(request.scope["path"], ADVICE)
