"""Claude's models: names, limits, prices and supported features, from models.json.

Source: Anthropic's pages (platform.claude.com: models, pricing, effort, thinking; November 2026). Values that they do
not give are missing there and None here. Prices are in whole nano-dollars per token.
"""

from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.usage import CallUsage

# Anthropic's Message Batches cost half of every price.
BATCH_PRICE_DIVISOR = 2


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """Nano-dollars per token. `cache_write` is for five minutes, `cache_write_1h` for one hour."""

    input_nano_usd: int
    output_nano_usd: int
    cache_write_nano_usd: int
    cache_write_1h_nano_usd: int
    cache_read_nano_usd: int


class LongPromptPrices(msgspec.Struct, frozen=True, kw_only=True):
    """The prices of a whole call whose prompt, cached tokens included, has more than `over_tokens` tokens."""

    over_tokens: int
    prices: Prices


class Supports(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Features that a model supports. None: unknown."""

    vision: bool | None = None
    pdf: bool | None = None
    citations: bool | None = None
    tools: bool | None = None
    forced_tools: bool | None = None
    """Whether `tool_choice` may be `any` or `tool`."""
    structured_outputs: bool | None = None
    sampling: bool | None = None
    """Whether it supports `temperature`, `top_p` and `top_k`."""
    prefill: bool | None = None
    """Whether it continues a last message of role `assistant`."""
    thinking: tuple[str, ...] | None = None
    """The supported values of `thinking.type`."""
    effort: tuple[str, ...] | None = None
    """The supported values of `output_config.effort`."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A row of models.json."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    line: str
    released: date | None = None
    lifecycle: Literal["active", "deprecated"] = "active"
    retires: date | None = None
    input_tokens_max: int
    output_tokens_max: int
    prices: Prices
    long_prompt: LongPromptPrices | None = None
    fast_times: int = 2
    """The price factor of a call with `speed: fast`."""
    supports: Supports


@cache
def models() -> dict[str, Model]:
    """Returns all models by id, the default model first."""
    text = files("tailrace.proto").joinpath("models.json").read_bytes()
    return {model.id: model for model in msgspec.json.decode(text, type=list[Model])}


@cache
def _named() -> dict[str, Model]:
    return {name: model for model in models().values() for name in (model.id, *model.aliases)}


def find_model(name: str) -> Model | None:
    """Returns the model with this id or alias, or None."""
    return _named().get(name)


def resolve_model(name: str, aliases: Mapping[str, str]) -> Model | None:
    """Returns the model for a client's `name`: a Claude model's name, or a name that the operator configured."""
    return find_model(name) or find_model(aliases.get(name, ""))


def parse_aliases(text: str) -> dict[str, str]:
    """Parses the setting `model_aliases`: `NAME=MODEL,…`. Raises SettingsInvalid.

    The name of a Claude model cannot be an alias of another model.
    """
    aliases: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, _, target = (part.strip() for part in pair.partition("="))
        if not name or find_model(target) is None:
            raise SettingsInvalid(
                f"TAILRACE_MODEL_ALIASES: {pair!r} is not NAME=MODEL with one of {', '.join(models())}"
            )
        if find_model(name) is not None or name in aliases:
            raise SettingsInvalid(f"TAILRACE_MODEL_ALIASES: {name!r} is already the name of a model")
        aliases[name] = target
    return aliases


def cost_nano_usd(model: Model, call: CallUsage) -> int:
    """Returns the cost of one call in nano-dollars. Not for sums: the prices depend on the length of each prompt."""
    prompt_tokens = call.input_tokens + call.cache_creation_input_tokens + call.cache_read_input_tokens
    long = model.long_prompt
    prices = long.prices if long is not None and prompt_tokens > long.over_tokens else model.prices
    kept_1h = call.cache_creation_1h_input_tokens
    nano_usd = (
        call.input_tokens * prices.input_nano_usd
        + call.output_tokens * prices.output_nano_usd
        + (call.cache_creation_input_tokens - kept_1h) * prices.cache_write_nano_usd
        + kept_1h * prices.cache_write_1h_nano_usd
        + call.cache_read_input_tokens * prices.cache_read_nano_usd
    )
    if call.is_fast:
        nano_usd *= model.fast_times
    # Rounded up to a whole nano-dollar.
    return -(-nano_usd // BATCH_PRICE_DIVISOR) if call.is_batch else nano_usd
