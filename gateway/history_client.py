"""Queries persistence over NATS. The gateway has no database."""

import asyncio

import msgspec

from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Rpc
from tailrace.proto.ownership import TenantView
from tailrace.proto.records import A, GetTurn, Query, TurnRecord, answer_type

# For a question that a read of the log asks: reads work without persistence.
HAS_END_S = 0.5


class HistoryClient:
    """A client of persistence. Every method raises Refused: the codes of the query, and persistence_unavailable."""

    def __init__(self, services: Rpc, timeout_s: float) -> None:
        self._services = services
        self._timeout_s = timeout_s

    async def query(self, tenant: Tenant, query: Query[A]) -> A:
        """Sends a query and returns its answer: with a user's view of the tenant, about what this user owns."""
        if isinstance(tenant, TenantView):
            query = msgspec.structs.replace(query, viewer=tenant.viewer)
        body = msgspec.json.encode(query)
        reply = await self._services.request(tenant, query.query, body, timeout_s=self._timeout_s)
        return msgspec.json.decode(reply, type=answer_type(type(query)))

    async def has_end(self, key: TurnKey) -> bool:
        """Returns whether the database has the turn's end; False also if persistence does not answer."""
        try:
            async with asyncio.timeout(HAS_END_S):
                return (await self.query(key.tenant, GetTurn(key.turn))).has_end
        except (Refused, TimeoutError):
            return False

    async def read_past_turn(self, key: TurnKey) -> TurnRecord:
        """Returns a turn that has left the log."""
        return close_record(await self.query(key.tenant, GetTurn(key.turn)))


def close_record(record: TurnRecord) -> TurnRecord:
    """Returns the record of a turn that has left the log: as failed if it has no end, since none can be appended."""
    if record.outcome != "running":
        return record
    return msgspec.structs.replace(record, outcome="failed", error=LOST_FAILURE)
