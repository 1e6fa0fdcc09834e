"""Finds the position of a new turn: the branch of its session, and what to do while that is busy."""

import msgspec

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.conversation_match import Position, match_history, position_after, verbatim_position
from tailrace.gateway.turns.request_body import NewTurn, new_messages
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import SessionId, Tenant, TurnId, new_id
from tailrace.proto.records import Context, GetContext, GetLastTurn, GetSession, GetTurn, TurnRecord
from tailrace.proto.subjects import TurnKey


async def find_position(gateway: Gateway, tenant: Tenant, ask: NewTurn) -> Position:
    """Returns the position after the turn's parent, or after its session's newest turn. Raises Refused.

    A parent of null is the start: of that session, as a new branch without history, or of a new session.
    """
    new = new_messages(ask)
    match ask.session, ask.parent:
        case None, None | msgspec.UNSET:
            return Position(session=SessionId(new_id()), new=new)
        case str(session), None:
            return position_after(await _beginning(gateway, tenant, session, begin=ask.create_session), new)
        case session, parent:
            named = None if parent is msgspec.UNSET else parent
            context = await _context(gateway, tenant, GetContext(session, named, ask.create_session), ask)
            if not ask.full_history:
                return position_after(context, new)
            return verbatim_position(match_history(context, new), new) if ask.verbatim else match_history(context, new)


async def _beginning(gateway: Gateway, tenant: Tenant, session: str, *, begin: bool) -> Context:
    """Returns an empty branch of a session. Raises Refused when the session does not exist, unless it is created."""
    try:
        found = await gateway.history.ask(tenant, GetSession(session))
    except Refused as refused:
        if refused.code == "session_not_found" and begin:
            return Context(SessionId(session), None, [])
        raise
    return Context(found.session, None, [], system=found.system_prompt, model=found.model, project=found.project_id)


async def _context(gateway: Gateway, tenant: Tenant, question: GetContext, ask: NewTurn) -> Context:
    """Returns the branch to continue; while its last turn runs, applies `on_busy`."""
    while True:
        try:
            return await gateway.history.ask(tenant, question)
        except Refused as refused:
            if refused.code != "session_busy" or ask.on_busy == "reject":
                raise
            running = await _running(gateway, tenant, question)
        if ask.on_busy == "interrupt":
            await _cancel(gateway, TurnKey(tenant, running.turn))
        elif running.parent is None:
            return await _beginning(gateway, tenant, running.session, begin=False)
        else:
            question = GetContext(question.session, running.parent)


async def _cancel(gateway: Gateway, key: TurnKey) -> None:
    try:
        await cancel(gateway.log, key)
    except TurnUnknown as error:
        # The database has it as running, but its log is gone, and with it the end.
        raise Refused("session_busy", "the turn to continue from has no end: name another `parent`") from error


async def _running(gateway: Gateway, tenant: Tenant, question: GetContext) -> TurnRecord:
    """Returns the running turn that the new one would continue."""
    if question.parent is not None:
        return await gateway.history.ask(tenant, GetTurn(TurnId(question.parent)))
    assert question.session is not None  # noqa: S101  # without session and parent there is no context to query
    return await gateway.history.ask(tenant, GetLastTurn(question.session))
