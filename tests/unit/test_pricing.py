"""Prices of usage objects, compared with a plain restatement of Anthropic's pricing pages."""

from fractions import Fraction
from math import ceil
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.pricing import answering_model, find_billed_model, price_calls, price_list
from tailrace.proto.usage import CallContext, CallUsage, ModelUsage, Usage

NAMES = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
# The pricing page: dollars for a million tokens of input, output, five-minute and one-hour cache writes, cache reads.
PAGE = {
    "claude-sonnet-5-5": ("2", "10", "2.5", "4", "0.1"),
    "claude-opus-5-5": ("4", "20", "5", "8", "0.2"),
    "claude-fable-5": ("10", "50", "12.5", "20", "1"),
    "claude-opus-4-8": ("5", "25", "6.25", "10", "0.5"),
}
# "From 100,000 tokens of prompt on", of the whole request.
HAIKU, LONG_HAIKU = ("0.1", "0.5", "0.125", "0.2", "0.01"), ("0.5", "2.5", "0.625", "1", "0.05")
FAST = {"claude-opus-5-5": 2, "claude-opus-4-8": 2}


def usd_of_page(model: str, tokens: dict[str, int], one_hour: int) -> Fraction:
    prompt = sum(tokens.values()) - tokens["output_tokens"]
    row = PAGE.get(model) or (LONG_HAIKU if prompt > 100_000 else HAIKU)
    entry, output, five_minutes, hour, read = (Fraction(price) / 1_000_000 for price in row)
    return (
        tokens["input_tokens"] * entry
        + tokens["output_tokens"] * output
        + (tokens["cache_creation_input_tokens"] - one_hour) * five_minutes
        + one_hour * hour
        + tokens["cache_read_input_tokens"] * read
    )


def nano_usd_of_page(requested: str, usage: dict[str, Any]) -> int:
    """The cost of a usage object in nano-dollars, as the pages say it, for the objects that `usage_objects` makes."""
    # "The tokens consumed and billed are the sum across usage.iterations"; without them, the top level.
    steps = usage.get("iterations") or [{"type": "message", **usage}]
    served = any(step["type"] == "fallback_message" for step in steps)
    usd: dict[str, Fraction] = {}
    for step in steps:
        if served and step["type"] == "message" and not step["output_tokens"]:
            continue  # "An attempt that declined before producing any output is not billed."
        model = step.get("model") or requested
        cost = usd_of_page(
            model,
            {name: step[name] for name in NAMES},
            step.get("cache_creation", {}).get("ephemeral_1h_input_tokens", 0),
        )
        if usage.get("speed") == "fast":
            cost *= FAST[model]
        if usage.get("service_tier") == "batch":
            cost /= 2
        if usage.get("inference_geo") == "us":
            cost *= Fraction("1.1")
        usd[model] = usd.get(model, Fraction(0)) + cost
    searches = usage.get("server_tool_use", {}).get("web_search_requests", 0)
    return sum(ceil(cost * 10**9) for cost in usd.values()) + int(searches) * 10_000_000


counts = st.integers(0, 250_000)


@st.composite
def tokens(draw: st.DrawFn, /, **fields: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: draw(counts) for name in NAMES} | fields
    written = found["cache_creation_input_tokens"]
    if draw(st.booleans()):
        hour = draw(st.integers(0, max(0, written - 1)))
        split = {"ephemeral_1h_input_tokens": hour, "ephemeral_5m_input_tokens": written - hour}
        found["cache_creation"] = split
    return found


@st.composite
def usage_objects(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A model and a usage object with the steps that Anthropic's pages describe."""
    is_fast = draw(st.booleans())
    models = sorted(FAST) if is_fast else [*PAGE, "claude-haiku-5-5"]
    requested = draw(st.sampled_from(models))
    usage: dict[str, Any] = {
        "service_tier": draw(st.sampled_from(["standard", "batch"])),
        "speed": "fast" if is_fast else "standard",
    }
    usage["inference_geo"] = draw(st.sampled_from(["global", "us", "not_available"]))
    top: dict[str, Any] = draw(tokens())
    if draw(st.booleans()):
        steps: list[dict[str, Any]] = draw(st.lists(tokens(type="message"), min_size=1, max_size=3))
        top = {name: sum(step[name] for step in steps) for name in NAMES}
        if draw(st.booleans()):
            served = draw(tokens(type="fallback_message", model=draw(st.sampled_from(models))))
            steps, top = (
                [*[one | {"model": requested} for one in steps], served],
                {name: served[name] for name in NAMES},
            )
        if draw(st.booleans()):
            steps.insert(0, draw(tokens(type="compaction")))
        if not is_fast and draw(st.booleans()):
            steps.insert(1, draw(tokens(type="advisor_message", model=draw(st.sampled_from(models)))))
        usage["iterations"] = steps
    searches = {"web_search_requests": draw(st.integers(0, 5)), "web_fetch_requests": draw(st.integers(0, 5))}
    return requested, top | usage | {"server_tool_use": searches}


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
@given(usage_objects())
def test_a_usage_object_costs_what_the_pricing_page_says(case: tuple[str, dict[str, Any]]) -> None:
    """Steps by their own model and prompt, cache lifetimes, tiers, speed, geography and searches."""
    requested, usage = case
    bill = price_calls(requested, [msgspec.convert(usage, CallUsage)])
    assert (bill.total.cost_nano_usd, bill.total.cost_is_unknown) == (nano_usd_of_page(requested, usage), False)


def step(kind: str, input_tokens: int, output_tokens: int, model: str | None = None) -> dict[str, Any]:
    named = {"model": model} if model is not None else {}
    return {"type": kind, "input_tokens": input_tokens, "output_tokens": output_tokens, **named}


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
def test_a_compaction_is_billed_beyond_the_top_level() -> None:
    """The example of Anthropic's page on compaction, at the prices of Sonnet 5.5."""
    steps = [step("compaction", 180_000, 3_500), step("message", 23_000, 1_000)]
    bill = price_calls("claude-sonnet-5-5", [CallUsage(23_000, 1_000, iterations=steps)])
    assert bill.by_model == {"claude-sonnet-5-5": ModelUsage(203_000, 4_500, cost_nano_usd=451_000_000)}


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
def test_an_advisor_is_billed_at_its_own_price() -> None:
    """The top level has the steps of the model that answers only."""
    steps = [
        step("message", 1_051, 35),
        step("advisor_message", 2_728, 3_880, "claude-opus-4-7"),
        step("message", 3_676, 3_356),
    ]
    bill = price_calls("claude-sonnet-4-6", [CallUsage(4_727, 3_391, iterations=steps)])
    assert bill.by_model == {
        "claude-sonnet-4-6": ModelUsage(4_727, 3_391, cost_nano_usd=4_727 * 3_000 + 3_391 * 15_000),
        "claude-opus-4-7": ModelUsage(2_728, 3_880, cost_nano_usd=2_728 * 5_000 + 3_880 * 25_000),
    }
    assert bill.total.counts == (7_455, 7_271, 0, 0)


def fallback(declined_tokens: int, context: CallContext) -> CallUsage:
    steps = [
        step("message", 408, declined_tokens, "claude-fable-5"),
        step("fallback_message", 412, 264, "claude-opus-4-8"),
    ]
    return CallUsage(412, 264, iterations=steps, context=context)


SERVED = ModelUsage(412, 264, cost_nano_usd=412 * 5_000 + 264 * 25_000)
STREAMED = CallContext(model="claude-fable-5", served_by="claude-opus-4-8", declines=(("claude-fable-5", ""),))


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
@pytest.mark.parametrize("context", [STREAMED, CallContext(model="claude-opus-4-8"), CallContext()])
def test_a_fallback_is_billed_at_the_price_of_the_model_that_answered(context: CallContext) -> None:
    """The refusal of the first model is free, unless that model had begun to answer. JSON answers name the second."""
    call = fallback(0, context)
    assert price_calls("claude-fable-5", [call]).by_model == {"claude-opus-4-8": SERVED}
    assert answering_model(call) == "claude-opus-4-8"
    begun = price_calls("claude-fable-5", [fallback(9, context)]).by_model
    declined = ModelUsage(408, 9, cost_nano_usd=408 * 10_000 + 9 * 50_000)
    assert begun == {"claude-fable-5": declined, "claude-opus-4-8": SERVED}


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
@pytest.mark.parametrize(
    ("category", "output_tokens", "is_billed"),
    [(None, 0, True), ("", 0, False), ("cyber", 0, False), ("cyber", 1, True), ("bio", 0, True), ("new", 0, False)],
)
def test_a_refusal_before_any_output_is_free_except_in_some_categories(
    category: str | None, output_tokens: int, *, is_billed: bool
) -> None:
    """With and without steps, and as a step before a fallback. Other vendors' models have no such rule."""
    context = CallContext(refusal=category)
    for steps in (None, [step("message", 100, output_tokens)]):
        call = CallUsage(100, output_tokens, iterations=steps, context=context)
        expected = Usage(100, output_tokens) if is_billed else Usage()
        assert Usage(*price_calls("claude-fable-5", [call]).total.counts) == expected
    assert price_calls("gpt-4o", [CallUsage(100, context=context)]).total.counts == (100, 0, 0, 0)
    if category is not None and not output_tokens:
        declined = msgspec.structs.replace(STREAMED, declines=(("claude-fable-5", category),))
        counts = price_calls("claude-fable-5", [fallback(0, declined)]).total.counts
        assert counts == ((820, 264, 0, 0) if is_billed else (412, 264, 0, 0))


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
@pytest.mark.parametrize(
    ("fields", "known_nano_usd"),
    [
        ({"iterations": [step("message", 10, 1), step("advisor_message", 5, 5, "claude-opus-9")]}, 30_000),
        ({"iterations": [step("message", 10, 1), step("new_step", 5, 5)]}, 90_000),
        ({"service_tier": "priority"}, 30_000),
        ({"service_tier": "flex"}, 30_000),
        ({"inference_geo": "mars"}, 30_000),
        ({"speed": "fast"}, 30_000),
        ({"speed": "faster"}, 30_000),
        ({"server_tool_use": {"code_execution_requests": 1}}, 30_000),
        ({"server_tool_use": {"new_tool_requests": 1, "web_search_requests": 1}}, 10_030_000),
        ({"fallback_credit": {"status": {"type": "redeemed"}}}, 30_000),
    ],
)
def test_a_price_that_is_not_published_makes_the_cost_unknown(fields: dict[str, Any], known_nano_usd: int) -> None:
    """The known part is counted. A step of an unknown kind is counted at its model's price."""
    total = price_calls("claude-sonnet-5-5", [CallUsage(10, 1, **fields)]).total
    assert (total.cost_nano_usd, total.cost_is_unknown) == (known_nano_usd, True)


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
@pytest.mark.parametrize(
    "value", [7, "x", {}, {"a": "b"}, [], [7, None], [{"type": 7, "input_tokens": "9"}], [step("message", -1, 2**33)]]
)
def test_values_of_an_unexpected_type_are_ignored(value: object) -> None:
    """The top level is then billed as it is."""
    fields: dict[str, Any] = dict.fromkeys(
        ("iterations", "server_tool_use", "cache_creation", "fallback_credit"), value
    )
    assert price_calls("claude-sonnet-5-5", [CallUsage(10, 1, **fields)]).total == ModelUsage(
        10, 1, cost_nano_usd=30_000
    )
    many = [step("message", 2**32, 0)] * 2
    assert price_calls("claude-sonnet-5-5", [CallUsage(10, 1, iterations=many)]).total.counts == (10, 1, 0, 0)


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
def test_tokens_that_no_step_has_are_billed_by_the_top_level() -> None:
    """An estimate of the output, for example, after the steps were reported."""
    call = CallUsage(10, 50, iterations=[step("compaction", 100, 1), step("message", 10, 1)])
    assert price_calls("claude-sonnet-5-5", [call]).total == ModelUsage(
        110, 51, cost_nano_usd=110 * 2_000 + 51 * 10_000
    )


@pytest.mark.rule("R23")
@pytest.mark.rule("R121")
def test_cache_writes_that_a_split_leaves_out_have_its_only_lifetime() -> None:
    """The split at the top level is that of the first step."""
    for split, hour in (({"ephemeral_1h_input_tokens": 60, "ephemeral_5m_input_tokens": 0}, 100), ({}, 0)):
        call = CallUsage(cache_creation_input_tokens=100, cache_creation=split)
        cost = price_calls("claude-opus-5-5", [call]).total.cost_nano_usd
        assert cost == hour * 8_000 + (100 - hour) * 5_000


def test_models_are_found_by_the_names_of_their_snapshots() -> None:
    """As Anthropic, Bedrock and Vertex AI write them."""
    names = ("claude-opus-4-8", "claude-opus-4-8-20260401", "claude-opus-4-8@20260401", "claude-opus-4-8@default")
    for name in (*names, "us.anthropic.claude-opus-4-8-20260401-v1:0", "anthropic.claude-opus-4-8"):
        model = find_billed_model(name)
        assert model is not None, name
        assert model.id == "claude-opus-4-8"
    assert find_billed_model("claude-opus-9") is find_billed_model("claude-opus-4-8-x") is find_billed_model("") is None


def test_the_number_of_models_in_a_bill_is_bounded() -> None:
    """The names come from the model's answer."""
    steps = [step("advisor_message", 1, 1, f"model-{number}") for number in range(100)]
    steps.append(step("advisor_message", 1, 1, "not a name"))
    bill = price_calls("claude-opus-5-5", [CallUsage(1, 1, iterations=steps)])
    assert len(bill.by_model) <= 21
    assert (bill.total.counts, bill.total.cost_is_unknown) == ((102, 102, 0, 0), True)
    assert all(name.startswith(("model-", "claude-", "other")) for name in bill.by_model)


def test_the_price_list_names_its_source_and_date() -> None:
    """Both are for the operator who compares it with the pages."""
    assert price_list().source.startswith("platform.claude.com")
    assert price_list().date == "2026-11-27"
