"""Queries that generators answer: models, and the cancellation and end of turns. Data types only."""

from datetime import datetime

import msgspec

from tailrace.proto.ids import TurnId

# The names of the queries (PROTOCOL R36).
MODELS = "models"
CANCEL_TURN = "cancel_turn"
END_DAMAGED_TURN = "end_damaged_turn"


class ListedModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model of Anthropic's list, with the fields that clients get. `capabilities` is Anthropic's JSON, or null."""

    id: str
    created_at: datetime | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: msgspec.Raw = msgspec.Raw(b"null")


class ListedModels(msgspec.Struct, frozen=True):
    """The reply to the query `models`, which has no body. Refused: backend_…."""

    data: list[ListedModel]
    is_simulated: bool = False
    """Whether the simulated Claude has answered. Anthropic's list does not have this field."""


class CancelTurn(msgspec.Struct, frozen=True, omit_defaults=True):
    """Cancels a turn, for a gateway that loses the fence to the turn's generator.

    The other fields are stored in the turn's `end`.
    """

    turn: TurnId
    cause: str | None = None
    by: str | None = None
    successor: TurnId | None = None


class TurnCancelled(msgspec.Struct, frozen=True):
    """The reply to `cancel_turn`: the turn has ended. `was_running`: whether it was running before."""

    was_running: bool


class EndDamagedTurn(msgspec.Struct, frozen=True):
    """Ends a turn of which the log has lost entries, and which has no end in the log and the database (R144)."""

    turn: TurnId


class DamagedTurnEnded(msgspec.Struct, frozen=True):
    """The reply to `end_damaged_turn`. `was_running`: this query has ended the turn."""

    was_running: bool
