"""Anthropic's streaming vocabulary, as far as a fold or a dialect looks into it; the rest passes through unread.

Source: Anthropic's docs, "Streaming Messages". `ping` and `message_stop` are never stored: a heartbeat is the reader's
own business, and the turn's `end` says what `message_stop` would (PROTOCOL R6).
"""

from typing import Annotated, Any, TypeVar

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.usage import CallUsage, Usage

U = TypeVar("U", bound=Usage)

# No call has used so many tokens. What sums of them cost has to stay within 64 bits, which is what a database can hold.
COUNT_MAX = 2**32
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class MessageHead(msgspec.Struct, frozen=True):
    """What `message_start` says of the message to come."""

    id: str = ""
    model: str = ""
    usage: CallUsage = CallUsage()

    def __post_init__(self) -> None:
        # Not the bounds of Usage itself: that is also what a turn's sum is told in, and sums have no such bound.
        if not all(0 <= count <= COUNT_MAX for count in self.usage.counts):
            raise ValueError("no count of tokens")


def require_shallow(value: dict[str, Any]) -> None:
    # Up to three are around it: entry, event, delta. Deeper, it could be decoded and then not be encoded any more.
    if is_deeper(value, LEVELS_MAX - 3):
        raise ValueError(f"nested more than {LEVELS_MAX} levels deep")


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: MessageHead


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: dict[str, Any]

    def __post_init__(self) -> None:
        require_shallow(self.content_block)


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


class CitationsDelta(msgspec.Struct, frozen=True, tag="citations_delta"):
    citation: dict[str, Any]

    def __post_init__(self) -> None:
        require_shallow(self.citation)


Delta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta | CitationsDelta


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: Delta


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class StopReason(msgspec.Struct, frozen=True):
    stop_reason: str | None = None
    stop_sequence: str | None = None


class UsageSoFar(msgspec.Struct, frozen=True):
    """The counts of one call until now; a count that is not named has not changed."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None

    def over(self, before: U) -> U:
        named = {name: count for name, count in msgspec.structs.asdict(self).items() if count is not None}
        return msgspec.structs.replace(before, **named)


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: StopReason
    usage: UsageSoFar = UsageSoFar()


class UnknownEvent(msgspec.Struct, frozen=True):
    """An event, or a delta, that this version does not know: kept, passed on, not looked into."""


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_fields = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()


def decode(raw: bytes | msgspec.Raw) -> Event | UnknownEvent:
    """The event in `raw`; `Other` when its kind, or its delta's, is newer than this version, or cannot be read."""
    try:
        return _decoder.decode(raw)
    except DECODE_ERRORS:
        return UnknownEvent()


def fits_block(delta: Delta, block_type: str) -> bool:
    """Whether a block of that type can say `delta`."""
    match delta:
        case TextDelta() | CitationsDelta():
            return block_type == "text"
        case ThinkingDelta() | SignatureDelta():
            return block_type == "thinking"
        case InputJsonDelta():
            return block_type.endswith("tool_use")


def encode(event: Event) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(event))


def join_deltas(first: Event | UnknownEvent, second: Event | UnknownEvent) -> BlockDelta | None:
    """The one delta that says what `first` and then `second` say; None when they do not join."""
    match first, second:
        case BlockDelta(i, TextDelta(a)), BlockDelta(j, TextDelta(b)) if i == j:
            return BlockDelta(i, TextDelta(a + b))
        case BlockDelta(i, ThinkingDelta(a)), BlockDelta(j, ThinkingDelta(b)) if i == j:
            return BlockDelta(i, ThinkingDelta(a + b))
        case BlockDelta(i, InputJsonDelta(a)), BlockDelta(j, InputJsonDelta(b)) if i == j:
            return BlockDelta(i, InputJsonDelta(a + b))
        case _:
            return None


def envelope(raw: bytes | msgspec.Raw) -> dict[str, Any]:
    """What a message says of itself that no field here holds: `container`, `context_management`, further counts…

    It has the shape of a `message_delta`, which tells most of it; the rest stands in the usage of `message_start`.
    Empty for other events, and for what cannot be read beside the fields that this version knows.
    """
    told: dict[str, Any] = {}
    try:
        fields = _fields.decode(raw)
    except DECODE_ERRORS:
        return {}
    match fields:
        case {"type": "message_start", "message": {"usage": dict(usage)}}:
            told = {"usage": _besides(usage, Usage.__struct_fields__)}
        case {"type": "message_delta", "delta": dict(delta), "usage": dict(usage), **rest}:
            told = _besides(rest, ()) | {
                "delta": _besides(delta, StopReason.__struct_fields__),
                "usage": _besides(usage, Usage.__struct_fields__),
            }
    return {} if is_deeper(told, LEVELS_MAX - 3) else {name: it for name, it in told.items() if it != {}}


def _besides(told: dict[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: it for name, it in told.items() if name not in names and it is not None}
