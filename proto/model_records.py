"""What a generator is asked besides turns: about Anthropic's models, tokens and message batches. Shapes only."""

from datetime import datetime
from typing import Any

import msgspec

from tailrace.proto.entries import Message

# The names of the queries (PROTOCOL R36).
MODELS = "models"
COUNT_TOKENS = "count_tokens"
CANCEL_MESSAGE_BATCH = "cancel_message_batch"


class ListedModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """As much as is told on of a model in Anthropic's list. `capabilities` are Anthropic's own JSON, or null."""

    id: str
    created_at: datetime | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: msgspec.Raw = msgspec.Raw(b"null")


class ListedModels(msgspec.Struct, frozen=True):
    """The answer to `models`."""

    data: list[ListedModel]


class TokenCount(msgspec.Struct, frozen=True):
    """As much as we know of the answer to `count_tokens`."""

    input_tokens: int


class CountTokens(msgspec.Struct, frozen=True, omit_defaults=True):
    """`body` is a Messages request, `betas` the value of its anthropic-beta. Anthropic's own answer."""

    body: msgspec.Raw
    betas: str = ""
    is_lifted: bool = False
    """Whether the body has references in the place of long strings (R33); else it goes to the API as it came."""


class CancelMessageBatch(msgspec.Struct, frozen=True):
    """The id of one of Anthropic's Message Batches, whose batch here is being deleted. The answer is empty."""

    message_batch: str


class PromptFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """As much of a Messages request as may be long."""

    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


def replace_prompt(body: bytes, prompt: PromptFields) -> bytes:
    """The Messages request in `body`, which asks about `prompt` instead."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(fields | msgspec.json.decode(msgspec.json.encode(prompt), type=dict[str, msgspec.Raw]))
