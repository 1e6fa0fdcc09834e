"""The questions about turns and sessions, each with its answer or the reason why there is none. It writes nothing."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from tailrace.persistence import context, paging
from tailrace.persistence.rpc import Caught, answering, fitting, paged
from tailrace.persistence.store import BRANCH_TURNS_MAX, Store
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, Tenant, TurnId
from tailrace.proto.nats.rpc import Answer
from tailrace.proto.records import (
    Ancestry,
    Context,
    GetAncestry,
    GetContext,
    GetLastTurn,
    GetSession,
    GetTurn,
    ListSessions,
    ListSessionTurns,
    SessionPage,
    SessionRecord,
    TurnPage,
    TurnRecord,
)
from tailrace.proto.subjects import TurnKey

TOO_MANY = (
    "this conversation has more than {most} turns, and no more are told at once: "
    "begin a new session, or go on from an earlier turn (`parent`)"
)


class Queries:
    """Every question names the tenant that asks. What belongs to another one is not there."""

    def __init__(self, store: Store, session_idle_s: float) -> None:
        self._store = store
        self._idle = timedelta(seconds=session_idle_s)

    def answers(self, caught_up: Caught) -> Mapping[str, Answer]:
        """By the names under which they are asked."""
        return dict(
            [
                answering(GetTurn, self.turn, caught_up),
                answering(GetSession, self.session, caught_up),
                answering(ListSessions, self.sessions, caught_up),
                answering(ListSessionTurns, self.session_turns, caught_up),
                answering(GetAncestry, self.ancestry, caught_up),
                answering(GetContext, self.context, caught_up),
                answering(GetLastTurn, self.last, caught_up),
            ]
        )

    @property
    def since(self) -> datetime:
        """What was used after it is active."""
        return datetime.now(UTC) - self._idle

    async def turn(self, tenant: Tenant, ask: GetTurn) -> TurnRecord:
        found = await self._store.turn(TurnKey(tenant, ask.turn))
        if found is None:
            raise Refused("turn_not_found", "there is no such turn")
        return found

    async def session(self, tenant: Tenant, ask: GetSession) -> SessionRecord:
        found = await self._store.session(tenant, ask.session, self.since)
        if found is None:
            raise no_session()
        return found

    async def sessions(self, tenant: Tenant, ask: ListSessions) -> SessionPage:
        limit = paging.bounded(ask.limit)
        before = paging.begin(ask.after, paging.NEWEST)
        found = await self._store.sessions(tenant, ask.project, before, limit + 1, self.since)
        return SessionPage(*paged(found, limit, lambda one: (one.updated_at, one.session)))

    async def session_turns(self, tenant: Tenant, ask: ListSessionTurns) -> TurnPage:
        limit = paging.bounded(ask.limit)
        after = paging.begin(ask.after, paging.OLDEST)
        found = await self._store.session_turns(tenant, ask.session, after, limit + 1)
        if not found:
            await self.session(tenant, GetSession(ask.session))
        return TurnPage(*paged(found, limit, lambda one: (one.asked_at, one.turn)))

    async def ancestry(self, tenant: Tenant, ask: GetAncestry) -> Ancestry:
        limit = paging.bounded(ask.limit)
        branch = await self._store.branch(TurnKey(tenant, ask.turn), limit)
        if not branch:
            raise Refused("turn_not_found", "there is no such turn")
        told = fitting(branch[: -limit - 1 : -1])
        return Ancestry(told, told[-1].parent if len(told) < len(branch) else None)

    async def last(self, tenant: Tenant, ask: GetLastTurn) -> TurnRecord:
        last = await self._store.last_turn(tenant, ask.session)
        if last is None:
            raise no_session()
        return await self.turn(tenant, GetTurn(last))

    async def context(self, tenant: Tenant, ask: GetContext) -> Context:
        if ask.parent is not None:
            return await self._after(tenant, ask.session, TurnId(ask.parent))
        if ask.session is None:
            raise Refused("request_invalid", "name a session, or the turn to go on from")
        last = await self._store.last_turn(tenant, ask.session)
        if last is not None:
            return await self._after(tenant, ask.session, last)
        found = await self._store.session(tenant, ask.session, self.since)
        if found is not None:
            return _context(found, None, [])
        if ask.begin:
            return Context(SessionId(ask.session), None, [])
        raise no_session()

    async def _after(self, tenant: Tenant, session: str | None, parent: TurnId) -> Context:
        """The context of what goes on from `parent`, which has to be of `session` if one was named."""
        branch = await self._store.branch(TurnKey(tenant, parent), BRANCH_TURNS_MAX)
        if not branch or session not in (None, branch[-1].session):
            raise Refused("parent_not_found", "there is no such turn in this session")
        if branch[-1].outcome == "running":
            raise Refused("session_busy", f"turn {parent} is still running: wait for its end, or cancel it")
        if branch[0].parent is not None and len(branch) > BRANCH_TURNS_MAX:
            raise Refused("body_too_large", TOO_MANY.format(most=BRANCH_TURNS_MAX))
        if branch[0].parent is not None:
            # A conversation without its beginning is another conversation, and nobody would notice.
            raise Refused("parent_not_found", "the beginning of this conversation is not in the database any more")
        return _context(await self.session(tenant, GetSession(branch[-1].session)), parent, branch)


def no_session() -> Refused:
    return Refused("session_not_found", "there is no such session")


def _context(session: SessionRecord, parent: TurnId | None, branch: list[TurnRecord]) -> Context:
    return Context(
        session.session,
        parent,
        context.messages(branch),
        context.ends(branch),
        session.system_prompt,
        session.model,
        session.project_id,
    )
