"""Claude Code's requests: their session, and the idempotency key that finds the turn which a repeated request means.

When a stream breaks, Claude Code discards what it has shown and sends the same POST again, without an idempotency key
(observed with 2.1.329). But it sends the id of its session, in which each question is longer than the one before. So
the same body and headers in the same session mean the same turn, unless that turn failed or was cancelled (ADR 14).
"""

import msgspec
from starlette.requests import Request

from tailrace.gateway.turns.auto_idempotency import find_usable_key
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.submit import hash_body
from tailrace.proto.ids import Tenant, is_session_name
from tailrace.proto.nats import Claims, TurnLog

# Claude Code repeats a broken request within a minute. If it does not, the user has pressed Escape, and everything that
# the model still writes would be paid for nothing.
ON_DISCONNECT = "grace:60"
# Turns of one body. Claude Code stops repeating after ten.
TURNS_MAX = 32


def session_of(request: Request) -> str | None:
    """Returns the session's name, a different one for each subagent; None for every other client."""
    session, agent = (request.headers.get(f"x-claude-code-{kind}-id") for kind in ("session", "agent"))
    # The colon separates the ids: an id with a colon could make two sessions' names equal.
    if not session or ":" in session + (agent or ""):
        return None
    name = ":".join(filter(None, ("claude-code", session, agent)))
    return name if is_session_name(name) else None


async def idempotency_key(log: TurnLog, claims: Claims, tenant: Tenant, new_turn: NewTurn, raw: bytes) -> str:
    """Returns the key of the turn that the body `raw` has started already, or of a new turn. Raises LogUnavailable.

    After TURNS_MAX turns that failed or were cancelled, it is the key of the last one: no further turn is paid for. The
    key contains a space, which no client's Idempotency-Key can.
    """
    # Requests that differ in a header only are different questions.
    headers = msgspec.json.encode((new_turn.session, new_turn.project, new_turn.betas, new_turn.api_version))
    prefix = f"claude-code {await hash_body(headers, raw)}"
    keys = [f"{prefix} {number}" for number in range(TURNS_MAX)]
    return await find_usable_key(log, claims, tenant, keys) or keys[-1]
