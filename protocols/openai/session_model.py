"""Finds the model for a request that names none: OpenAI's parameters are checked for this model."""

from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.ids import TurnId
from tailrace.proto.ownership import Scope
from tailrace.proto.records import GetSession, GetTurn
from tailrace.protocols.common.read_or_none import read_or_none


async def read_session_model(
    history: HistoryClient, scope: Scope, session: str | None, parent: str | None
) -> str | None:
    """Returns the model that was set for the session, or for the session of the turn `parent`.

    None if no model was set, or if the session or turn does not exist. Raises Refused if persistence does not answer.
    """
    if session is None and parent is not None:
        turn = await read_or_none(history.query(scope, GetTurn(TurnId(parent))))
        session = None if turn is None else turn.session
    found = None if session is None else await read_or_none(history.query(scope, GetSession(session)))
    return None if found is None else found.model
