"""Finds the container in which the code of a response begins: that of the response that it continues.

A `container_id` names a response. Claude's own id of the container, and when it expires, are in the stored answer.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.containers import container_of
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnId, is_token
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.records import GetLastTurn, TurnRecord
from tailrace.protocols.common.read_or_none import read_or_none
from tailrace.protocols.openai.builtin_tools import turn_of_container
from tailrace.protocols.openai.responses_request import ResponseRequest, parent_of, session_of

# How many turns before the new one may have run the code.
TURNS_MAX = 8


async def find_container(body: ResponseRequest, scope: Scope, turns: TurnReader, history: HistoryClient) -> str | None:
    """Returns Claude's id of the container; None: a new one, or no code can run.

    Raises Refused if the request names a container that does not exist or has expired; LogUnavailable.
    """
    given = next((tool.get("container") for tool in body.tools or () if tool.get("type") == "code_interpreter"), None)
    if isinstance(given, str):
        return await _named(given, scope, turns)
    if given is None:
        return None
    items = [] if isinstance(body.input, str) else body.input
    used = [turn for one in items if (turn := turn_of_container(one.container_id or ""))]
    async for record in _branch(used[-1] if used else parent_of(body), session_of(body), scope, turns, history):
        if (container := container_of(record.envelope)) is not None:
            return container if is_usable(record) else None
    return None


async def _named(name: str, scope: Scope, turns: TurnReader) -> str | None:
    turn = turn_of_container(name)
    if turn is None:
        return name
    record = await _read(turn, scope, turns)
    container = None if record is None else container_of(record.envelope)
    if record is None or container is None:
        raise Refused("request_invalid", "`container`: no response has this container: send a new one, `auto`")
    if not is_usable(record):
        raise Refused("request_invalid", "`container` has expired: send a new one, `auto`")
    return container


def is_usable(record: TurnRecord) -> bool:
    """Returns whether the container of an answer has not expired."""
    match record.envelope.get("delta", {}).get("container") or record.envelope.get("message", {}).get("container"):
        case {"expires_at": str(text)}:
            try:
                expires_at = datetime.fromisoformat(text)
            except ValueError:
                return True
            return expires_at.replace(tzinfo=expires_at.tzinfo or UTC) > datetime.now(UTC)
    return True


async def _branch(
    parent: str | None, session: str | None, scope: Scope, turns: TurnReader, history: HistoryClient
) -> AsyncIterator[TurnRecord]:
    """Yields the turn `parent`, or the newest of the session, and turns before it."""
    if parent is None and session is not None:
        last = await read_or_none(history.query(scope, GetLastTurn(session)))
        parent = None if last is None else last.turn
    for _ in range(TURNS_MAX):
        record = None if parent is None else await _read(parent, scope, turns)
        if record is None:
            return
        yield record
        parent = record.parent


async def _read(turn: str, scope: Scope, turns: TurnReader) -> TurnRecord | None:
    return await read_or_none(turns.read(ScopedKey(scope, TurnId(turn)))) if is_token(turn) else None
