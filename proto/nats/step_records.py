"""The records of what running turns have reserved beyond the `holds` of their requests, in the bucket CLAIMS (R149)."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from tailrace.proto import subjects
from tailrace.proto.entries import Reservation
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import Bucket


class StepRecord(NamedTuple):
    """The sum of a turn's steps, for each counter, and the revision of the record; 0: there is none."""

    steps: Sequence[Reservation] = ()
    revision: int = 0


_decode = msgspec.json.Decoder(list[Reservation]).decode


class StepRecords:
    """The records of all turns. A record is kept as long as the log keeps the turn."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, subjects.CLAIMS, "the reservation of a running turn")

    async def read(self, key: TurnKey) -> StepRecord:
        """Returns the record of a turn. Raises LogUnavailable."""
        found = await self._bucket.get(subjects.step_record(key))
        return StepRecord() if found is None else StepRecord(_decode(found.data), found.revision)

    async def write(self, key: TurnKey, record: StepRecord) -> int | None:
        """Replaces the record at its revision; returns the new revision, or None if another process has replaced it.

        Raises LogUnavailable: it may have been replaced.
        """
        return await self._bucket.update(subjects.step_record(key), msgspec.json.encode(record.steps), record.revision)
