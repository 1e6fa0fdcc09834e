"""The table of models: names, limits, prices and supported features, from models.json and the operator's own file.

Source: Anthropic's pages (platform.claude.com: models, model deprecations, pricing, effort, thinking; November 2026).
A value that these pages do not give is missing in models.json, and None in a `Model`. Prices are in whole nano-dollars
per token.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid

# Names of Anthropic's models, including those that are newer than the table.
LIKE_CLAUDE = re.compile(r"claude-[a-z0-9][a-z0-9.-]{0,56}")

Price = Annotated[int, Meta(ge=0)]
Tokens = Annotated[int, Meta(ge=1)]


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nano-dollars per token. `cache_write` is for five minutes, `cache_write_1h` for one hour."""

    input_nano_usd: Price
    output_nano_usd: Price
    cache_write_nano_usd: Price
    cache_write_1h_nano_usd: Price
    cache_read_nano_usd: Price


class LongPromptPrices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prices of a whole call whose prompt, cached tokens included, has more than `over_tokens` tokens."""

    over_tokens: int
    prices: Prices


class Supports(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Features that a model supports. None: unknown."""

    vision: bool | None = None
    """Whether it reads images."""
    pdf: bool | None = None
    """Whether it reads PDF files."""
    citations: bool | None = None
    """Whether it cites documents."""
    tools: bool | None = None
    """Whether it calls tools."""
    forced_tools: bool | None = None
    """Whether `tool_choice` may be `any` or `tool`."""
    structured_outputs: bool | None = None
    """Whether its API enforces a JSON Schema."""
    sampling: bool | None = None
    """Whether it supports `temperature`, `top_p` and `top_k`."""
    prefill: bool | None = None
    """Whether it continues a last message of role `assistant`."""
    thinking: tuple[str, ...] | None = None
    """The supported values of `thinking.type`."""
    effort: tuple[str, ...] | None = None
    """The supported values of `output_config.effort`."""
    server_tools: tuple[str, ...] | None = None
    """The tools that the API executes for it, of `web_search` and `code_execution`."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of the table. Limits and prices that are None are unknown."""

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")]
    name: str = ""
    owned_by: str = "anthropic"
    aliases: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    """Names of retired models. Anthropic's page names this model as their replacement."""
    line: str = ""
    released: date | None = None
    lifecycle: Literal["active", "deprecated"] = "active"
    retires: date | None = None
    input_tokens_max: Tokens | None = None
    output_tokens_max: Tokens | None = None
    prices: Prices | None = None
    long_prompt: LongPromptPrices | None = None
    fast_times: int | None = None
    """The price factor of a call with `speed: fast`; None: unknown, also if the model lacks this speed."""
    checks_thinking: bool = True
    """Whether the API checks that nothing before a thinking block has changed (PROTOCOL R140). Anthropic's page "Prefix
    checks on thinking blocks" lists the models; "Preserved thinking" says that later models will check it, too.
    """
    supports: Supports = Supports()


@cache
def models() -> dict[str, Model]:
    """Returns all models by id, the default model first."""
    return dict(_load_built_in())


@cache
def _load_built_in() -> dict[str, Model]:
    text = files("tailrace.proto").joinpath("models.json").read_bytes()
    return {model.id: model for model in msgspec.json.decode(text, type=list[Model])}


@cache
def _by_name() -> dict[str, Model]:
    return {name: model for model in models().values() for name in (model.id, *model.aliases)}


@cache
def _by_replaced_name() -> dict[str, Model]:
    return {name: model for model in models().values() for name in model.replaces}


def is_built_in(model: Model) -> bool:
    """Returns whether the row is Tailrace's own, and not from the operator's file."""
    return _load_built_in().get(model.id) == model


def find_model(name: str) -> Model | None:
    """Returns the model with this id or alias, or None."""
    return _by_name().get(name)


def model_label(name: str) -> str:
    """Returns the id of a model in the table; `other` for other names: clients may send any, but labels are bounded."""
    found = find_model(name)
    return "other" if found is None else found.id


def resolve_model(name: str, aliases: Mapping[str, str]) -> Model | None:
    """Returns the model for a client's `name`, or None.

    `name` is a model's id or alias, a name that the operator configured in `aliases`, or the name of a retired model,
    for which its replacement is returned.
    """
    return find_model(name) or find_model(aliases.get(name, "")) or _by_replaced_name().get(name)


def newest_of_line(name: str, offered: Iterable[Model]) -> Model | None:
    """Returns the first model of a line by the line's name: `opus`, `claude-opus-latest`. The newest is first."""
    line = name.removeprefix("claude-").removesuffix("-latest")
    return next((model for model in offered if line and model.line == line), None)


def extend_models(path: str) -> None:
    """Adds the models of the operator's file to the table. Called once, while the process starts.

    The file is a JSON list of rows as in models.json; only `id` is required. A row with the id of a known model
    replaces it. Raises SettingsInvalid.
    """
    if not path:
        return
    try:
        rows = msgspec.json.decode(Path(path).read_bytes(), type=list[Model])
    except (OSError, *DECODE_ERRORS) as error:
        raise SettingsInvalid(f"TAILRACE_MODELS_FILE: {path} is not a JSON list of models: {error}") from error
    own = {row.id: row for row in rows}
    table = [*(row for row in models().values() if row.id not in own), *rows]
    names = Counter(name for row in table for name in (row.id, *row.aliases, *row.replaces))
    if twice := [name for name, times in names.items() if times > 1]:
        raise SettingsInvalid(f"TAILRACE_MODELS_FILE: {path} makes {twice[0]!r} the name of two models")
    models().update(own)
    _by_name.cache_clear()
    _by_replaced_name.cache_clear()


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
