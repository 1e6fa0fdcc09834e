"""Claude's models: their names, limits, prices, and what each takes. Read from models.json; it asks nobody.

The file says what Anthropic's pages say (platform.claude.com: models, pricing, effort, thinking; November 2026). What
they do not say is left out there, and None here. Money is in whole nano-dollars a token.
"""

from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.usage import CallUsage

# Of Anthropic's Message Batches: one half of every price.
BATCH_PRICE_DIVISOR = 2


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """Nano-dollars a token. `cache_write` is for five minutes, `cache_write_1h` for an hour."""

    input_nano_usd: int
    output_nano_usd: int
    cache_write_nano_usd: int
    cache_write_1h_nano_usd: int
    cache_read_nano_usd: int


class LongPromptPrices(msgspec.Struct, frozen=True, kw_only=True):
    """What all tokens of a call cost whose prompt, cached or not, has more than `over_tokens`."""

    over_tokens: int
    prices: Prices


class Supports(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model takes; None: not known."""

    vision: bool | None = None
    pdf: bool | None = None
    citations: bool | None = None
    tools: bool | None = None
    forced_tools: bool | None = None
    """Whether `tool_choice` may be `any` or `tool`."""
    structured_outputs: bool | None = None
    sampling: bool | None = None
    """Whether it takes `temperature`, `top_p`, `top_k`."""
    prefill: bool | None = None
    """Whether it goes on from a last message of the assistant's."""
    thinking: tuple[str, ...] | None = None
    """The values of `thinking.type` that it takes."""
    effort: tuple[str, ...] | None = None
    """The values of `output_config.effort` that it takes."""


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
    """How many times as much a call of `speed` fast costs."""
    supports: Supports


@cache
def models() -> dict[str, Model]:
    """Every model by id, the default one first."""
    text = files("tailrace.proto").joinpath("models.json").read_bytes()
    return {model.id: model for model in msgspec.json.decode(text, type=list[Model])}


@cache
def _named() -> dict[str, Model]:
    return {name: model for model in models().values() for name in (model.id, *model.aliases)}


def find_model(name: str) -> Model | None:
    """The model of that id or alias."""
    return _named().get(name)


def resolve_model(name: str, aliases: Mapping[str, str]) -> Model | None:
    """The model that a client means: one of Claude's own names, or a foreign one that was given a meaning."""
    return find_model(name) or find_model(aliases.get(name, ""))


def parse_aliases(text: str) -> dict[str, str]:
    """The setting `model_aliases`, `NAME=MODEL,…`; raises SettingsInvalid.

    One of Claude's own names cannot be given another meaning: who asks for a model gets it, or an error.
    """
    aliases: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, _, target = (part.strip() for part in pair.partition("="))
        if not name or find_model(target) is None:
            raise SettingsInvalid(
                f"TAILRACE_MODEL_ALIASES: {pair!r} is not NAME=MODEL with one of {', '.join(models())}"
            )
        if find_model(name) is not None or name in aliases:
            raise SettingsInvalid(f"TAILRACE_MODEL_ALIASES: {name!r} is the name of a model already")
        aliases[name] = target
    return aliases


def cost_nano_usd(model: Model, call: CallUsage) -> int:
    """What one call cost. Not for sums of calls: the length of each one's prompt decides about its prices."""
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
    # Half of it, and no fraction of a nano-dollar is given away.
    return -(-nano_usd // BATCH_PRICE_DIVISOR) if call.is_batch else nano_usd
