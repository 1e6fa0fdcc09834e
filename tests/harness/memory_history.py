"""Services for the submission of a turn that continues others: a history that reads a log in memory, and no blobs."""

from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any

from tailrace.gateway.turns.deleted_parent import ParentCheck
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.proto import entries
from tailrace.proto.conversation import messages
from tailrace.proto.entries import Request
from tailrace.proto.errors import Refused, not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.records import Context, GetContext, GetLastTurn, GetTurn, TurnRecord, record_from_fold


class MemoryHistory:
    """The history of one tenant as persistence would have it. It answers the queries of a submission."""

    def __init__(
        self, tenant: Tenant, turns: Callable[[], Iterable[TurnKey]], read: Callable[[TurnKey], Awaitable[Turn]]
    ) -> None:
        """`turns` returns the stored turns, oldest first. `read` returns one of them."""
        self._tenant = tenant
        self._turns = turns
        self._read = read

    async def query(self, scope: Scope, query: Any) -> Any:
        match query:
            case GetTurn(turn):
                return await self.read_past_turn(ScopedKey(scope, turn))
            case GetLastTurn(session):
                return await self._newest(session)
            case GetContext(session, parent):
                newest = await (self._newest(session) if parent is None else self._record(TurnId(parent)))
                branch = [newest]
                while (before := branch[0].parent) is not None:
                    branch.insert(0, await self._record(before))
                if any(record.outcome == "running" for record in branch):
                    raise Refused("session_busy", "it runs")
                return Context(newest.session, newest.turn, messages(branch))
            case _:
                return SimpleNamespace(
                    session=query.session, system_prompt=None, model=None, project_id=None, owner=None
                )

    async def read_past_turn(self, key: ScopedKey) -> TurnRecord:
        if key.plain not in self._turns():
            raise not_found("turn")
        return await self._record(key.turn)

    async def _record(self, turn: TurnId) -> TurnRecord:
        key = TurnKey(self._tenant, turn)
        return record_from_fold(key, await self._read(key))

    async def _newest(self, session: str | None) -> TurnRecord:
        records = [await self._record(key.turn) for key in self._turns()]
        return [record for record in records if record.session == session][-1]


class NoBlobs(RequestBlobs):
    """For conversations without long strings."""

    def __init__(self) -> None: ...

    async def store_blobs(self, own: TurnKey, entry: Request, *_: object) -> tuple[Request, int]:  # noqa: ARG002
        return entry, len(entries.encode(entry))


class NoParentCheck(ParentCheck):
    """For turns whose parents are never deleted."""

    def __init__(self) -> None: ...

    async def check_parent(self, *_: object) -> None:
        """Finds no tombstone."""
