"""Advice for routes of Anthropic that do not exist here."""

from starlette.requests import Request

from tailrace.protocols.anthropic.managed_agents import MESSAGE, is_for_agents
from tailrace.protocols.common.absent_routes import NO_AGENTS, OWN_KEYS, message_for

BASE_URL = "the base URL of Anthropic's clients has no /v1: they add it"

ADVICE = {
    "/v1/complete": "the legacy completions do not exist here: use POST /v1/messages",
    "/v1/skills": "there are no skills: send their text with the message",
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
    "/v1/v1": BASE_URL,
}


def advise(request: Request) -> str | None:
    """See Feature.advise."""
    return MESSAGE if is_for_agents(request.scope) else message_for(request.scope["path"], ADVICE)
