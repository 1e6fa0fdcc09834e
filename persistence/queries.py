"""Read queries about turns and sessions, and the context of a follow-up turn."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any

from msgspec import UNSET

from tailrace.persistence import paging
from tailrace.persistence.paging import NEWEST, PageCursor
from tailrace.persistence.rows import micros
from tailrace.persistence.rpc import QueryHandler, fit_in_message, page_of
from tailrace.persistence.store import BRANCH_TURNS_MAX, Store, convert_turns
from tailrace.persistence.turn_list import Page, TurnPageQuery
from tailrace.proto.conversation import build_context
from tailrace.proto.errors import Refused, not_found
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.records import (
    Ancestry,
    Context,
    GetAncestry,
    GetContext,
    GetLastTurn,
    GetSession,
    GetTurn,
    ListRunning,
    ListSessions,
    ListSessionTurns,
    ListTurns,
    ListTurnsSince,
    Query,
    SessionPage,
    SessionRecord,
    TurnPage,
    TurnPositions,
    TurnRecord,
)
from tailrace.proto.resources import BranchPage, ListBranches

TOO_MANY = (
    "this conversation has more than {most} turns, which is the limit: "
    "start a new session, or continue from an earlier turn (`parent`)"
)


class Queries:
    """Runs the queries of one tenant at a time; it does not find records of other tenants.

    Each query raises StoreError.
    """

    def __init__(self, store: Store, session_idle_s: float) -> None:
        self._store = store
        self._idle = timedelta(seconds=session_idle_s)

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [
            (GetTurn, self.turn),
            (GetSession, self.session),
            (ListSessions, self.sessions),
            (ListSessionTurns, self.session_turns),
            (ListBranches, self.branches),
            (ListTurns, self.turns),
            (ListRunning, self.list_running),
            (ListTurnsSince, self.turns_since),
            (GetAncestry, self.ancestry),
            (GetContext, self.context),
            (GetLastTurn, self.last),
        ]

    @property
    def since(self) -> datetime:
        """Sessions that were used after this time are active."""
        return datetime.now(UTC) - self._idle

    async def turn(self, tenant: Tenant, query: GetTurn) -> TurnRecord:
        """Returns a turn. Raises Refused if the tenant has no such turn."""
        found = await self._store.turn(TurnKey(tenant, query.turn))
        if found is None:
            raise not_found("turn")
        return found

    async def session(self, tenant: Tenant, query: GetSession) -> SessionRecord:
        """Returns a session with its totals. Raises Refused if the tenant has no such session."""
        found = await self._store.session(tenant, query.session, self.since)
        if found is None:
            raise no_session()
        return found

    async def sessions(self, tenant: Tenant, query: ListSessions) -> SessionPage:
        """Returns a page of sessions, last used first: a numbered page, with the total, if `offset` is set.

        Raises Refused for an invalid cursor.
        """
        limit, total = paging.clamp_limit(query.limit), None
        owner = scope_of(tenant, query).only_owner
        if query.offset is not None:
            offset = paging.clamp_offset(query.offset)
            found, total = await self._store.numbered_sessions(
                tenant, query.project, offset, limit + 1, self.since, query.user, owner=owner
            )
        else:
            before = paging.start(query.after, paging.NEWEST)
            found = await self._store.sessions(
                tenant, query.project, before, limit + 1, self.since, query.user, owner=owner
            )
        return SessionPage(*await page_of(found, limit, lambda one: (one.updated_at, one.session)), total)

    async def session_turns(self, tenant: Tenant, query: ListSessionTurns) -> TurnPage:
        """Returns a page of the turns of a session.

        Raises Refused if the session does not exist, or for an invalid cursor.
        """
        limit = paging.clamp_limit(query.limit)
        after = paging.start(query.after, paging.NEWEST if query.is_newest_first else paging.OLDEST)
        found = await self._store.session_turns(
            tenant, query.session, after, limit + 1, is_newest_first=query.is_newest_first
        )
        if not found:
            await self.session(tenant, GetSession(query.session))
        return TurnPage(*await page_of(found, limit, lambda one: (one.asked_at, one.turn)))

    async def branches(self, tenant: Tenant, query: ListBranches) -> BranchPage:
        """Returns a page of branches, the newest first.

        Raises Refused if the session does not exist, or for an invalid cursor.
        """
        limit = paging.clamp_limit(query.limit)
        before = paging.start(query.after, paging.NEWEST)
        found = await self._store.leaves(tenant, query.session, before, limit + 1)
        if not found:
            await self.session(tenant, GetSession(query.session))
        # A branch may have 10,000 turns to read.
        branches = (await self._store.branch_to(tenant, leaf) for leaf in found)
        return BranchPage(*await page_of(branches, limit, lambda one: (one.asked_at, one.turn)))

    async def turns(self, tenant: Tenant, query: ListTurns) -> TurnPage:
        """Returns a page of turns, newest first or by `order`, which match all labels and the outcome.

        The page may be short or empty although more pages follow. Raises Refused for an invalid cursor, and for a
        search by text.
        """
        if query.text is not None:
            raise Refused("request_invalid", "`q`: this persistence process has no search", param="q")
        lists = self._store.turn_list
        one_page = {"first_token_s": lists.read_slowest, "-cost_usd": lists.read_costliest}
        return await self.page_of_turns(tenant, query, one_page.get(query.order, lists.read_page))

    async def page_of_turns(
        self, tenant: Tenant, query: ListTurns, read: Callable[[TurnPageQuery], Awaitable[Page]]
    ) -> TurnPage:
        """Returns the page of turns that `read` reads for a query. Raises Refused for an invalid cursor."""
        owner = scope_of(tenant, query).only_owner
        if query.blob is not None and owner is not None:
            turn = await self._store.turn_with_blob(tenant, query.blob, owner)
            return TurnPage([] if turn is None else [await self.turn(tenant, GetTurn(turn))], None)
        limit = paging.clamp_limit(query.limit)
        latest = NEWEST if query.last is None else PageCursor(micros(_midnight(query.last) + timedelta(days=1)), "")
        start = None if query.first is None else _midnight(query.first)
        before = min(paging.start(query.after, NEWEST), latest)
        labels = query.labels if owner is None else {**query.labels, "owner": owner}
        found, end = await read(TurnPageQuery(tenant, labels, start, before, limit + 1, query.outcome))
        page, following = await page_of(found, limit, lambda one: (one.asked_at, one.turn))
        return TurnPage(page, following or (end and paging.encode(end)))

    async def list_running(self, tenant: Tenant, query: ListRunning) -> TurnPage:
        """Returns a page of the running turns of the tenant or of one session, oldest first.

        Raises Refused for an invalid cursor.
        """
        limit, owner = paging.clamp_limit(query.limit), scope_of(tenant, query).only_owner
        after = paging.start(query.after, paging.OLDEST)
        found = await self._store.list_running(tenant, query.session, after, limit + 1, owner=owner)
        return TurnPage(*await page_of(found, limit, lambda one: (one.asked_at, one.turn)))

    async def turns_since(self, tenant: Tenant, query: ListTurnsSince) -> TurnPositions:
        """Returns the turns of a session that run, or whose last entry is after `query.since`, ordered by it."""
        return TurnPositions(await self._store.turns_since(tenant, query.session, query.since))

    async def ancestry(self, tenant: Tenant, query: GetAncestry) -> Ancestry:
        """Returns a turn and its ancestors, newest first, as far as they fit into a message. Raises Refused."""
        limit = paging.clamp_limit(query.limit)
        branch = await self._store.branch(TurnKey(tenant, query.turn), limit)
        if not branch:
            raise not_found("turn")
        page, older = await fit_in_message(branch[::-1], limit)
        return Ancestry(page, None if older is None else older.turn)

    async def last(self, tenant: Tenant, query: GetLastTurn) -> TurnRecord:
        """Returns the newest turn of a session. Raises Refused if the session has no turn."""
        last = await self._store.last_turn(tenant, query.session)
        if last is None:
            raise no_session()
        return await self.turn(tenant, GetTurn(last))

    async def context(self, tenant: Tenant, query: GetContext) -> Context:
        """Returns the conversation that a new turn continues: the conversation of `parent`, or of the session's
        newest turn.

        Raises Refused if the parent or the session does not exist, unless `create_session` allows a new session.
        """
        if query.parent is not None:
            return await self._read_context_after(tenant, query.session, TurnId(query.parent))
        if query.session is None:
            raise Refused("request_invalid", "`session` or `parent` is required: the conversation to continue")
        last = await self._store.last_turn(tenant, query.session)
        if last is not None:
            return await self._read_context_after(tenant, query.session, last)
        found = await self._store.session(tenant, query.session, self.since)
        if found is not None:
            return build_context(found, None, [])
        if query.create_session:
            return Context(SessionId(query.session), None, [])
        raise no_session()

    async def require_owned(self, tenant: Tenant, query: Query[Any]) -> None:
        """Raises Refused if a private user asks about what it does not own, or what only the whole tenant has.

        The refusal is that of an unknown name: no user learns which names exist. An unknown name is refused here, too:
        another user may make a thing of this name before the answer.
        """
        scope = scope_of(tenant, query)
        if scope.is_whole_tenant:
            return
        if query.owned is None:
            raise users_private()
        for field in query.owned:
            name = getattr(query, field)
            kind, refuse = OWNED[field]
            if name is not None and not await self._store.exists(scope, kind, name):
                raise refuse(query)

    async def _read_context_after(self, tenant: Tenant, session: str | None, parent: TurnId) -> Context:
        """Returns the context of a turn that continues `parent`, which must belong to `session` if it is set."""
        branch = await self._store.branch(TurnKey(tenant, parent), BRANCH_TURNS_MAX)
        if not branch or session not in (None, branch[-1].session):
            raise _no_parent(GetContext(session, parent))
        # A cancelled turn of the branch may have been queued behind a running turn.
        if running := next((one.turn for one in branch if one.outcome == "running"), None):
            raise Refused(
                "session_busy", f"turn {running} is still running: wait for its end, cancel it, or set `on_busy`"
            )
        if branch[0].parent is not None and len(branch) > BRANCH_TURNS_MAX:
            raise Refused("body_too_large", TOO_MANY.format(most=BRANCH_TURNS_MAX))
        if branch[0].parent is not None:
            # Without the beginning, it would silently be another conversation.
            raise Refused("parent_not_found", "the beginning of this conversation is no longer in the database")
        found = await self.session(tenant, GetSession(branch[-1].session))
        return await convert_turns(len(branch), partial(build_context, found, parent, branch))


def scope_of(tenant: Tenant, query: Query[Any]) -> Scope:
    """Returns the scope of a query. On the wire, a query without a viewer is about the whole tenant (PROTOCOL R146)."""
    return Scope(tenant, WHOLE if query.viewer is UNSET else query.viewer)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def no_session() -> Refused:
    """Returns the error for a session that does not exist."""
    return Refused(
        "session_not_found",
        "no session or chat has this id; a turn with `create_session`, or the first of a chat, starts one",
    )


def users_private() -> Refused:
    """Returns the refusal of a request by a private user about the whole tenant."""
    return Refused(
        "users_private",
        "the users of this tenant are private, and this is about the whole tenant: use a credential without a user, "
        "such as an API key",
    )


def _no_parent(query: Query[Any]) -> Refused:
    assert isinstance(query, GetContext)  # noqa: S101  # no other query has a parent
    where = "" if query.session is None else f" in the session {query.session[:64]}"
    return Refused("parent_not_found", f"turn {(query.parent or '')[:64]} does not exist{where}, or was deleted")


# For each field of a query in `owned`: the kind of thing that it names, and the refusal of an unknown one.
OWNED: Mapping[str, tuple[str, Callable[[Query[Any]], Refused]]] = {
    "turn": ("turn", lambda _: not_found("turn")),
    "batch": ("turn", lambda _: not_found("batch")),
    "session": ("session", lambda _: no_session()),
    "parent": ("turn", _no_parent),
}
