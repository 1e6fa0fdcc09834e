"""The type of the service that puts a message into an answer that runs, for the routes of all features."""

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from tailrace.gateway.turns.draft import Stored, TurnDraft
from tailrace.proto.ids import TurnId, TurnKey

At = Literal["now", "boundary"]
# The most turns in a row of which each waits for the one before it, if the newest one is a steer. A generator reads all
# of them for the conversation (PROTOCOL R79), and a gateway for a cursor (R138).
IN_A_ROW_MAX = 64


class SteerService(NamedTuple):
    """Steers turns. One feature provides it."""

    steer: Callable[[TurnDraft, TurnKey, At], Awaitable[Stored]]
    """Stores the turn of the draft's messages behind the turn of the key, or behind the last steer of it, and ends that
    one. The draft's turn needs only messages; the rest is that of the steered turn. Raises Refused, LogError."""


def steered_turn(stored: Stored) -> TurnId | None:
    """Returns the turn that a stored successor waits for; None if it had ended."""
    return stored.entry.parent if stored.entry.is_queued else None
