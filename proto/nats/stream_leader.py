"""Leader: reads and deletes messages at the leader of a stream, which never lags behind its acknowledgements.

The requests are `$JS.API.STREAM.MSG.GET`, `.MSG.DELETE` and `.PURGE` (docs.nats.io, "NATS API Reference").
"""

from datetime import datetime
from typing import Any

import msgspec

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection

TIMEOUT_S = 2.0
# The server writes to the file before it answers.
ERASE_TIMEOUT_S = 10.0
# 10043: the message does not exist. 10057: its deletion failed, also because its whole block of messages is gone.
NOT_DELETED = (10043, 10057)


class StoredMessage(msgspec.Struct, frozen=True):
    """A message, and the time at which the server has stored it."""

    subject: str
    seq: Seq
    time: datetime
    data: bytes = b""


class _Reply(msgspec.Struct, frozen=True):
    message: StoredMessage | None = None
    error: pub_ack.Ack.Error | None = None


_reply = msgspec.json.Decoder(_Reply)


class Leader:
    """The leader of one stream. Every method raises LogUnavailable.

    A former leader that has just woken up may find nothing once: see `ask_twice` in replay.py.
    """

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream

    async def last(self, subject: str) -> StoredMessage | None:
        """Returns the last message on `subject`, which may have wildcards; None without any. Raises LogUnavailable."""
        return await self._get({"last_by_subj": subject})

    async def first(self, subject: str, seq: int) -> StoredMessage | None:
        """Returns the first message on `subject`, which may have wildcards, at `seq` or later; None without any.

        Raises LogUnavailable.
        """
        return await self._get({"seq": seq, "next_by_subj": subject})

    async def delete(self, seq: Seq, *, erases: bool = False) -> bool:
        """Deletes the message at `seq`. Returns False if it did not exist or could not be deleted.

        `erases`: the server also overwrites its bytes in the file. Raises LogUnavailable.
        """
        timeout_s = ERASE_TIMEOUT_S if erases else TIMEOUT_S
        error = (await self._ask("MSG.DELETE", {"seq": seq, "no_erase": not erases}, timeout_s)).error
        if error is not None and error.err_code not in NOT_DELETED:
            raise LogUnavailable(f"{self._stream} deletes nothing: {error.description}")
        return error is None

    async def purge(self, subject: str, upto: Seq | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """Removes the messages on `subject`, which may have wildcards; with `upto`, only those up to this sequence.

        Raises LogUnavailable.
        """
        query: dict[str, Any] = {"filter": subject} | ({} if upto is None else {"seq": upto + 1})
        if (error := (await self._ask("PURGE", query, timeout_s)).error) is not None:
            raise LogUnavailable(f"{self._stream} removes nothing: {error.description}")

    async def _get(self, query: dict[str, Any]) -> StoredMessage | None:
        reply = await self._ask("MSG.GET", query)
        if reply.error is not None and reply.error.err_code != pub_ack.NOT_FOUND:
            raise LogUnavailable(f"{self._stream} cannot be read: {reply.error.description}")
        return reply.message

    async def _ask(self, what: str, query: dict[str, Any], timeout_s: float = TIMEOUT_S) -> _Reply:
        subject = f"$JS.API.STREAM.{what}.{self._stream}"
        reply = await self._connection.request(subject, msgspec.json.encode(query), timeout_s=timeout_s)
        return _reply.decode(reply.data)
