"""What a turn has used, in tokens, and the unit of what that cost: whole nano-dollars. Prices are in models.py.

A nano-dollar is 1e-9 $. The cheapest price (0.10 $ for a million tokens) is 100 of them a token, so integers are exact.
"""

from typing import Any

import msgspec


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens, under Anthropic's names."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    @property
    def counts(self) -> tuple[int, ...]:
        return (
            self.input_tokens,
            self.output_tokens,
            self.cache_creation_input_tokens,
            self.cache_read_input_tokens,
        )

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
        )


class CallUsage(Usage, frozen=True, omit_defaults=True):
    """Of one call, with what else Anthropic's `usage` object says that its price depends on.

    Not told in a turn's sum, and anything may stand there: what cannot be read says nothing.
    """

    cache_creation: Any = None
    """How much of `cache_creation_input_tokens` is kept for how long."""
    service_tier: Any = None
    speed: Any = None

    @property
    def cache_creation_1h_input_tokens(self) -> int:
        told = self.cache_creation.get("ephemeral_1h_input_tokens") if isinstance(self.cache_creation, dict) else None
        return min(max(told, 0), self.cache_creation_input_tokens) if isinstance(told, int) else 0

    @property
    def is_batch(self) -> bool:
        return bool(self.service_tier == "batch")

    @property
    def is_fast(self) -> bool:
        return bool(self.speed == "fast")


# Anthropic's glossary: "a token approximately represents 3.5 English characters". In whole numbers, 2 tokens for 7.
ESTIMATE_TOKENS, ESTIMATE_CHARS = 2, 7


def estimate_usage(counted: CallUsage, said_chars: int) -> CallUsage:
    """The usage of a call that broke off `said_chars` characters after the model last counted its output.

    What was said was paid for, and the model is not there any more to say how much it was.
    """
    output_tokens = max(counted.output_tokens, -(-said_chars * ESTIMATE_TOKENS // ESTIMATE_CHARS))
    return msgspec.structs.replace(counted, output_tokens=output_tokens)


NANO_USD_PER_USD = 1_000_000_000
