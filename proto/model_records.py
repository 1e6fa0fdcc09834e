"""Queries that generators answer: models, token counts, cancelling of turns and message batches. Data types only."""

from datetime import datetime
from typing import Any

import msgspec

from tailrace.proto.entries import Message
from tailrace.proto.ids import TurnId

# The names of the queries (PROTOCOL R36).
MODELS = "models"
COUNT_TOKENS = "count_tokens"
CANCEL_MESSAGE_BATCH = "cancel_message_batch"
CANCEL_TURN = "cancel_turn"


class ListedModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model of Anthropic's list, with the fields that clients get. `capabilities` is Anthropic's JSON, or null."""

    id: str
    created_at: datetime | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: msgspec.Raw = msgspec.Raw(b"null")


class ListedModels(msgspec.Struct, frozen=True):
    """The reply to `models`, whose question is empty. Refused: backend_…."""

    data: list[ListedModel]
    is_simulated: bool = False
    """Whether the simulated Claude has answered. Anthropic's list does not have this field."""


class TokenCount(msgspec.Struct, frozen=True):
    """The known part of the reply to `count_tokens`."""

    input_tokens: int
    """The number of tokens of the prompt."""


class CountTokens(msgspec.Struct, frozen=True, omit_defaults=True):
    """`body` is a Messages request, `betas` the value of its anthropic-beta header. The reply is Anthropic's.

    The generator replaces the model by the operator's name for it. Refused: backend_…, blob_expired.
    """

    body: msgspec.Raw
    betas: str = ""
    is_lifted: bool = False
    """Whether `body` may have references in place of long strings (R33), which the generator replaces first."""
    api_version: str | None = None
    """The value of the header anthropic-version; None: the SDK's default."""


class CancelMessageBatch(msgspec.Struct, frozen=True):
    """Cancels one of Anthropic's Message Batches, because its batch is being deleted and has not completed.

    The reply is empty, also if Anthropic does not have the message batch or it has ended. Refused: backend_….
    """

    message_batch: str


class CancelTurn(msgspec.Struct, frozen=True, omit_defaults=True):
    """Cancels a turn, for a gateway that loses the fence to the turn's generator.

    `cause` and `by` are stored in its `end`.
    """

    turn: TurnId
    cause: str | None = None
    by: str | None = None


class TurnCancelled(msgspec.Struct, frozen=True):
    """The reply to `cancel_turn`: the turn has ended. `was_running`: whether it was running before."""

    was_running: bool


class PromptFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of a Messages request that may hold long strings."""

    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
