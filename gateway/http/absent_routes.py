"""Advice for routes of OpenAI, Anthropic and AI SDK that do not exist here, for the message of their 404. Pure."""

OPENAI_BASE = "the base URL of OpenAI's clients ends with /v1"
ANTHROPIC_BASE = "the base URL of Anthropic's clients has no /v1: they add it"
NO_STATE = "use POST /v1/responses with `previous_response_id` or `conversation`"
NO_AGENTS = "there are no hosted agents: run the agent in your own program, with POST /v1/messages or /v1/responses"
OWN_KEYS = "the keys and their usage are Tailrace's own: see GET /v1/usage"

# A path that ends with a slash is a route without the slash.
ADVICE = {
    "/v1/embeddings": "Claude has no embeddings: send these requests to a provider that has them",
    "/v1/images": "Claude makes no images: send these requests to a provider that does",
    "/v1/videos": "Claude makes no videos: send these requests to a provider that does",
    "/v1/audio": "Claude has no speech: send these requests to a provider that has it",
    "/v1/realtime": "there is no realtime API: use POST /v1/responses with `stream`",
    "/v1/moderations": "there is no moderation: ask a model with POST /v1/chat/completions",
    "/v1/completions": "the legacy completions do not exist here: use POST /v1/chat/completions",
    "/v1/complete": "the legacy completions do not exist here: use POST /v1/messages",
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
    "/v1/skills": "there are no skills: send their text with the message",
    "/v1/fine_tuning": "models cannot be tuned here: use a prompt template, or examples in the message",
    "/v1/evals": "there are no evaluations: run the requests as a batch with POST /v1/turn-batches",
    "/v1/agents": NO_AGENTS,
    "/v1/chatkit": NO_AGENTS,
    "/v1/deployment_runs": NO_AGENTS,
    "/v1/deployments": NO_AGENTS,
    "/v1/dreams": NO_AGENTS,
    "/v1/environments": NO_AGENTS,
    "/v1/memory_stores": NO_AGENTS,
    "/v1/tunnels": "there are no tunnels: run the MCP server where the model's API reaches it (`mcp_servers`)",
    "/v1/vaults": NO_AGENTS,
    "/v1/compliance": OWN_KEYS,
    "/v1/user_profiles": "the server's own account pays for each call: name the end user in `metadata.user_id`",
    "/v1/organization": OWN_KEYS,
    "/v1/organizations": OWN_KEYS,
    "/chat/completions": OPENAI_BASE,
    "/responses": OPENAI_BASE,
    "/models": OPENAI_BASE,
    "/embeddings": OPENAI_BASE,
    # Anthropic's own SDKs add /v1.
    "/messages": "the base URL of AI SDK's provider for Anthropic ends with /v1",
    "/api/completion": "there is no route for `useCompletion`: use `useChat` with POST /api/chat",
    "/v1/v1": ANTHROPIC_BASE,
}


def advice_for(path: str) -> str | None:
    """Returns the advice for a path that has no route, or None."""
    # Do not look up each parent: a path of 60,000 slashes has 60,000, and each is a copy.
    return next((ADVICE[key] for key in ADVICE if path == key or path.startswith(f"{key.removesuffix('/')}/")), None)
