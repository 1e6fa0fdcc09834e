"""A model as `GET /v1/models` tells it: one body that the openai SDKs and the anthropic SDKs both understand. Pure."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Literal

import msgspec

from tailrace.gateway.models.capabilities import updated
from tailrace.gateway.models.offer import Listed
from tailrace.proto.errors import Refused
from tailrace.proto.model_records import ListedModel
from tailrace.proto.models import Model, Prices, Supports

# Anthropic's own value where it does not know the day.
UNKNOWN_DAY = date(1970, 1, 1)
LIMIT_MAX = 1000
# Nano-dollars a token are thousandths of a dollar a million tokens.
NANO_USD_PER_USD_A_MILLION = 1000


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's four fields, then those of Anthropic's ModelInfo."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["anthropic"] = "anthropic"
    type: Literal["model"] = "model"
    display_name: str
    created_at: datetime
    line: str
    lifecycle: Literal["active", "deprecated"]
    deprecated_at: None = None
    retires_at: datetime | None
    max_input_tokens: int
    max_tokens: int
    capabilities: msgspec.Raw


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's list, and Anthropic's page of one."""

    object: Literal["list"] = "list"
    data: list[Card]
    has_more: bool
    first_id: str | None
    last_id: str | None


class UsdPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars a million tokens."""

    input: float
    output: float
    cache_write_5m: float
    cache_write_1h: float
    cache_read: float


class LongPromptPrices(UsdPrices, frozen=True, kw_only=True):
    """Of a call whose prompt has more tokens than this."""

    over_tokens: int


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    context_tokens: int
    output_tokens: int


class Sheet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is known of a model; what is not known is left out."""

    id: str
    display_name: str
    aliases: tuple[str, ...]
    lifecycle: str
    retires: date | None = None
    limits: Limits
    usd_per_million_tokens: UsdPrices
    usd_per_million_tokens_of_a_long_prompt: LongPromptPrices | None = None
    supports: Supports


class Sheets(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Sheet]


def card(model: Model, listed: Listed | None) -> Card:
    told = (listed or {}).get(model.id) or ListedModel(id=model.id)
    created_at = told.created_at or midnight(model.released or UNKNOWN_DAY)
    return Card(
        id=model.id,
        created=int(created_at.timestamp()),
        display_name=model.name,
        created_at=created_at,
        line=model.line,
        lifecycle=model.lifecycle,
        retires_at=midnight(model.retires) if model.retires is not None else None,
        max_input_tokens=told.max_input_tokens or model.input_tokens_max,
        max_tokens=told.max_tokens or model.output_tokens_max,
        capabilities=told.capabilities,
    )


def sheet(model: Model, listed: Listed | None) -> Sheet:
    told = (listed or {}).get(model.id) or ListedModel(id=model.id)
    long = model.long_prompt
    return Sheet(
        id=model.id,
        display_name=model.name,
        aliases=model.aliases,
        lifecycle=model.lifecycle,
        retires=model.retires,
        limits=Limits(
            context_tokens=told.max_input_tokens or model.input_tokens_max,
            output_tokens=told.max_tokens or model.output_tokens_max,
        ),
        usd_per_million_tokens=UsdPrices(**usd(model.prices)),
        usd_per_million_tokens_of_a_long_prompt=(
            LongPromptPrices(over_tokens=long.over_tokens, **usd(long.prices)) if long is not None else None
        ),
        supports=updated(model.supports, bytes(told.capabilities)),
    )


def page(cards: Sequence[Card], *, after_id: str | None, before_id: str | None, limit: int) -> Page:
    """The page right after, or right before, a model of the list; without either the first. Raises Refused."""
    if after_id is not None and before_id is not None:
        raise Refused("request_invalid", "send `after_id` or `before_id`, not both")
    ids = [one.id for one in cards]
    if not {after_id, before_id} <= {None, *ids}:
        raise Refused("request_invalid", "`after_id` and `before_id` are ids of this list")
    if before_id is not None:
        end = ids.index(before_id)
        found, has_more = cards[max(0, end - limit) : end], end > limit
    else:
        begin = ids.index(after_id) + 1 if after_id is not None else 0
        found, has_more = cards[begin : begin + limit], begin + limit < len(cards)
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    return Page(data=list(found), has_more=has_more, first_id=first, last_id=last)


def usd(prices: Prices) -> dict[str, float]:
    return {
        "input": prices.input_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "output": prices.output_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "cache_write_5m": prices.cache_write_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "cache_write_1h": prices.cache_write_1h_nano_usd / NANO_USD_PER_USD_A_MILLION,
        "cache_read": prices.cache_read_nano_usd / NANO_USD_PER_USD_A_MILLION,
    }


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
