"""Write probe of the log and of the bucket CLAIMS: stores a message that belongs to no turn (PROTOCOL R68).

Reads do not show whether the log accepts writes: a leader without a majority still reports its stream's state, and a
server with a full disk answers every read and stores nothing.
"""

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, TurnId, new_id
from tailrace.proto.nats.connection import LEADERLESS, Connection
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.subjects import STREAM

TIMEOUT_S = 2.0


class WriteProbe:
    """The write probe of one process, on a subject of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subject = subjects.probe(TurnId(new_id()))

    async def run(self) -> None:
        """Stores a message in the log and in CLAIMS. Raises LogUnavailable if one is neither full nor stores it."""
        if (seq := await self._store(self._subject, "the log")) is not None:
            await Leader(self._connection, STREAM).delete(seq)
        await self._store(subjects.CLAIMS_PROBE, "the bucket CLAIMS")

    async def _store(self, subject: str, where: str) -> Seq | None:
        """Returns the sequence of a new message, or None if there is no space. Raises LogUnavailable."""
        try:
            stored = await self._connection.store(subject, b"{}", timeout_s=TIMEOUT_S)
        except LogUnavailable as error:
            is_leaderless = await self._connection.lacks_leader()
            raise LogUnavailable(LEADERLESS if is_leaderless else f"{where} does not answer") from error
        if stored.error is None:
            return stored.seq
        if not stored.is_full:
            raise LogUnavailable(f"{where} stores nothing: {stored.error.description}")
        return None
