"""Where the reader of a steered turn goes on: the `end` of a steered turn names its successor (PROTOCOL R137)."""

from functools import partial
from typing import NamedTuple

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.response import EventStream
from tailrace.gateway.turns.repeats import IN_A_ROW_MAX
from tailrace.proto.entries import End, Request
from tailrace.proto.errors import CursorUnknown, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey

# The dialects whose clients know the event for it. Others go on with `goes_on`, or end with the steered turn.
DIALECTS = frozenset({"tailrace"})


class NextTurn(NamedTuple):
    """The turn in which a reader goes on, and its cursor there. BEFORE_FIRST: after the turn's request."""

    key: ScopedKey
    cursor: Seq


class Successions:
    """Finds the turn in which a reader goes on, at any gateway: only the log says it."""

    def __init__(self, log: TurnLog) -> None:
        self._log = log

    async def go_on(self, stream: EventStream, key: ScopedKey, cursor: Seq, end: End | None) -> bool:
        """See GoOn."""
        found = await self.find_next(stream.reader.principal, key, cursor, stream.dialect, end)
        if found is None:
            return False
        try:
            await stream.join(found.key, found.cursor)
        except (TurnUnknown, CursorUnknown):
            # It was deleted, or has left the log: the reader has all.
            return False
        if found.cursor == BEFORE_FIRST and not stream.dialect.goes_on:
            # The end of the turn before has announced the request.
            stream.position = max(stream.position, 1)
        return True

    async def find_next(
        self, principal: Principal, key: ScopedKey, cursor: Seq, dialect: Dialect, end: End | None = None
    ) -> NextTurn | None:
        """Returns where a reader goes on whose cursor is not within the turn, or at its end. Raises LogUnavailable.

        The cursor may be of the turn itself, of one of its successors, or of a turn that it succeeds. The `end` is that
        of the turn, if the reader has received it on this connection. A credential for one turn, such as a ticket, does
        not read the next one.
        """
        if cursor == BEFORE_FIRST or principal.turn is not None or not (dialect.goes_on or dialect.name in DIALECTS):
            return None
        if end is not None:
            return None if end.successor is None else NextTurn(ScopedKey(key.scope, end.successor), BEFORE_FIRST)
        owner = await self._log.find_turn_at(key.scope, cursor, partial(self._match, key))
        if owner is None:
            return None
        last, successor = await self._end_of(owner)
        if successor is not None and cursor == last:
            return NextTurn(successor, BEFORE_FIRST)
        return NextTurn(owner, cursor) if owner != key else None

    async def _match(self, key: ScopedKey, owner: ScopedKey, _: Request) -> ScopedKey | None:
        """Returns `owner` if it is the turn `key` itself, a successor of it, or a turn that it succeeds."""
        return owner if owner == key or await self._leads(key, owner) or await self._leads(owner, key) else None

    async def _leads(self, first: ScopedKey, last: ScopedKey) -> bool:
        """Returns whether `last` is one of the next IN_A_ROW_MAX successors of `first`."""
        for _ in range(IN_A_ROW_MAX):
            _, successor = await self._end_of(first)
            if successor is None or successor == last:
                return successor == last
            first = successor
        return False

    async def _end_of(self, key: ScopedKey) -> tuple[Seq, ScopedKey | None]:
        """Returns the sequence of the turn's last entry, and the successor that it names."""
        try:
            turn = await self._log.read_turn(key)
        except TurnUnknown:
            return BEFORE_FIRST, None
        successor = None if turn.end is None else turn.end.successor
        return turn.chain.last, None if successor is None else ScopedKey(key.scope, successor)
