"""Token counts of a turn and of a single call. Costs are whole nano-dollars; prices are in models.py.

A nano-dollar is 1e-9 $. The lowest price (0.01 $ per million tokens read from a cache) is 10 nano-dollars a token:
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


class ModelUsage(Usage, frozen=True, kw_only=True, omit_defaults=True):
    """The billed tokens of one model, and their cost with the server tools that it used."""

    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    """The cost of these tokens and server tools, in billionths of a dollar."""
    cost_is_unknown: bool = False
    """Whether a part of the cost is unknown; `cost_nusd` is the known rest."""

    def plus(self, other: "ModelUsage") -> "ModelUsage":
        """Returns the sum of both."""
        return ModelUsage(
            *map(sum, zip(self.counts, other.counts, strict=True)),
            cost_nano_usd=self.cost_nano_usd + other.cost_nano_usd,
            cost_is_unknown=self.cost_is_unknown or other.cost_is_unknown,
        )


class CallContext(msgspec.Struct, frozen=True):
    """The facts about the model that answered, and about the bill, that a call's events have outside of `usage`."""

    model: str = ""
    """The model that `message_start` names; "" if it names none."""
    served_by: str = ""
    """The model that answers after the last block of type `fallback`; "" without one."""
    declines: tuple[tuple[str, str], ...] = ()
    """The model and the category of each refusal that led to another model, from the blocks of type `fallback`."""
    refusal: str | None = None
    """The category of the refusal that the call ended with, "" for a refusal without one; None: it was no refusal."""


NO_CONTEXT = CallContext()


class CallUsage(Usage, frozen=True, omit_defaults=True):
    """Token counts of one call, with the other fields of Anthropic's `usage` object on which the price depends.

    The counts of the object's top level lack some billed tokens, which proto/pricing.py adds. The fields are Any,
    because unexpected values are ignored. They are not part of a turn's sum.
    """

    input_tokens: ReportedCount = 0
    output_tokens: ReportedCount = 0
    cache_creation_input_tokens: ReportedCount = 0
    cache_read_input_tokens: ReportedCount = 0
    cache_creation: Any = None
    """Splits `cache_creation_input_tokens` by cache lifetime."""
    service_tier: Any = None
    speed: Any = None
    inference_geo: Any = None
    server_tool_use: Any = None
    """How often each server tool was used."""
    iterations: Any = None
    """The usage of each step of the call: answers, compactions, other models."""
    fallback_credit: Any = None
    # Not of the `usage` object, which has no field of this name.
    context: CallContext = msgspec.field(default=NO_CONTEXT, name="(context)")

    def __post_init__(self) -> None:
        for name in Usage.__struct_fields__:
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, 0)


# More than any call uses. The cost of sums of such counts fits in 64 bits, the database's largest integer.
COUNT_MAX = 2**32


def read_count(value: object) -> int:
    """Returns a count of a `usage` object; 0 for a value that is no count."""
    return value if type(value) is int and 0 <= value <= COUNT_MAX else 0


def one_hour_tokens(split: object, written: int) -> int:
    """Returns how many of the `written` tokens went to the one-hour cache by `split`, a field `cache_creation`.

    A call with several steps has the split of its first step. If only the one-hour cache was written there, the tokens
    that the split leaves out were written there, too: a call's marks of both lifetimes show in its first step.
    """
    if not isinstance(split, dict):
        return 0
    tokens = min(read_count(split.get("ephemeral_1h_input_tokens")), written)
    return written if tokens and not read_count(split.get("ephemeral_5m_input_tokens")) else tokens


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
