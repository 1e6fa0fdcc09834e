"""Claude Code: which conversation its question is of, and which turn it means when it asks again. It calls no model.

When its stream breaks it throws away what it has shown and sends the very same POST once more, with no key that says so
(tried with 2.1.329). But it names its session, and what a session asks grows with every question. So the same body with
the same headers in the same session means the same turn, unless that turn came to nothing (ADR 14).
"""

import hashlib

import msgspec
from starlette.requests import Request

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import Tenant, is_session_name
from tailrace.proto.subjects import TurnKey

# It asks again within a minute, or never: then somebody has pressed Escape, and every further word is paid in vain.
ON_DISCONNECT = "grace:60"
# Of one body. It gives up by itself after ten.
TURNS_MAX = 32


def session_of(request: Request) -> str | None:
    """The name of the conversation; None for every other client. Each subagent of a session has one of its own."""
    session, agent = (request.headers.get(f"x-claude-code-{whose}-id") for whose in ("session", "agent"))
    # The colon is ours: with one of theirs, two conversations could have one name.
    if not session or ":" in session + (agent or ""):
        return None
    name = ":".join(filter(None, ("claude-code", session, agent)))
    return name if is_session_name(name) else None


async def key_of(gateway: Gateway, tenant: Tenant, ask: NewTurn, raw: bytes) -> str:
    """The idempotency key of `ask`, which came as `raw`: that of the turn which it means, or else of a new one.

    No client can send such a key itself: it has a space. Raises LogUnavailable.
    """
    # What is in the headers and not in the body makes another question, too.
    beside = msgspec.json.encode((ask.session, ask.project, ask.betas, ask.api_version))
    question = f"claude-code {hashlib.sha256(beside + raw).hexdigest()}"
    for number in range(TURNS_MAX):
        claim = await gateway.claims.find(tenant, key := f"{question} {number}")
        if claim is None or not await _came_to_nothing(gateway, TurnKey(tenant, claim.turn)):
            break
    return key


async def _came_to_nothing(gateway: Gateway, key: TurnKey) -> bool:
    try:
        turn = await gateway.log.turn(key)
    except TurnUnknown:
        # Whoever claimed it died before asking: then it is asked now.
        return False
    return turn.outcome in ("failed", "cancelled")
