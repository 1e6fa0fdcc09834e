"""Parked turns in the database: those that wait, the decisions about their calls, and those to start."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from tailrace.features.client_calls.records import (
    ClientCall,
    Continuation,
    DecideCall,
    DecidedTurn,
    DecidedTurns,
    Decision,
    GetContinuation,
    ListCalls,
    ListDecided,
    ListParked,
    SessionCalls,
    call_not_found,
    result_block,
)
from tailrace.features.common.client_calls import calls_of, is_of_batch
from tailrace.persistence import paging
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.paging import PageCursor
from tailrace.persistence.queries import Queries, scope_of
from tailrace.persistence.rows import micros, moment, session_record
from tailrace.persistence.rpc import QueryHandler, page_of
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import Store, Writer
from tailrace.persistence.tables import AddedRows, Tables
from tailrace.proto.entries import Request, without_turn
from tailrace.proto.errors import Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.records import GetSession, GetTurn, SessionPage, TurnRecord
from tailrace.proto.runtime.settings import NoSettings

DECIDED_MAX = 200

_decision = msgspec.json.Decoder(Decision)
_request = msgspec.json.Decoder(Request)


class CallQueries:
    """Answers the queries about calls of one tenant at a time. Each raises StoreError."""

    def __init__(self, store: Store, queries: Queries) -> None:
        self._store = store
        self._queries = queries

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [
            (ListCalls, self.calls),
            (DecideCall, self.decide),
            (GetContinuation, self.continuation),
            (ListParked, self.parked),
            (ListDecided, self.decided),
        ]

    async def calls(self, tenant: Tenant, query: ListCalls) -> SessionCalls:
        """Returns the calls for which a session waits, or all calls of one of its turns. Raises Refused."""
        turn = query.turn
        if turn is None:
            parked = await self._store.read("parked_turn", tenant=tenant, session=query.session)
            if not parked:
                await self._queries.session(tenant, GetSession(query.session))
                return SessionCalls(session=SessionId(query.session))
            turn = parked[0]["turn"]
        found = await self._queries.turn(tenant, GetTurn(TurnId(turn)))
        if found.session != query.session:
            raise call_not_found()
        decided = await self._decisions(tenant, query.session, turn)
        following = await self._store.read("follow_up", tenant=tenant, turn=turn)
        return SessionCalls(
            session=found.session,
            turn=found.turn,
            since=found.ended_at,
            calls=[_client_call(call, block, decided.get(call)) for call, block in calls_of(found).items()],
            next=following[0]["turn"] if following else None,
        )

    async def decide(self, tenant: Tenant, query: DecideCall) -> SessionCalls:
        """Stores a decision unless the call has one, and returns the calls of its turn. Raises Refused."""
        waiting = await self.calls(tenant, ListCalls(query.session))
        async with self._store.write(tenant) as writer:
            turn = await self._decide(writer, tenant, query, waiting)
        return await self.calls(tenant, ListCalls(query.session, turn))

    async def _decide(self, writer: Writer, tenant: Tenant, query: DecideCall, waiting: SessionCalls) -> str:
        """Stores a decision in a transaction; returns the turn with the call. Raises Refused."""
        of_call: dict[str, Any] = {"tenant": tenant, "session": query.session, "call": query.call, "turn": query.turn}
        decision = msgspec.json.encode(query.decision).decode()
        is_waited_for = query.turn in (None, waiting.turn) and any(one.call == query.call for one in waiting.calls)
        parked = [row for row in await writer.read("parked_turn", of_call) if row["turn"] == waiting.turn]
        # Without a parked turn it may be a repeated request, after the conversation has gone on.
        found = parked if is_waited_for and parked else await writer.read("decided_call", of_call)
        if not found or (query.user is not None and found[0]["user"] != query.user):
            raise call_not_found()
        of_call["turn"] = found[0]["turn"]
        if found is parked:
            decided = {"decision": decision, "decided_by": query.by, "decided_at": micros(datetime.now(UTC))}
            if await writer.execute("put_decision", of_call | decided):
                await writer.execute("count_decision", of_call | decided)
        stored = {row["call"]: row["decision"] for row in await writer.read("turn_decisions", of_call)}
        if stored[query.call] != decision:
            raise Refused("call_decided", f"the call {query.call[:64]} has another decision, which counts")
        return str(of_call["turn"])

    async def _decisions(self, tenant: Tenant, session: str, turn: str) -> dict[str, dict[str, Any]]:
        rows = await self._store.read("turn_decisions", tenant=tenant, session=session, turn=turn)
        return {row["call"]: row for row in rows}

    async def continuation(self, tenant: Tenant, query: GetContinuation) -> Continuation:
        """Returns the data that the next turn of a session needs.

        Raises Refused unless its turn is parked and decided.
        """
        parked = await self._store.read("parked_turn", tenant=tenant, session=query.session)
        if not parked or parked[0]["decided_at"] is None:
            raise call_not_found()
        turn = parked[0]["turn"]
        decided = await self._decisions(tenant, query.session, turn)
        calls = calls_of(await self._queries.turn(tenant, GetTurn(TurnId(turn))))
        return Continuation(
            turn=TurnId(turn),
            request=_request.decode(parked[0]["request"]),
            results=[result_block(call, _decision.decode(decided[call]["decision"])) for call in calls],
            by=[row["decided_by"] for row in decided.values()][-1],
        )

    async def parked(self, tenant: Tenant, query: ListParked) -> SessionPage:
        """Returns a page of the sessions that require action. Raises Refused for an invalid cursor."""
        limit = paging.clamp_limit(query.limit)
        before = paging.start(query.after, paging.NEWEST)
        until_at = micros(datetime.now(UTC) - timedelta(seconds=query.min_age_s))
        of_user = query.user is not None
        if not of_user:
            before = min(before, PageCursor(until_at, ""))
        rows = await self._store.read(
            "user_parked_sessions" if of_user else "parked_sessions",
            tenant=tenant,
            user=query.user,
            owner=scope_of(tenant, query).only_owner,
            until_at=until_at,
            before_at=before.at,
            before=before.name,
            limit=limit + 1,
        )
        found = [session_record(row, self._queries.since) for row in rows]
        return SessionPage(*await page_of(found, limit, lambda one: (one.updated_at, one.session)))

    async def decided(self, _: Tenant, query: ListDecided) -> DecidedTurns:
        """Returns decided turns of all tenants."""
        now = datetime.now(UTC)
        position = {"tenant": query.tenant, "session": query.session, "limit": DECIDED_MAX}
        rows = await self._store.read("decided_turns", **position)
        ages_s = [(now - moment(row["decided_at"])).total_seconds() for row in rows]
        return DecidedTurns(
            [
                DecidedTurn(row["tenant"], row["session"], row["turn"], age_s)
                for row, age_s in zip(rows, ages_s, strict=True)
            ]
        )


def _client_call(call: str, block: dict[str, Any], decided: Mapping[str, Any] | None) -> ClientCall:
    return ClientCall(
        call=call,
        name=block["name"],
        input=block["input"],
        decision=_decision.decode(decided["decision"]) if decided else None,
        decided_at=moment(decided["decided_at"]) if decided else None,
        decided_by=decided["decided_by"] if decided else None,
    )


def _rows_of(_: TurnKey, turn: Turn, record: TurnRecord) -> AddedRows:
    """Returns the row of a turn that ended with calls. A turn that continues another removes the other's row."""
    if turn.request is not None and (calls := calls_of(record)):
        kept = msgspec.json.encode(_kept(turn.request)).decode()
        return {"park_turn": {"calls_number": len(calls), "request": kept}}
    return {"unpark_older": {}} if record.parent is not None and not is_of_batch(record) else {}


def _kept(request: Request) -> Request:
    """Returns the fields of a request that the next turn has, too."""
    options = dict(request.options or {})
    choice = options.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in ("any", "tool"):
        # The model would have to call the tool again.
        del options["tool_choice"]
    # The next turn begins without a reader.
    return msgspec.structs.replace(without_turn(request), options=options or None, on_disconnect="continue")


def _start(services: Services, _: NoSettings) -> Parts:
    return Parts(CallQueries(services.store, services.queries).handlers())


TABLES = Tables(read_queries(__package__), _rows_of, delete_turn=["unpark_turn", "delete_decisions"])
FEATURE = Feature(NoSettings, _start, TABLES)
