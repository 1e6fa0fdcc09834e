"""Finds the place of a question: what persistence knows of its session, and what to do when that is busy."""

import msgspec

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.conversation_match import Position, after, agreed, verbatim
from tailrace.gateway.turns.request_body import NewTurn, new_messages
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import SessionId, Tenant, TurnId, new_id
from tailrace.proto.records import Context, GetContext, GetLastTurn, GetSession, GetTurn, TurnRecord
from tailrace.proto.subjects import TurnKey


async def place_of(gateway: Gateway, tenant: Tenant, ask: NewTurn) -> Position:
    """Where `ask` goes on: at its parent, or at its session's newest turn when it names none. Raises Refused.

    A parent of null is the beginning: of that session, as a new branch without history, or of a new session.
    """
    new = new_messages(ask)
    match ask.session, ask.parent:
        case None, None | msgspec.UNSET:
            return Position(session=SessionId(new_id()), new=new)
        case str(session), None:
            return after(await _beginning(gateway, tenant, session, begin=ask.create_session), new)
        case session, parent:
            named = None if parent is msgspec.UNSET else parent
            context = await _context(gateway, tenant, GetContext(session, named, ask.create_session), ask)
            if not ask.full_history:
                return after(context, new)
            return verbatim(agreed(context, new), new) if ask.verbatim else agreed(context, new)


async def _beginning(gateway: Gateway, tenant: Tenant, session: str, *, begin: bool) -> Context:
    """A branch of a session with nothing before it; nobody begins one of what is not there, or not theirs."""
    try:
        found = await gateway.history.ask(tenant, GetSession(session))
    except Refused as refused:
        if refused.code == "session_not_found" and begin:
            return Context(SessionId(session), None, [])
        raise
    return Context(found.session, None, [], system=found.system_prompt, model=found.model, project=found.project_id)


async def _context(gateway: Gateway, tenant: Tenant, question: GetContext, ask: NewTurn) -> Context:
    """The branch to go on from; when its last turn still runs, as `on_busy` has it."""
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
        # It runs in the database alone: its log is gone, and its end with it.
        raise Refused("session_busy", "the turn to go on from has no end: go on from another (`parent`)") from error


async def _running(gateway: Gateway, tenant: Tenant, question: GetContext) -> TurnRecord:
    """The turn that the question wants to go on from."""
    if question.parent is not None:
        return await gateway.history.ask(tenant, GetTurn(TurnId(question.parent)))
    assert question.session is not None  # noqa: S101  # who names neither is refused as such
    return await gateway.history.ask(tenant, GetLastTurn(question.session))
