"""Reads or cancels a turn. Its record comes from the log or, once the log has dropped it, from the database."""

from msgspec.structs import replace

from tailrace.gateway.history_client import HistoryClient, close_record
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold


class TurnReader:
    """Reads and cancels turns of all tenants."""

    def __init__(self, log: TurnLog, history: HistoryClient) -> None:
        self._log = log
        self._history = history

    async def read(self, key: ScopedKey) -> TurnRecord:
        """Returns the turn as far as it is stored. Raises Refused (`turn_not_found`) and LogUnavailable."""
        try:
            return record_from_fold(key.plain, await self._log.read_turn(key))
        except TurnUnknown:
            return await self._history.read_past_turn(key)

    def with_cursor(self, record: TurnRecord) -> TurnRecord:
        """Returns the record with the cursor as the `id:` of an event has it."""
        return replace(record, cursor=Seq(self._log.restores.offset + record.cursor))

    async def cancel(self, key: ScopedKey, by: str | None) -> TurnRecord:
        """Cancels the turn unless it has ended, and returns it. `by` is the credential of the client that requests it.

        Raises Refused (`turn_not_found`), LogError.
        """
        try:
            return record_from_fold(key.plain, await cancel(self._log, key, "request", by))
        except TurnUnknown:
            return await self.read(key)

    async def refresh(self, key: ScopedKey, record: TurnRecord) -> TurnRecord:
        """Returns a record of a list as `with_cursor` does; of a running turn, the record that the log has.

        The database only knows the request and the end of a turn.
        """
        if record.outcome == "running":
            try:
                record = record_from_fold(key.plain, await self._log.read_turn(key))
            except TurnUnknown:
                record = close_record(record)
        return self.with_cursor(record)
