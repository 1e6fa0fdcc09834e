"""Claude's models: names, aliases and prices."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.models import extend_models, find_model, models, parse_aliases, resolve_model
from tailrace.proto.pricing import price_calls
from tailrace.proto.usage import CallUsage


def cost(model: str, *calls: CallUsage) -> int | None:
    """Returns the cost of calls in nano-dollars; None if a part of it is unknown."""
    total = price_calls(model, calls).total
    return None if total.cost_is_unknown else total.cost_nano_usd


def test_the_default_model_is_the_first_and_ids_are_keys() -> None:
    assert next(iter(models())) == "claude-sonnet-5-5"
    assert all(name == model.id for name, model in models().items())


def test_no_name_means_two_models() -> None:
    """Each id, alias and retired name stands once in the file; the first two find their row."""
    names = [name for model in models().values() for name in (model.id, *model.aliases, *model.replaces)]
    assert len(names) == len(set(names))
    names = [name for model in models().values() for name in (model.id, *model.aliases)]
    assert len(names) == len(set(names))
    found = [find_model(name) for name in names]
    assert found == [model for model in models().values() for _ in (model.id, *model.aliases)]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("claude-sonnet-5-5", "claude-sonnet-5-5"),
        ("claude-sonnet-5-5-latest", "claude-sonnet-5-5"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("gpt-4o", "claude-haiku-5-5"),
        ("gpt-4o-mini", None),
        ("claude-opus-4-20250514", "claude-opus-4-8"),
        ("claude-3-7-sonnet-20250219", "claude-sonnet-4-6"),
        ("claude-opus-4-6-20260205", "claude-opus-4-6"),
        ("claude-3-opus-latest", "claude-haiku-5-5"),
        ("claude-sonnet-5-5-20260101", None),
        ("Claude-Sonnet-5-5", None),
        ("", None),
    ],
)
def test_a_name_is_resolved_or_means_nothing(name: str, model: str | None) -> None:
    """Claude's own names, with and without date; a retired model's; before that what the operator has written."""
    aliases = {"gpt-4o": "claude-haiku-5-5-latest", "claude-3-opus-latest": "claude-haiku-5-5"}
    found = resolve_model(name, aliases)
    assert (found.id if found else None) == model


def test_the_operators_names_are_read() -> None:
    """`NAME=MODEL`, joined by commas, with or without spaces; none is none."""
    assert parse_aliases("") == {}
    assert parse_aliases("gpt-4o=claude-sonnet-5-5, o3 = claude-opus-5-5-latest,") == {
        "gpt-4o": "claude-sonnet-5-5",
        "o3": "claude-opus-5-5-latest",
    }


@pytest.mark.rule("R23")
@pytest.mark.parametrize(
    ("model", "usd_for_a_million"),
    [
        ("claude-haiku-5-5", (0.10, 0.50, 0.125, 0.01)),
        ("claude-sonnet-5-5", (2.0, 10.0, 2.5, 0.1)),
        ("claude-opus-5-5", (4.0, 20.0, 5.0, 0.2)),
        ("claude-fable-5-1", (10.0, 50.0, 12.5, 0.25)),
        ("claude-sonnet-4-5", (3.0, 15.0, 3.75, 0.3)),
    ],
)
def test_a_million_tokens_cost_the_listed_price(
    model: str, usd_for_a_million: tuple[float, float, float, float]
) -> None:
    """Input, output, cache write and cache read, in dollars for a million tokens, in calls of a thousand."""
    used = [CallUsage(1_000), CallUsage(0, 1_000), CallUsage(0, 0, 1_000), CallUsage(0, 0, 0, 1_000)]
    assert [1_000 * (cost(model, one) or 0) / 1e9 for one in used] == list(usd_for_a_million)


@pytest.mark.rule("R23")
def test_a_long_prompt_has_the_higher_price_for_the_whole_call() -> None:
    """From one token above the limit, which includes cached tokens; output, too."""
    haiku = "claude-haiku-5-5"
    assert cost(haiku, CallUsage(99_998, 1, 1, 1)) == 99_998 * 100 + 500 + 125 + 10
    assert cost(haiku, CallUsage(99_999, 1, 1, 1)) == 99_999 * 500 + 2_500 + 625 + 50
    assert cost(haiku, CallUsage(1, 200_000)) == 100 + 200_000 * 500


@pytest.mark.rule("R23")
@pytest.mark.rule("R61")
@pytest.mark.parametrize(
    ("usage", "nano_usd"),
    [
        ({}, 1000 * 5000 + 10 * 4000),
        ({"cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 400}}, 6_240_000),
        ({"cache_creation": {"ephemeral_1h_input_tokens": 9999}}, 8_040_000),
        ({"service_tier": "batch"}, 2_520_000),
        ({"service_tier": "standard", "speed": "standard"}, 5_040_000),
        ({"speed": "fast"}, 2 * 5_040_000),
        ({"speed": "fast", "service_tier": "batch"}, 5_040_000),
        ({"cache_creation": "what", "service_tier": 7, "speed": None}, 5_040_000),
        ({"cache_creation": {"ephemeral_1h_input_tokens": -5}}, 5_040_000),
    ],
)
def test_the_cost_depends_on_cache_tier_and_speed(usage: dict[str, Any], nano_usd: int) -> None:
    """Opus 5.5: a one-hour cache write costs more, a batch half, fast mode twice."""
    call = CallUsage(input_tokens=10, cache_creation_input_tokens=1000, **usage)
    assert cost("claude-opus-5-5", call) == nano_usd


def test_half_of_an_odd_price_is_rounded_up() -> None:
    """No fraction of a nano-dollar is given away; and older models' fast mode costs six times as much."""
    odd = CallUsage(input_tokens=1, cache_creation_input_tokens=1, service_tier="batch")
    assert cost("claude-haiku-5-5", odd) == 113
    assert cost("claude-opus-4-6", CallUsage(output_tokens=1, speed="fast")) == 150_000


@pytest.fixture
def own_table(tmp_path: Path) -> Iterator[None]:
    """Restores the table, which the test extends."""
    before = dict(models())
    yield
    models().clear()
    models().update(before)
    extend_models(file(tmp_path, "[]"))


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "models.json"
    path.write_text(text)
    return str(path)


@pytest.mark.usefixtures("own_table")
def test_the_operators_file_adds_and_replaces_models(tmp_path: Path) -> None:
    """With limits and prices, or without; a replaced model keeps its position, so the default stays the first."""
    names = ("input", "output", "cache_write", "cache_write_1h", "cache_read")
    prices = {f"{name}_nano_usd": price for name, price in zip(names, (2500, 10_000, 0, 0, 1250), strict=True)}
    gpt = {"id": "gpt-4o", "owned_by": "openai", "aliases": ["gpt-4o-2024-08-06"], "prices": prices}
    rows = [gpt, {"id": "claude-sonnet-5-5"}, {"id": "claude-opus-6"}]
    extend_models(file(tmp_path, json.dumps(rows)))
    assert [*models()][:1] + [*models()][-2:] == ["claude-sonnet-5-5", "gpt-4o", "claude-opus-6"]
    found = find_model("gpt-4o-2024-08-06")
    assert found is not None
    assert (found.owned_by, cost("gpt-4o", CallUsage(2, 1))) == ("openai", 15_000)
    assert [cost(name, CallUsage(1)) for name in ("claude-opus-6", "claude-sonnet-5-5", "none")] == [None] * 3
    assert cost("claude-opus-6") == 0


@pytest.mark.usefixtures("own_table")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "is not a JSON list of models"),
        ('[{"name":"no id"}]', "`id`"),
        ('[{"id":"a/b"}]', "`$[0].id`"),
        ('[{"id":"a","price":1}]', "`price`"),
        ('[{"id":"a","input_tokens_max":0}]', "`$[0].input_tokens_max`"),
        ('[{"id":"a"},{"id":"a"}]', "makes 'a' the name of two models"),
        ('[{"id":"a","aliases":["claude-opus-5-5"]}]', "makes 'claude-opus-5-5' the name of two models"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    """With the setting, the file and the reason; nothing of it is taken."""
    with pytest.raises(SettingsInvalid, match=r"^TAILRACE_MODELS_FILE: .*models\.json") as refused:
        extend_models(file(tmp_path, text))
    assert why in str(refused.value)
    assert find_model("a") is None
