"""Queries persistence over NATS. The gateway has no database."""

import msgspec

from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Rpc
from tailrace.proto.records import A, GetTurn, Query, TurnRecord, answer_type
from tailrace.proto.subjects import TurnKey


class HistoryClient:
    """Each call raises Refused: with the code of what is not there, or persistence_unavailable."""

    def __init__(self, services: Rpc, timeout_s: float) -> None:
        self._services = services
        self._timeout_s = timeout_s

    async def ask(self, tenant: Tenant, question: Query[A]) -> A:
        """The answer, or Refused with what the question says it may be refused with."""
        asked = msgspec.json.encode(question)
        reply = await self._services.request(tenant, question.query, asked, timeout_s=self._timeout_s)
        return msgspec.json.decode(reply, type=answer_type(type(question)))

    async def past(self, key: TurnKey) -> TurnRecord:
        """A turn that the log does not know any more."""
        return past(await self.ask(key.tenant, GetTurn(key.turn)))


def past(told: TurnRecord) -> TurnRecord:
    """Returns a turn that has left the log; one without an end has failed, since no process can write its end."""
    return msgspec.structs.replace(told, outcome="failed", error=LOST_FAILURE) if told.outcome == "running" else told
