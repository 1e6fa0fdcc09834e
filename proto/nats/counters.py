"""Counters of what was used, true over all processes: one atomic round trip each. What is too much others say.

A message with the header `Nats-Incr` adds to its subject's counter, and the acknowledgement says what it holds then
(ADR-49 of nats-architecture-and-design). Those of short windows are kept for hours, those of days and months for weeks.
"""

import msgspec

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection

ADD_TIMEOUT_S = 2.0
INCREMENT = "Nats-Incr"
MESSAGE_ID = "Nats-Msg-Id"


class _Added(msgspec.Struct):
    val: int | None = None
    duplicate: bool = False
    error: dict[str, object] | None = None


# The server writes a counter as a string: it may be longer than JSON's numbers.
_decode = msgspec.json.Decoder(_Added, strict=False).decode


class Counters:
    """Adds, and says what it comes to. A counter that nobody has added to is 0."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, subject: str, amount: int) -> int:
        """What the counter holds with `amount`, which may be negative. Raises LogUnavailable: then it may be added."""
        added = await self._add(subject, {INCREMENT: f"{amount:+d}"})
        if added.val is None:
            raise LogUnavailable("the counter was not told")
        return added.val

    async def add_once(self, subject: str, amount: int, name: str) -> None:
        """Adds `amount`, however often this is called with that `name` while the server remembers it.

        Raises LogUnavailable: then it may be added, and is to be called again.
        """
        await self._add(subject, {INCREMENT: f"{amount:+d}", MESSAGE_ID: f"{name}:{subject}"})

    async def _add(self, subject: str, headers: dict[str, str]) -> _Added:
        reply = await self._connection.request(subject, b"", timeout_s=ADD_TIMEOUT_S, headers=headers)
        added = _decode(reply.data)
        if added.error is not None:
            raise LogUnavailable(f"the counter does not add: {added.error.get('description')}")
        return added
