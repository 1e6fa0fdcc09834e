"""The query `count_tokens`, which generators answer (PROTOCOL R36). Data types only."""

from typing import Any

import msgspec

from tailrace.proto.entries import Message

COUNT_TOKENS = "count_tokens"


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


class PromptFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of a Messages request that may hold long strings."""

    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class TokenCount(msgspec.Struct, frozen=True):
    """The known part of the reply to `count_tokens`."""

    input_tokens: int
    """The number of tokens of the prompt."""
