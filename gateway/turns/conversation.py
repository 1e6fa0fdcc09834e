"""Finds the position of a new turn in its session, and applies `on_busy` if the turn before it still runs."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.conversation_match import (
    Position,
    append_to_history,
    match_history,
    position_after,
    verbatim_position,
)
from tailrace.gateway.turns.request_body import AppendedTurn, NewTurn, new_messages
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import SessionId, TurnId, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.records import Context, GetContext, GetLastTurn, GetSession, GetTurn, SessionRecord, TurnRecord
from tailrace.proto.resources import CreateSession

NO_END = "the turn to continue from has no end: continue from another turn, or begin a new session"


class Conversations:
    """The sessions of all tenants, as the log and persistence have them."""

    def __init__(self, log: TurnLog, history: HistoryClient) -> None:
        self._log = log
        self._history = history

    async def find_position(
        self, scope: Scope, new_turn: NewTurn, may_interrupt: Callable[[], Awaitable[bool]], by: str | None
    ) -> Position:
        """Returns the position after the turn's parent, or after its session's newest turn. Raises Refused.

        With a parent of null, the turn has no history: it begins a branch of its session, or a new session.
        `may_interrupt` is called before `on_busy: interrupt` cancels the running turn. If it returns False, no turn is
        cancelled, and the error is session_busy. `by` is the credential that creates the new turn.
        """
        new = new_messages(new_turn)
        match new_turn.session, new_turn.parent:
            case None, None | msgspec.UNSET:
                return Position(session=SessionId(new_id()), new=new)
            case str(session), None:
                return position_after(await self._beginning(scope, session, may_create=new_turn.create_session), new)
            case session, parent:
                may_begin = new_turn.create_session and scope.is_whole_tenant
                query = GetContext(session, None if parent is msgspec.UNSET else parent, may_begin)
                context = await self._context(scope, query, new_turn, may_interrupt, by)
                if isinstance(context, TurnRecord):
                    # A generator will add the answer of the turn before (PROTOCOL R79).
                    beginning = await self._beginning(scope, context.session, may_create=False)
                    return msgspec.structs.replace(position_after(beginning, new), parent=context.turn, is_queued=True)
                if isinstance(new_turn, AppendedTurn):
                    return await asyncio.to_thread(append_to_history, context, new)
                if not new_turn.full_history:
                    return position_after(context, new)
                # In a thread: long texts are compared by their hashes.
                position = await asyncio.to_thread(match_history, context, new)
                return verbatim_position(position, new) if new_turn.verbatim else position

    async def _beginning(self, scope: Scope, session: str, *, may_create: bool) -> Context:
        """Returns an empty branch of a session. Raises Refused if it does not exist, unless `may_create`."""
        try:
            found = await self._history.query(scope, GetSession(session))
        except Refused as refused:
            if refused.code != "session_not_found" or not may_create:
                raise
            if scope.is_whole_tenant:
                return Context(SessionId(session), None, [])
            found = await self._create_own(scope, session, refused)
        return Context(
            found.session,
            None,
            [],
            system=found.system_prompt,
            model=found.model,
            project=found.project_id,
            owner=found.owner,
        )

    async def _create_own(self, scope: Scope, session: str, not_found: Refused) -> SessionRecord:
        """Creates the session of a private user. Raises `not_found` if another one has this name.

        It is created before its first turn: two users may choose one name at the same time.
        """
        try:
            return await self._history.query(scope, CreateSession(session, owner=scope.only_owner))
        except Refused as refused:
            raise (not_found if refused.code == "session_exists" else refused) from refused

    async def _context(
        self,
        scope: Scope,
        query: GetContext,
        new_turn: NewTurn,
        may_interrupt: Callable[[], Awaitable[bool]],
        by: str | None,
    ) -> Context | TurnRecord:
        """Returns the branch to continue. While its last turn runs, applies `on_busy`; `queue` returns that turn."""
        while True:
            try:
                return await self._history.query(scope, query)
            except Refused as refused:
                is_new = refused.code == "session_not_found" and new_turn.create_session
                if is_new and query.session is not None and not scope.is_whole_tenant:
                    await self._create_own(scope, query.session, refused)
                    continue
                if refused.code != "session_busy" or new_turn.on_busy == "reject":
                    raise
                newest, running = await self._find_running(scope, query)
                # After the running turn is known: its POST has claimed its key before.
                if new_turn.on_busy == "interrupt" and not await may_interrupt():
                    raise
            if new_turn.on_busy == "queue":
                return newest
            if new_turn.on_busy == "interrupt":
                try:
                    await cancel(self._log, ScopedKey(scope, running.turn), "on_busy", by)
                except TurnUnknown as error:
                    # The turn is running in the database, but its log is gone, and the end with it.
                    # No field is named: the client protocols have different ones.
                    raise Refused("session_busy", NO_END) from error
            elif running.parent is None:
                return await self._beginning(scope, running.session, may_create=False)
            else:
                query = GetContext(query.session, running.parent)

    async def _find_running(self, scope: Scope, query: GetContext) -> tuple[TurnRecord, TurnRecord]:
        """Returns the turn that the new one would continue, and the running turn of its branch.

        They differ if a queued turn was cancelled while the turn before it still runs.
        """
        if query.parent is not None:
            newest = await self._history.query(scope, GetTurn(TurnId(query.parent)))
        else:
            assert query.session is not None  # noqa: S101  # without session and parent there is no context to query
            newest = await self._history.query(scope, GetLastTurn(query.session))
        running = newest
        while running.outcome != "running" and running.parent is not None:
            running = await self._history.query(scope, GetTurn(running.parent))
        return newest, running if running.outcome == "running" else newest
