"""The type of the service that puts a message into an answer that runs."""

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from tailrace.gateway.turns.draft import Stored, TurnDraft
from tailrace.proto.ids import TurnId
from tailrace.proto.ownership import ScopedKey

At = Literal["now", "boundary"]


class SteerService(NamedTuple):
    """Steers turns."""

    steer: Callable[[TurnDraft, ScopedKey, At], Awaitable[Stored]]
    """Stores the turn of the draft's messages behind the turn of the key, or behind the last steer of it, and ends that
    one. The draft's turn needs only messages; the rest is that of the steered turn. Raises Refused, LogError."""


def steered_turn(stored: Stored) -> TurnId | None:
    """Returns the turn that a stored successor waits for; None if it had ended."""
    return stored.entry.parent if stored.entry.is_queued else None
