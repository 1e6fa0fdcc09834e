"""Distributed counters of usage in JetStream: one atomic round trip per increment.

A message with the header `Nats-Incr` adds to the counter of its subject, and the acknowledgement has the new value
(ADR-49 of nats-architecture-and-design). Counters of short windows are kept for hours, of days and months for weeks.
"""

from datetime import datetime
from typing import NamedTuple

import msgspec

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.subjects import BUDGETS, EVERY_BUDGET, LIMITS

ADD_TIMEOUT_S = 2.0
# A gateway appends a request this long after its first reservation at the latest, or never.
RESERVED_WITHIN_S = 45.0
INCREMENT = "Nats-Incr"
MESSAGE_ID = "Nats-Msg-Id"
# The time until which a counter has what it counts.
UPTO = "Tailrace-Upto"


class Increment(NamedTuple):
    """An increment that the server has stored: the new value of the counter, and the sequence of the message."""

    value: int
    seq: Seq


class Once(NamedTuple):
    """The increment that has a name: its sequence, and whether this call has made it."""

    seq: Seq
    is_new: bool


class _AddResponse(msgspec.Struct):
    val: int | None = None
    seq: Seq = BEFORE_FIRST
    duplicate: bool = False
    error: pub_ack.Ack.Error | None = None


# The server sends the value as a string, because it may exceed JSON's numbers.
_decode = msgspec.json.Decoder(_AddResponse, strict=False).decode


class Counters:
    """All counters. A counter starts at 0."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, subject: str, amount: int) -> int:
        """Adds `amount`, which may be negative; returns the new value. LogUnavailable: it may have been added."""
        return (await self.increment(subject, amount)).value

    async def increment(self, subject: str, amount: int) -> Increment:
        """Like `add`, also with the sequence of the increment."""
        added = await self._add(subject, {INCREMENT: f"{amount:+d}"})
        if added.val is None:
            raise LogUnavailable("the counter's value is missing in the server's reply")
        return Increment(added.val, added.seq)

    async def read(self, subject: str) -> int:
        """Returns the value of a counter, from the leader of its stream. Raises LogUnavailable."""
        stream = BUDGETS if subject.startswith(f"{EVERY_BUDGET[:-1]}") else LIMITS
        message = await Leader(self._connection, stream).last(subject)
        return 0 if message is None else _decode(message.data).val or 0

    async def add_once(self, subject: str, amount: int, name: str, upto: datetime | None = None) -> Once:
        """Adds `amount` once for each `name`, however often it is called within the deduplication window.

        `upto` is stored with it. After LogUnavailable the amount may have been added: call it again.
        """
        headers = {INCREMENT: f"{amount:+d}", MESSAGE_ID: f"{name}:{subject}"}
        added = await self._add(subject, headers if upto is None else {**headers, UPTO: upto.isoformat()})
        return Once(added.seq, not added.duplicate)

    async def _add(self, subject: str, headers: dict[str, str]) -> _AddResponse:
        reply = await self._connection.request(subject, b"", timeout_s=ADD_TIMEOUT_S, headers=headers)
        added = _decode(reply.data)
        if added.error is not None:
            raise LogUnavailable(f"the counter cannot be incremented: {added.error.description}")
        return added
