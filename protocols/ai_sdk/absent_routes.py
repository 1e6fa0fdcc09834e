"""Advice for routes of the AI SDK that do not exist here."""

from starlette.requests import Request

from tailrace.protocols.common.absent_routes import message_for

ADVICE = {
    # Anthropic's own SDKs add /v1.
    "/messages": "the base URL of AI SDK's provider for Anthropic ends with /v1",
    "/api/completion": "there is no route for `useCompletion`: use `useChat` with POST /api/chat",
}


def advise(request: Request) -> str | None:
    """See Feature.advise."""
    return message_for(request.scope["path"], ADVICE)
