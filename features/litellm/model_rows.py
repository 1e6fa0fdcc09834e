"""Writes rows of TAILRACE_MODELS_FILE from LiteLLM's installed table of prices and limits.

.venv-litellm/bin/python -m tailrace.features.litellm.model_rows openai/gpt-4o > models.json
.venv-litellm/bin/python -m tailrace.features.litellm.model_rows --list openai
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

# Before the import, which would fetch a newer table from the internet: its prices would not be those of the lock file.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
import msgspec

from tailrace.proto.usage import NANO_USD_PER_USD

# Our feature and LiteLLM's.
FEATURES = {
    "vision": "supports_vision",
    "pdf": "supports_pdf_input",
    "tools": "supports_function_calling",
    "forced_tools": "supports_tool_choice",
    "structured_outputs": "supports_response_schema",
}
# The price of input in a prompt with more than so many thousand tokens.
LONG_INPUT = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")
# A price that changes by more than this share when it is rounded is printed.
ROUNDING_MAX = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tailrace.features.litellm.model_rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="PROVIDER/MODEL", help="models, as LiteLLM names them")
    parser.add_argument("--list", metavar="PROVIDER", help="print the names of a provider's chat models instead")
    given = parser.parse_args()
    if given.list:
        lines = sorted(name for name, info in litellm.model_cost.items() if is_chat_model_of(given.list, info))
        if not lines:
            parser.error(f"LiteLLM knows no chat model of the provider {given.list!r}")
    elif given.models:
        known = {name: find(name) for name in given.models}
        if missing := [name for name, info in known.items() if info is None]:
            parser.error(f"LiteLLM's table has no model {missing[0]!r}: see --list PROVIDER")
        rows = [build_row(name, info) for name, info in known.items() if info is not None]
        lines = [msgspec.json.format(msgspec.json.encode(rows)).decode()]
    else:
        parser.error("name a model, or a provider with --list")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def find(name: str) -> dict[str, Any] | None:
    """Returns LiteLLM's row of a model. LiteLLM lists some providers' models without the provider's name."""
    found: dict[str, Any] | None = litellm.model_cost.get(name) or litellm.model_cost.get(name.partition("/")[2])
    return found


def is_chat_model_of(provider: str, info: Mapping[str, Any]) -> bool:
    """Returns whether `info`, LiteLLM's row of a model, is of a chat model of `provider`."""
    return info.get("litellm_provider") == provider and info.get("mode") == "chat"


def build_row(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row for a model that LiteLLM calls `name`. Values that LiteLLM does not know are left out."""
    supports = {ours: info[theirs] for ours, theirs in FEATURES.items() if info.get(theirs) is not None}
    row = {
        "id": name.rpartition("/")[2],
        "owned_by": info.get("litellm_provider"),
        "input_tokens_max": info.get("max_input_tokens"),
        "output_tokens_max": info.get("max_output_tokens"),
        "prices": build_prices(name, info),
        "long_prompt": build_long_prompt(name, info),
        "supports": supports or None,
    }
    return {field: value for field, value in row.items() if value is not None}


def build_prices(name: str, info: Mapping[str, Any], suffix: str = "") -> dict[str, int] | None:
    """Returns nano-dollars per token, or None if a price is unknown. Fields of `info` with `suffix` come first.

    Without a price for the cache, the price of input applies. Prints a warning if a price is no
    whole number of nano-dollars.
    """

    def find_price(field: str) -> float | None:
        price: float | None = info.get(f"{field}{suffix}")
        return info.get(field) if price is None else price

    of_input, of_output = find_price("input_cost_per_token"), find_price("output_cost_per_token")
    if of_input is None or of_output is None:
        return None
    of_write = find_price("cache_creation_input_token_cost") or of_input
    usd = {
        "input_nano_usd": of_input,
        "output_nano_usd": of_output,
        "cache_read_nano_usd": find_price("cache_read_input_token_cost") or of_input,
        "cache_write_nano_usd": of_write,
        "cache_write_1h_nano_usd": find_price("cache_creation_input_token_cost_above_1hr") or of_write,
    }
    prices = {field: round(price * NANO_USD_PER_USD) for field, price in usd.items()}
    for field, price in usd.items():
        exact = price * NANO_USD_PER_USD
        if abs(prices[field] - exact) > ROUNDING_MAX * exact:
            sys.stderr.write(f"warning: {name}: {field} is {exact:g}; it is rounded to {prices[field]}\n")
    return prices


def build_long_prompt(name: str, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the prices of long prompts, which apply to a whole call; None without. The lowest threshold counts."""
    limits = [int(found[1]) for field in info if (found := LONG_INPUT.fullmatch(field)) is not None]
    if not limits:
        return None
    prices = build_prices(name, info, f"_above_{min(limits)}k_tokens")
    return None if prices is None else {"over_tokens": min(limits) * 1000, "prices": prices}


if __name__ == "__main__":
    sys.exit(main())
