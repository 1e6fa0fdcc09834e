"""What a generator is asked besides turns: which models Anthropic lists, how many tokens a prompt has. Shapes only."""

from datetime import datetime

import msgspec

# The names of the queries (PROTOCOL R36).
MODELS = "models"
COUNT_TOKENS = "count_tokens"


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


class AskTokenCount(msgspec.Struct, frozen=True):
    """`body` is a Messages request, `betas` the value of its anthropic-beta. Anthropic's own answer."""

    body: msgspec.Raw
    betas: str = ""
