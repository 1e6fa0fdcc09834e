"""Maps `diagnostics.previous_message_id`, the id of an earlier answer, to the id that Claude's API gave that answer."""

from typing import Any

import msgspec

from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import TurnId, is_token
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import Scope, ScopedKey

PREFIX = "msg_"
FIELD = "diagnostics.previous_message_id"


async def map_previous_message(new_turn: NewTurn, log: TurnLog, scope: Scope) -> tuple[NewTurn, list[str]]:
    """Returns the turn with the API's own id of the answer that the client names, and the names of ignored fields.

    The field is null, and ignored, if the log has no such answer: the API then reports nothing about the prompt cache.
    Raises LogError.
    """
    match new_turn.options:
        case {"diagnostics": {"previous_message_id": str(name)} as diagnostics}:
            own = await _own_id(log, scope, name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
            changed: dict[str, Any] = {**diagnostics, "previous_message_id": own}
            options = {**(new_turn.options or {}), "diagnostics": changed}
            return msgspec.structs.replace(new_turn, options=options), [] if own else [FIELD]
        case _:
            return new_turn, []


async def _own_id(log: TurnLog, scope: Scope, turn: str) -> str | None:
    if not is_token(turn):
        return None
    try:
        found = await log.read_turn(ScopedKey(scope, TurnId(turn)))
    except TurnUnknown:
        return None
    return found.message.id if found.message is not None and found.message.id else None
