"""Whether the log takes entries just now: one is stored, and removed again. It belongs to no turn, and nobody reads it.

Nothing less would tell. A leader without a majority still says how full its stream is, and a server whose disk is full
answers every question and stores nothing.
"""

import msgspec

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import TurnId, new_id
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import STREAM

TIMEOUT_S = 2.0


class WriteProbe:
    """One process's own: it has a subject that no other has."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subject = subjects.probe(TurnId(new_id()))

    async def run(self) -> None:
        """Returns when an entry was stored, and when there is no room for one, which is an answer, too.

        Raises LogUnavailable.
        """
        reply = await self._connection.request(self._subject, b"{}", timeout_s=TIMEOUT_S)
        stored = pub_ack.decode(reply.data)
        if stored.error is None:
            query = msgspec.json.encode({"seq": stored.seq, "no_erase": True})
            await self._connection.request(f"$JS.API.STREAM.MSG.DELETE.{STREAM}", query, timeout_s=TIMEOUT_S)
        elif stored.error.err_code not in pub_ack.FULL_CODES:
            raise LogUnavailable(f"nothing is stored: {stored.error.description}")
