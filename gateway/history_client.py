"""Queries persistence over NATS. The gateway has no database."""

import asyncio

import msgspec

from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Rpc
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.proto.records import A, GetTurn, Query, TurnRecord, answer_type

# For a question that a read of the log asks: reads work without persistence.
HAS_END_S = 0.5


class HistoryClient:
    """A client of persistence. Every method raises Refused: the codes of the query, and persistence_unavailable."""

    def __init__(self, services: Rpc, timeout_s: float) -> None:
        self._services = services
        self._timeout_s = timeout_s

    async def query(self, scope: Scope, query: Query[A]) -> A:
        """Sends a query and returns its answer, which has only things that the scope shows."""
        if scope.viewer is not WHOLE:
            query = msgspec.structs.replace(query, viewer=scope.viewer)
        body = msgspec.json.encode(query)
        reply = await self._services.request(scope.tenant, query.query, body, timeout_s=self._timeout_s)
        return msgspec.json.decode(reply, type=answer_type(type(query)))

    async def has_end(self, key: TurnKey) -> bool:
        """Returns whether the database has the turn's end; False also if persistence does not answer."""
        try:
            async with asyncio.timeout(HAS_END_S):
                return (await self.query(Scope(key.tenant, WHOLE), GetTurn(key.turn))).has_end
        except (Refused, TimeoutError):
            return False

    async def read_past_turn(self, key: ScopedKey) -> TurnRecord:
        """Returns a turn that has left the log."""
        return close_record(await self.query(key.scope, GetTurn(key.turn)))


def close_record(record: TurnRecord) -> TurnRecord:
    """Returns the record of a turn that has left the log: as failed if it has no end, since none can be appended."""
    if record.outcome != "running":
        return record
    return msgspec.structs.replace(record, outcome="failed", error=LOST_FAILURE)
