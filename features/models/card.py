"""The bodies of `GET /v1/models`, which OpenAI's and Anthropic's SDKs both parse, and of its capabilities route."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Literal

import msgspec

from tailrace.gateway.models.capabilities import update_supports
from tailrace.gateway.models.offer import Listed
from tailrace.proto.errors import Refused
from tailrace.proto.model_records import ListedModel
from tailrace.proto.models import Model, Prices, Supports

# Anthropic's own value for an unknown date.
UNKNOWN_DAY = date(1970, 1, 1)
LIMIT_MAX = 1000
# Nano-dollars per token are thousandths of a dollar per million tokens.
NANO_USD_PER_USD_A_MILLION = 1000


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model: OpenAI's four fields, then the fields of Anthropic's ModelInfo."""

    id: str
    """The id of the model."""
    object: Literal["model"] = "model"
    """The type of this object in OpenAI's API."""
    created: int
    """When the model was released, in Unix seconds."""
    owned_by: str
    """The owner of the model."""
    type: Literal["model"] = "model"
    """The type of this object in Anthropic's API."""
    display_name: str
    """The name of the model for people."""
    created_at: datetime
    """When the model was released."""
    line: str
    """The line of models that this one belongs to."""
    lifecycle: Literal["active", "deprecated"]
    """Whether the provider has announced the end of the model."""
    deprecated_at: datetime | None = None
    """When the end was announced; always null."""
    retires_at: datetime | None
    """When the provider retires the model."""
    max_input_tokens: int | None
    """Null: unknown."""
    max_tokens: int | None
    """The most tokens that an answer may have. Null: unknown."""
    capabilities: msgspec.Raw
    """The features that the model supports, in Anthropic's format."""


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of models in the formats of OpenAI and Anthropic."""

    object: Literal["list"] = "list"
    """The type of this object in OpenAI's API."""
    data: list[ModelCard]
    """The models of this page."""
    has_more: bool
    """Whether there is a next page."""
    first_id: str | None
    """The id of the first model of this page."""
    last_id: str | None
    """The id of the last model of this page."""
    is_simulated: bool = False
    """Whether the simulated Claude answers, because no model key is set: its answers are invented and cost nothing."""


class UsdPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Prices in dollars per million tokens."""

    input: float
    """Input tokens that no cache has."""
    output: float
    """Output tokens."""
    cache_write_5m: float
    """Input tokens that are written to the cache for 5 minutes."""
    cache_write_1h: float
    """Input tokens that are written to the cache for an hour."""
    cache_read: float
    """Input tokens that are read from the cache."""


class LongPromptUsdPrices(UsdPrices, frozen=True, kw_only=True):
    """The prices of a model call whose prompt has more than `over_tokens` tokens."""

    over_tokens: int
    """The number of prompt tokens above which these prices apply."""


class ModelLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    context_tokens: int | None = None
    """The most tokens that prompt and answer may have together."""
    output_tokens: int | None = None
    """The most tokens that an answer may have."""


class ModelSheet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits, features and prices of a model. Unknown values are left out."""

    id: str
    """The id of the model."""
    display_name: str
    """The name of the model for people."""
    owned_by: str = "anthropic"
    """The owner of the model."""
    aliases: tuple[str, ...]
    """Other names of the model."""
    replaces: tuple[str, ...] = ()
    """Retired models for which this one answers."""
    lifecycle: str
    """Whether the model is active, deprecated or retired."""
    retires: date | None = None
    """The day on which the provider retires the model."""
    limits: ModelLimits
    """The most tokens of prompt and answer."""
    usd_per_million_tokens: UsdPrices | None = None
    """Prices in dollars per million tokens."""
    usd_per_million_tokens_of_a_long_prompt: LongPromptUsdPrices | None = None
    """Prices of calls with a long prompt."""
    supports: Supports
    """The features that the model supports."""


class ModelSheets(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    """The type of this object in OpenAI's API."""
    data: list[ModelSheet]
    """All models that the gateway knows."""


def build_card(model: Model, listed: Listed | None) -> ModelCard:
    """Returns a model as `GET /v1/models` lists it. Limits that Anthropic lists replace the limits in our table."""
    info = (listed or {}).get(model.id) or ListedModel(id=model.id)
    created_at = info.created_at or midnight(model.released or UNKNOWN_DAY)
    return ModelCard(
        id=model.id,
        created=int(created_at.timestamp()),
        owned_by=model.owned_by,
        display_name=model.name or model.id,
        created_at=created_at,
        line=model.line,
        lifecycle=model.lifecycle,
        retires_at=midnight(model.retires) if model.retires is not None else None,
        max_input_tokens=info.max_input_tokens or model.input_tokens_max,
        max_tokens=info.max_tokens or model.output_tokens_max,
        capabilities=info.capabilities,
    )


def build_sheet(model: Model, listed: Listed | None) -> ModelSheet:
    """Returns limits, capabilities and prices of a model, in dollars per million tokens. Unknown values are None."""
    info = (listed or {}).get(model.id) or ListedModel(id=model.id)
    long = model.long_prompt
    return ModelSheet(
        id=model.id,
        display_name=model.name or model.id,
        owned_by=model.owned_by,
        aliases=model.aliases,
        replaces=model.replaces,
        lifecycle=model.lifecycle,
        retires=model.retires,
        limits=ModelLimits(
            context_tokens=info.max_input_tokens or model.input_tokens_max,
            output_tokens=info.max_tokens or model.output_tokens_max,
        ),
        usd_per_million_tokens=UsdPrices(**usd_prices(model.prices)) if model.prices is not None else None,
        usd_per_million_tokens_of_a_long_prompt=(
            LongPromptUsdPrices(over_tokens=long.over_tokens, **usd_prices(long.prices)) if long is not None else None
        ),
        supports=update_supports(model.supports, bytes(info.capabilities)),
    )


def build_page(
    cards: Sequence[ModelCard], *, after_id: str | None, before_id: str | None, limit: int, is_simulated: bool = False
) -> ModelPage:
    """Returns the page after or before a model of the list, or the first page. Raises Refused."""
    if after_id is not None and before_id is not None:
        raise Refused("request_invalid", "`after_id` and `before_id` exclude each other: send one of them")
    ids = [card.id for card in cards]
    if not {after_id, before_id} <= {None, *ids}:
        raise Refused("request_invalid", "`after_id` and `before_id` must be ids of listed models")
    if before_id is not None:
        end = ids.index(before_id)
        found, has_more = cards[max(0, end - limit) : end], end > limit
    else:
        begin = ids.index(after_id) + 1 if after_id is not None else 0
        found, has_more = cards[begin : begin + limit], begin + limit < len(cards)
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    return ModelPage(data=list(found), has_more=has_more, first_id=first, last_id=last, is_simulated=is_simulated)


def usd_prices(prices: Prices) -> dict[str, float]:
    """Returns the prices in US dollars for a million tokens."""
    return {
        "input": prices.input_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "output": prices.output_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "cache_write_5m": prices.cache_write_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "cache_write_1h": prices.cache_write_1h_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "cache_read": prices.cache_read_nano_usd / NANO_USD_PER_USD_A_MILLION,
    }


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
