"""Finds the model for a request that names none: OpenAI's parameters are checked for this model."""

from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnId
from tailrace.proto.ownership import Scope
from tailrace.proto.records import GetSession, GetTurn


async def read_session_model(
    history: HistoryClient, scope: Scope, session: str | None, parent: str | None
) -> str | None:
    """Returns the model that was set for the session, or for the session of the turn `parent`.

    None if no model was set, or if the session or turn does not exist. Raises Refused if persistence does not answer.
    """
    try:
        if session is None and parent is not None:
            session = (await history.query(scope, GetTurn(TurnId(parent)))).session
        return None if session is None else (await history.query(scope, GetSession(session))).model
    except Refused as refused:
        if refused.code not in ("session_not_found", "turn_not_found"):
            raise
        return None
