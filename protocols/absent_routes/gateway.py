"""Advice for routes of other APIs that do not exist here, in the message of their 404."""

from starlette.requests import Request

from tailrace.gateway.feature import Feature, Parts
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.absent_routes.managed_agents import MESSAGE, NO_AGENTS, is_for_agents, shield

OWN_KEYS = "the keys and their usage are Tailrace's own: see GET /v1/usage"
NO_STATE = "use POST /v1/responses with `previous_response_id` or `conversation`"
REALTIME = "there is no realtime API: use POST /v1/responses with `stream`"
ONLY_OPENAI = "it belongs to an account at OpenAI: send these requests to OpenAI"
OPENAI_URL = "the base URL of OpenAI's clients ends with /v1"
WEBHOOKS = "a turn names its own `webhook` in POST /v1/turns"

# The text for a path and all below it; for a path that ends with a slash, only for those below it.
ADVICE = {
    # Anthropic
    "/v1/complete": "use POST /v1/messages",
    "/v1/skills": "skills cannot be uploaded here: send their text with the message",
    "/v1/agents": NO_AGENTS,
    "/v1/deployment_runs": NO_AGENTS,
    "/v1/deployments": NO_AGENTS,
    "/v1/dreams": NO_AGENTS,
    "/v1/environments": NO_AGENTS,
    "/v1/memory_stores": NO_AGENTS,
    "/v1/tunnels": "there are no tunnels: run the MCP server where the model's API reaches it (`mcp_servers`)",
    "/v1/vaults": NO_AGENTS,
    "/v1/compliance": OWN_KEYS,
    "/v1/user_profiles": "the server's own account pays for each call: name the end user in `metadata.user_id`",
    "/v1/organizations": OWN_KEYS,
    "/v1/v1": "the base URL of Anthropic's clients has no /v1: they add it",
    # OpenAI; its Agents API is at /v1/agents, too.
    "/v1/embeddings": "Claude has no embeddings: send these requests to a provider that has them",
    "/v1/images": "Claude makes no images: send these requests to a provider that does",
    "/v1/videos": "Claude makes no videos: send these requests to a provider that does",
    "/v1/audio": "Claude has no speech: send these requests to a provider that has it",
    "/v1/live": REALTIME,
    "/v1/realtime": REALTIME,
    "/v1/moderations": "there is no moderation: ask a model with POST /v1/chat/completions",
    "/v1/decisions": "ask a model with POST /v1/chat/completions for JSON (`response_format`)",
    "/v1/completions": "use POST /v1/chat/completions",
    "/v1/chat/completions/": "a completion is a turn: GET /v1/turns/{turn} with its id without `chatcmpl-`",
    "/v1/conversations": NO_STATE,
    "/v1/assistants": NO_STATE,
    "/v1/threads": NO_STATE,
    # POST to these paths is 405 without advice: they look like the id of a response.
    "/v1/responses/input_tokens": "count tokens with POST /v1/messages/count_tokens",
    "/v1/responses/compact": "send what the model needs, or `context_management` with POST /v1/messages",
    "/v1/uploads": "uploads have one part here: use POST /v1/files",
    "/v1/vector_stores": "there is no file search: send the passages that you found with the message",
    "/v1/containers": "POST /v1/responses makes them: give it the tool `code_interpreter`, whose container is `auto`",
    "/v1/fine_tuning": "models cannot be tuned here: use a prompt template, or examples in the message",
    "/v1/evals": "there are no evaluations: run the requests as a batch with POST /v1/turn-batches",
    "/v1/chatkit": NO_AGENTS,
    "/v1/organization": OWN_KEYS,
    "/v1/content_provenance_checks": ONLY_OPENAI,
    "/v1/safety": ONLY_OPENAI,
    "/v1/webhook_endpoints": WEBHOOKS,
    "/v1/webhook_event_types": WEBHOOKS,
    # Codex, with `web_search = "live"`
    "/v1/alpha": "the model searches with the tool `web_search` of POST /v1/responses: disable Codex's feature "
    "`standalone_web_search`",
    "/chat/completions": OPENAI_URL,
    "/responses": OPENAI_URL,
    "/models": OPENAI_URL,
    "/embeddings": OPENAI_URL,
    # AI SDK. Anthropic's own SDKs add /v1.
    "/messages": "the base URL of AI SDK's provider for Anthropic ends with /v1",
    "/api/completion": "there is no route for `useCompletion`: use `useChat` with POST /api/chat",
    # CopilotKit's runtime
    "/api/copilotkit/threads": "a thread is a session: GET /v1/sessions lists them",
}
# The same for a path, and none below it: the address of CopilotKit's runtime.
RUNTIME = {
    "/api/copilotkit": "the runtime's address is this one, and its routes are GET /api/copilotkit/info and POST "
    "/api/copilotkit/agent/{agent}/run, …/connect and …/stop/{thread}"
}


def advise(request: Request) -> str | None:
    """Returns the message for a request without a route, with the advice for its path or the nearest parent, or None.

    See Feature.advise.
    """
    if is_for_agents(request.scope):
        return MESSAGE
    path = request.scope["path"]
    # Do not look up each parent: a path of 60,000 slashes has 60,000, and each is a copy.
    found = (text for key, text in ADVICE.items() if path == key or path.startswith(f"{key.removesuffix('/')}/"))
    text = RUNTIME.get(path.rstrip("/")) or next(found, None)
    return text and f"this route does not exist here: {text}"


FEATURE = Feature(NoSettings, lambda _, __: Parts(), advise=advise, shield=shield)
