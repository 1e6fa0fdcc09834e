"""Advice for routes of OpenAI that do not exist here."""

from starlette.requests import Request

from tailrace.protocols.common.absent_routes import NO_AGENTS, OWN_KEYS, message_for

BASE_URL = "the base URL of OpenAI's clients ends with /v1"
NO_STATE = "use POST /v1/responses with `previous_response_id` or `conversation`"

ADVICE = {
    "/v1/embeddings": "Claude has no embeddings: send these requests to a provider that has them",
    "/v1/images": "Claude makes no images: send these requests to a provider that does",
    "/v1/videos": "Claude makes no videos: send these requests to a provider that does",
    "/v1/audio": "Claude has no speech: send these requests to a provider that has it",
    "/v1/realtime": "there is no realtime API: use POST /v1/responses with `stream`",
    "/v1/moderations": "there is no moderation: ask a model with POST /v1/chat/completions",
    "/v1/completions": "the legacy completions do not exist here: use POST /v1/chat/completions",
    "/v1/chat/completions/": "a completion is a turn: GET /v1/turns/{turn} with its id without `chatcmpl-`",
    "/v1/conversations": NO_STATE,
    "/v1/assistants": NO_STATE,
    "/v1/threads": NO_STATE,
    # POST to these paths is 405 without advice: they look like the id of a response.
    "/v1/responses/input_tokens": "count tokens with POST /v1/messages/count_tokens",
    "/v1/responses/compact": "conversations are not compacted: send what the model needs",
    "/v1/uploads": "there are no uploads in parts: use POST /v1/files",
    "/v1/vector_stores": "there is no file search: send the passages that you found with the message",
    "/v1/containers": "there is no code interpreter: give the model a tool",
    "/v1/fine_tuning": "models cannot be tuned here: use a prompt template, or examples in the message",
    "/v1/evals": "there are no evaluations: run the requests as a batch with POST /v1/turn-batches",
    "/v1/chatkit": NO_AGENTS,
    "/v1/organization": OWN_KEYS,
    "/chat/completions": BASE_URL,
    "/responses": BASE_URL,
    "/models": BASE_URL,
    "/embeddings": BASE_URL,
}


def advise(request: Request) -> str | None:
    """See Feature.advise."""
    return message_for(request.scope["path"], ADVICE)
