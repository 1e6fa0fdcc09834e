"""Write probe of the log: stores a message that belongs to no turn, and deletes it (PROTOCOL R68).

Reads do not show whether the log accepts writes: a leader without a majority still reports its stream's state, and a
server with a full disk answers every read and stores nothing.
"""

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import TurnId, new_id
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.leader import Leader
from tailrace.proto.subjects import STREAM

TIMEOUT_S = 2.0


class WriteProbe:
    """The write probe of one process, on a subject of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subject = subjects.probe(TurnId(new_id()))

    async def run(self) -> None:
        """Returns if a message was stored, and also if the log is full. Raises LogUnavailable otherwise."""
        reply = await self._connection.request(self._subject, b"{}", timeout_s=TIMEOUT_S)
        stored = pub_ack.decode(reply.data)
        if stored.error is None:
            await Leader(self._connection, STREAM).delete(stored.seq)
        elif stored.error.err_code not in pub_ack.FULL_CODES:
            raise LogUnavailable(f"the log stores nothing: {stored.error.description}")
