"""What a turn has used, in tokens, and the unit of what that cost: whole nano-dollars. Prices are in models.py.

A nano-dollar is 1e-9 $. The cheapest price (0.10 $ for a million tokens) is 100 of them a token, so integers are exact.
"""

import msgspec


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens, under Anthropic's names."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
        )


# Anthropic's glossary: "a token approximately represents 3.5 English characters". In whole numbers, 2 tokens for 7.
TOKENS, CHARS = 2, 7


def estimated(counted: Usage, said_chars: int) -> Usage:
    """The usage of a call that broke off `said_chars` characters after the model last counted its output.

    What was said was paid for, and the model is not there any more to say how much it was.
    """
    output_tokens = max(counted.output_tokens, -(-said_chars * TOKENS // CHARS))
    return msgspec.structs.replace(counted, output_tokens=output_tokens)


NUSD_PER_USD = 1_000_000_000
