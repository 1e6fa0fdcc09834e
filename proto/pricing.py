"""Prices a call's usage object: which tokens and tool uses are billed, by which list, at which model's price.

Source: Anthropic's pages, whose names and date are in prices.json. Tokens outside the top level of a `usage` object are
billed, too: compactions, advisors, and models that refused after they had begun to answer (PROTOCOL R23). Costs are
whole nano-dollars. A part of a cost that the price list does not give makes the cost unknown; the known rest is still
counted, so that limits apply to it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from tailrace.proto.models import LIKE_CLAUDE, Model, Prices, find_model
from tailrace.proto.usage import COUNT_MAX, CallUsage, ModelUsage, Usage, one_hour_tokens, read_count

# Steps whose tokens the top level of the usage object leaves out.
BEYOND_TOP_LEVEL = ("compaction", "advisor_message")
# The cost of a step of another kind is unknown; its model's price is counted.
KNOWN_STEPS = ("message", "fallback_message", *BEYOND_TOP_LEVEL)
# How many models of a turn are counted by name; the rest is counted together.
MODELS_MAX = 20
OTHER_MODEL = "other"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
# The name of a snapshot, also as Bedrock and Vertex AI write it: `anthropic.claude-opus-4-8-20260401-v1:0`.
SNAPSHOT = re.compile(
    r"(?:[a-z]{2,6}\.)?(?:anthropic[./])?(claude-[a-z0-9-]+?)(?:[-@]\d{8}|@default)?(?:-v\d+(?::\d+)?)?"
)


class Factor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A multiple of all token prices, as a fraction."""

    times: int
    divided_by: int


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices, except the prices of tokens. None: Anthropic has not published the price."""

    source: str
    date: str
    """The day on which the pages were read."""
    service_tiers: dict[str, Factor | None]
    geographies: dict[str, Factor | None]
    server_tools_nano_usd: dict[str, int | None]
    """The price of one use, by the name of the counter in `server_tool_use`."""
    refusals_billed_before_output: list[str]
    """The categories of refusals that are billed although the model had not begun to answer."""


@cache
def price_list() -> PriceList:
    """Returns the list of prices, from prices.json."""
    return msgspec.json.decode(files("tailrace.proto").joinpath("prices.json").read_bytes(), type=PriceList)


class Charge(NamedTuple):
    """Tokens that are billed together: a step of a call, or a call without steps. `model` None: the call's own."""

    model: str | None
    usage: Usage
    one_hour_tokens: int
    kind: str = "message"


class Bill(NamedTuple):
    """The billed usage and cost of calls: by model, and together."""

    by_model: Mapping[str, ModelUsage]

    @property
    def total(self) -> ModelUsage:
        """The tokens and the cost of all models."""
        total = ModelUsage()
        for one in self.by_model.values():
            total = total.plus(one)
        return total


def price_calls(requested: str, calls: Iterable[CallUsage]) -> Bill:
    """Returns the bill for calls of the model `requested`, with the tokens of other models that worked for them."""
    by_model: dict[str, ModelUsage] = {}
    for call in calls:
        for name, part in _price_call(requested, call):
            key = name if name in by_model or len(by_model) < MODELS_MAX else OTHER_MODEL
            by_model[key] = by_model.get(key, ModelUsage()).plus(part)
    return Bill(by_model)


def answering_model(call: CallUsage) -> str | None:
    """Returns the name of the model that answered, as the model has reported it; None if it has not.

    After a fallback on the server, it is not the model that the request and `message_start` name.
    """
    served = [_charge(step).model for step in _steps(call) if step.get("type") == "fallback_message"]
    name = (served[-1] if served else None) or call.context.served_by or call.context.model
    return name if MODEL_NAME.fullmatch(name) else None


def find_billed_model(name: str) -> Model | None:
    """Returns the model of the table that a usage object calls `name`, also with a date; None: unknown."""
    snapshot = SNAPSHOT.fullmatch(name)
    return find_model(name) or (find_model(snapshot[1]) if snapshot is not None else None)


def _price_call(requested: str, call: CallUsage) -> Iterator[tuple[str, ModelUsage]]:
    """Yields each model's part of the bill for one call, under the model's id."""
    named = find_model(requested)
    own = find_billed_model(call.context.model) or named
    own_name = own.id if own is not None else requested
    has_fallen_back = _has_fallen_back(_steps(call))
    parts: dict[str, list[tuple[Model | None, Charge]]] = {}
    is_claude = own.owned_by == "anthropic" if own is not None else LIKE_CLAUDE.fullmatch(requested) is not None
    for charge in _charges(call, is_claude=is_claude):
        if charge.model is None or charge.model == requested:
            # After a fallback, the message may name the model that answered: other steps are of the requested model.
            model = named if has_fallen_back or charge.model is not None else own
        elif charge.model == call.context.model and not has_fallen_back:
            model = own
        else:
            model = find_billed_model(charge.model)
        name = model.id if model is not None else charge.model or requested
        parts.setdefault(name if MODEL_NAME.fullmatch(name) else OTHER_MODEL, []).append((model, charge))
    tools = _price_tools(call)
    if tools != ModelUsage():
        parts.setdefault(own_name, [])
    for name, charges in parts.items():
        price = _price_tokens(charges, call)
        yield name, price.plus(tools) if name == own_name else price


def _price_tokens(charges: Iterable[tuple[Model | None, Charge]], call: CallUsage) -> ModelUsage:
    """Returns what one model's charges of a call cost together, rounded up to a whole nano-dollar."""
    usage, nano_usd, is_unknown = Usage(), 0, False
    for model, charge in charges:
        if not any(charge.usage.counts):
            continue
        usage += charge.usage
        is_unknown |= charge.kind not in KNOWN_STEPS
        if model is None or model.prices is None:
            is_unknown = True
            continue
        times: int | None = 1
        if isinstance(call.speed, str) and call.speed != "standard":
            # No page says at which speed an advisor works.
            times = model.fast_times if call.speed == "fast" and charge.kind != "advisor_message" else None
        is_unknown |= times is None
        nano_usd += _list_cost(model, charge) * (times or 1)
    divisor, prices = 1, price_list()
    for value, factors in ((call.service_tier, prices.service_tiers), (call.inference_geo, prices.geographies)):
        if isinstance(value, str) and any(usage.counts):
            factor = factors.get(value)
            is_unknown |= factor is None
            nano_usd *= factor.times if factor is not None else 1
            divisor *= factor.divided_by if factor is not None else 1
    match call.fallback_credit:
        case {"status": {"type": "redeemed"}}:
            # The call is billed as if its prompt had been in the cache. The counts do not say how much of it.
            is_unknown = True
    return ModelUsage(*usage.counts, cost_nano_usd=-(-nano_usd // divisor), cost_is_unknown=is_unknown)


def _list_cost(model: Model, charge: Charge) -> int:
    """Returns the cost of tokens in nano-dollars. The prompt's length decides which of the model's prices apply."""
    usage, long = charge.usage, model.long_prompt
    prompt_tokens = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    prices = long.prices if long is not None and prompt_tokens > long.over_tokens else model.prices
    return 0 if prices is None else _cost_at(prices, usage, charge.one_hour_tokens)


def _cost_at(prices: Prices, usage: Usage, one_hour: int) -> int:
    return (
        usage.input_tokens * prices.input_nano_usd
        + usage.output_tokens * prices.output_nano_usd
        + (usage.cache_creation_input_tokens - one_hour) * prices.cache_write_nano_usd
        + one_hour * prices.cache_write_1h_nano_usd
        + usage.cache_read_input_tokens * prices.cache_read_nano_usd
    )


def _price_tools(call: CallUsage) -> ModelUsage:
    """Returns the cost of the server tools that a call has used, without their tokens."""
    if not isinstance(call.server_tool_use, dict):
        return ModelUsage()
    nano_usd, is_unknown, prices = 0, False, price_list().server_tools_nano_usd
    for name, value in call.server_tool_use.items():
        price = prices.get(name)
        nano_usd += read_count(value) * (price or 0)
        is_unknown |= price is None and read_count(value) > 0
    return ModelUsage(cost_nano_usd=nano_usd, cost_is_unknown=is_unknown)


def _charges(call: CallUsage, *, is_claude: bool) -> list[Charge]:
    """Returns the tokens that are billed for a call: those of each step, and those at the top level that no step has.

    Claude's refusals are free if the model had not begun to answer, apart from some categories.
    """
    steps, last = _steps(call), -1
    for index, step in enumerate(steps):
        last = last if step.get("type") in BEYOND_TOP_LEVEL else index
    charges, covered = [], Usage()
    for index, step in enumerate(steps):
        charge = _charge(step)
        covered = covered if charge.kind in BEYOND_TOP_LEVEL else covered + charge.usage
        refusal = _refusal_of(call, charge, steps, is_last=index == last)
        if not _is_free(charge.usage, refusal if is_claude else None):
            charges.append(charge)
    top = Usage(*call.counts)
    rest = Usage(*(max(0, whole - part) for whole, part in zip(top.counts, covered.counts, strict=True)))
    if any(rest.counts) and not _is_free(top, call.context.refusal if is_claude else None):
        split = call.cache_creation if not steps else None
        charges.append(Charge(None, rest, one_hour_tokens(split, rest.cache_creation_input_tokens)))
    return charges


def _charge(step: Mapping[str, Any]) -> Charge:
    usage = _usage(step)
    kind, model = step.get("type"), step.get("model")
    return Charge(
        model if isinstance(model, str) and model else None,
        usage,
        one_hour_tokens(step.get("cache_creation"), usage.cache_creation_input_tokens),
        kind if isinstance(kind, str) else "",
    )


def _usage(step: Mapping[str, Any]) -> Usage:
    return Usage(*(read_count(step.get(name)) for name in Usage.__struct_fields__))


def _refusal_of(call: CallUsage, charge: Charge, steps: list[dict[str, Any]], *, is_last: bool) -> str | None:
    """Returns the category of the refusal that a step ended with; None if it did not."""
    if is_last and call.context.refusal is not None:
        return call.context.refusal
    if charge.kind == "message" and not charge.usage.output_tokens and _has_fallen_back(steps):
        return dict(call.context.declines).get(charge.model or call.context.model, "")
    return None


def _is_free(usage: Usage, refusal: str | None) -> bool:
    if refusal is None or usage.output_tokens:
        return False
    return refusal not in price_list().refusals_billed_before_output


def _has_fallen_back(steps: Iterable[Mapping[str, Any]]) -> bool:
    return any(step.get("type") == "fallback_message" for step in steps)


def _steps(call: CallUsage) -> list[dict[str, Any]]:
    """Returns the steps in `iterations`; none if a sum of their counts is more than a call can use."""
    if not isinstance(call.iterations, list):
        return []
    steps = [step for step in call.iterations if isinstance(step, dict)]
    total = sum(map(_usage, steps), start=Usage())
    return steps if max(total.counts) <= COUNT_MAX else []
