"""Claude Code's requests: their session, and the idempotency key by which a repeated request finds its turn.

When a stream breaks, Claude Code discards what it has shown and sends the same POST again, without an idempotency key
(observed with 2.1.329). But it sends the id of its session, in which each question is longer than the one before. So
the same body and headers in the same session mean the same turn, unless that turn failed or lost its readers (ADR 14).

After two streams that ended cleanly without their last event, or after an error event, Claude Code requests one JSON
answer, with `max_tokens` of at most 64,000, and a thinking budget below that (observed with 2.1.332). That request
means the same turn, too: if a client has stopped that turn, it is refused, and Claude Code stops.
"""

import msgspec
from starlette.requests import Request

from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.turns.request_body import NewTurn, check_turn
from tailrace.proto import long_strings
from tailrace.proto.ids import is_session_name
from tailrace.proto.nats import Claims, TurnLog
from tailrace.proto.ownership import Scope, owned_key
from tailrace.protocols.common.usable_key import find_usable_key

# Claude Code repeats a broken request within a minute. If it does not, the user has pressed Escape, and everything that
# the model still writes would be paid for nothing.
ON_DISCONNECT = "grace:60"
# The maximum of Claude Code for a request without `stream`.
MAX_TOKENS_OF_JSON = 64_000
# Turns of one body at most. Claude Code stops repeating after ten.
TURNS_MAX = 32


def session_of(request: Request) -> str | None:
    """Returns the session's name, different for each subagent; None for every other client."""
    session, agent = (request.headers.get(f"x-claude-code-{kind}-id") for kind in ("session", "agent"))
    # The colon separates the ids: an id with a colon could make two sessions' names equal.
    if not session or ":" in session + (agent or ""):
        return None
    name = ":".join(filter(None, ("claude-code", session, agent)))
    return name if is_session_name(name) else None


async def idempotency_key(
    log: TurnLog, claims: Claims, scope: Scope, new_turn: NewTurn, body_bytes: int
) -> tuple[str, bytes]:
    """Returns the key of the turn that the same request has started already, or of a new turn; and the request as
    canonical bytes, which a repeated request has, too. Raises LogUnavailable, Refused (also if the turn was stopped).

    After TURNS_MAX turns that failed or lost their readers, it is the key of the last turn: no more turns are paid.
    The key contains a space, which no client's Idempotency-Key can.
    """
    # Only a checked turn can be encoded: it is not nested too deep.
    await convert_body(body_bytes, check_turn, new_turn)
    # These bytes include the session and headers of the question, not `stream`.
    canonical = b"".join(await long_strings.encode(_without_stream(new_turn), is_sorted=True))
    prefix = f"claude-code {await hash_body(canonical)}"
    # By the key in the claim, of which the gateway makes it again for a private user.
    keys = {owned_key(scope, key): key for key in (f"{prefix} {number}" for number in range(TURNS_MAX))}
    found = await find_usable_key(log, claims, scope, keys)
    return keys.get(found or "", f"{prefix} {TURNS_MAX - 1}"), canonical


def _without_stream(new_turn: NewTurn) -> NewTurn:
    """Returns the turn with the `max_tokens` and the thinking budget of Claude Code's request without `stream`."""
    if new_turn.max_tokens is None or new_turn.max_tokens <= MAX_TOKENS_OF_JSON:
        return new_turn
    options = dict(new_turn.options or {})
    thinking = options.get("thinking")
    if isinstance(thinking, dict) and isinstance(budget := thinking.get("budget_tokens"), int):
        options["thinking"] = {**thinking, "budget_tokens": min(budget, MAX_TOKENS_OF_JSON - 1)}
    return msgspec.structs.replace(new_turn, max_tokens=MAX_TOKENS_OF_JSON, options=options or None)
