"""Token counts of a turn and of a single call. Costs are whole nano-dollars; prices are in models.py.

A nano-dollar is 1e-9 $. The lowest price (0.01 $ per million tokens that a cache has) is 10 nano-dollars a token:
integers are exact.
"""

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    ReportedCount = int
else:
    # Anthropic's SDK declares the counts of the cache Optional. CallUsage replaces null by 0.
    ReportedCount = int | None


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token counts under Anthropic's names."""

    input_tokens: int = 0
    """Input tokens that no cache had."""
    output_tokens: int = 0
    """Output tokens."""
    cache_creation_input_tokens: int = 0
    """Input tokens that were written to the cache."""
    cache_read_input_tokens: int = 0
    """Input tokens that were read from the cache."""

    @property
    def counts(self) -> tuple[int, ...]:
        """The four counts of tokens, in the order of the fields."""
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
    """Token counts of one call, with the other fields of Anthropic's `usage` object that its price depends on.

    The fields are Any: values of an unexpected type are ignored. They are not part of a turn's sum.
    """

    input_tokens: ReportedCount = 0
    output_tokens: ReportedCount = 0
    cache_creation_input_tokens: ReportedCount = 0
    cache_read_input_tokens: ReportedCount = 0
    cache_creation: Any = None
    """Splits `cache_creation_input_tokens` by cache lifetime."""
    service_tier: Any = None
    speed: Any = None

    def __post_init__(self) -> None:
        for name in Usage.__struct_fields__:
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, 0)

    @property
    def cache_creation_1h_input_tokens(self) -> int:
        """Tokens written to the one-hour cache, which cost more; 0 if the model has not reported them."""
        tokens = self.cache_creation.get("ephemeral_1h_input_tokens") if isinstance(self.cache_creation, dict) else None
        return min(max(tokens, 0), self.cache_creation_input_tokens) if isinstance(tokens, int) else 0

    @property
    def is_batch(self) -> bool:
        return bool(self.service_tier == "batch")

    @property
    def is_fast(self) -> bool:
        return bool(self.speed == "fast")


# Anthropic's glossary: "a token approximately represents 3.5 English characters". In whole numbers, 2 tokens for 7. In
# other languages, a character is more tokens, but it also has more bytes of UTF-8: a Chinese one has three.
ESTIMATE_TOKENS, ESTIMATE_BYTES = 2, 7
PIECE_CHARS = 256 * 1024


def utf8_bytes(text: str) -> int:
    """Returns how many bytes `text` has in UTF-8; three for a lone surrogate."""
    if text.isascii():
        return len(text)
    # In pieces: a thread holds the interpreter lock while it encodes one.
    pieces = (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))
    return sum(len(piece.encode(errors="surrogatepass")) for piece in pieces)


def estimate_tokens(text_bytes: int) -> int:
    """Returns about how many tokens a text of `text_bytes` bytes has."""
    return -(-text_bytes * ESTIMATE_TOKENS // ESTIMATE_BYTES)


def estimate_usage(counted: CallUsage, output_bytes: int) -> CallUsage:
    """Returns the usage of a call that broke off `output_bytes` of text after the model last reported its usage.

    The provider bills the output so far, but its final count was never received.
    """
    output_tokens = max(counted.output_tokens, estimate_tokens(output_bytes))
    return msgspec.structs.replace(counted, output_tokens=output_tokens)


NANO_USD_PER_USD = 1_000_000_000
