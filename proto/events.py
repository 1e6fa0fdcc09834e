"""Anthropic's streaming events: the fields that the fold and the dialects read. Other fields pass through unchanged.

Source: Anthropic's docs, "Streaming Messages". `ping` and `message_stop` are never stored: each connection has its own
heartbeat, and the turn's `end` replaces `message_stop` (PROTOCOL R6).
"""

from functools import lru_cache
from typing import Annotated, Any, get_args

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.usage import COUNT_MAX, CallUsage, Usage

# Stored as a hidden event by a generator that gives a turn back because it stops (PROTOCOL R73).
HANDOVER = msgspec.Raw(b'{"type":"handover"}')


class Wait(msgspec.Struct, frozen=True, tag="wait"):
    """Stored as a hidden event by a generator that waits because it cannot connect to a model (PROTOCOL R135)."""

    obstacle: str
    """The obstacle to the connection, in a few words without names: `no such host`."""


# The stop reason of a paused answer: the model goes on when it gets the answer back as the last message.
PAUSE = "pause_turn"

Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class MessageHead(msgspec.Struct, frozen=True):
    """The `message` of a `message_start` event."""

    id: str = ""
    model: str = ""
    usage: CallUsage = CallUsage()

    def __post_init__(self) -> None:
        # Not in Usage itself, which also holds a turn's sum: sums have no such bound.
        if not all(0 <= count <= COUNT_MAX for count in self.usage.counts):
            raise ValueError(f"token counts must be from 0 to {COUNT_MAX}")


def require_shallow(value: dict[str, Any], around: int) -> None:
    """Raises ValueError if `value`, with the levels `around` it in the turn's `end`, exceeds LEVELS_MAX.

    A deeper value could be decoded but not encoded again. An `end` has more levels around `value` than the event.
    """
    if is_deeper(value, LEVELS_MAX - around):
        raise ValueError(f"nested more than {LEVELS_MAX} levels deep")


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: MessageHead


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: dict[str, Any]

    def __post_init__(self) -> None:
        require_shallow(self.content_block, around=3)


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta", omit_defaults=True):
    thinking: str
    estimated_tokens: Any = msgspec.UNSET
    """By how many tokens a progress indicator of hidden thinking grows, or null. Clients add up the values of a block.

    Source: `BetaThinkingDelta` of Anthropic's SDK. Any: a value of an unexpected type is passed on.
    """


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


class CitationsDelta(msgspec.Struct, frozen=True, tag="citations_delta"):
    citation: dict[str, Any]

    def __post_init__(self) -> None:
        require_shallow(self.citation, around=4)


Delta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta | CitationsDelta
KNOWN_DELTAS = frozenset(str(delta.__struct_config__.tag) for delta in get_args(Delta))
# Values that mean something only as a whole: a later one replaces the earlier one.
OPAQUE_FIELDS = frozenset({"signature", "encrypted_content"})


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: Delta


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class StopReason(msgspec.Struct, frozen=True, omit_defaults=True):
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: Any = None
    """The category in it decides whether a refusal is billed. The envelope has this field, too."""


class UsageSoFar(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of a call's usage so far on which its price depends: see CallUsage. None: unchanged."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None

    cache_creation: Any = None
    service_tier: Any = None
    speed: Any = None
    inference_geo: Any = None
    server_tool_use: Any = None
    iterations: Any = None
    fallback_credit: Any = None

    def merge_into(self, before: CallUsage) -> CallUsage:
        """Returns `before` with the fields that are set here."""
        named = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(before, **named)


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: StopReason
    usage: UsageSoFar = UsageSoFar()


class UnknownEvent(msgspec.Struct, frozen=True):
    """An event that this version does not know, which is stored and passed on unread."""


class OtherDelta(UnknownEvent, frozen=True):
    """A delta of a type without a Struct here, for example `compaction_delta`, or of a type that is newer than this
    version. `merge_fields` says what such a delta adds to its block.
    """

    index: int
    delta: dict[str, Any]

    def __post_init__(self) -> None:
        require_shallow(self.delta, around=3)


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_wait = msgspec.json.Decoder(Wait)
_fields = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()


decode_strictly = _decoder.decode
"""Decodes an event of a known type. Raises one of DECODE_ERRORS."""


def decode(raw: bytes | msgspec.Raw) -> Event | UnknownEvent:
    """Decodes the event in `raw`. Returns UnknownEvent if its type is not known or it cannot be decoded."""
    try:
        return _decoder.decode(raw)
    except DECODE_ERRORS:
        return _decode_other(raw)


def _decode_other(raw: bytes | msgspec.Raw) -> UnknownEvent:
    try:
        match _fields.decode(raw):
            case {"type": "content_block_delta", "index": int(index), "delta": {"type": str(kind)} as delta}:
                return UnknownEvent() if kind in KNOWN_DELTAS else OtherDelta(index, delta)
    except (*DECODE_ERRORS, ValueError):
        pass
    return UnknownEvent()


def encode_wait(obstacle: str) -> msgspec.Raw:
    """Returns the JSON of a Wait."""
    return msgspec.Raw(msgspec.json.encode(Wait(obstacle)))


def decode_wait(raw: bytes | msgspec.Raw) -> Wait | None:
    """Returns the Wait in `raw`, the content of a hidden event; None for any other event."""
    try:
        return _wait.decode(raw)
    except DECODE_ERRORS:
        return None


def merge_fields(before: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a content block after a delta of a type that no Struct declares.

    All deltas of Anthropic's API but those of citations and of a tool's input follow this rule: a string or list is
    appended to the field of its name, null changes nothing, and any other value replaces the field. Opaque values are
    whole in each delta (`signature`, `encrypted_content`: the SDK's accumulators, anthropic 2.14.0).
    """
    merged = dict(before)
    for name, value in delta.items():
        match merged.get(name), value:
            case _ if name == "type" or value is None:
                continue
            case (str(old), str(more)) if name not in OPAQUE_FIELDS:
                merged[name] = old + more
            case list(old), list(more):
                merged[name] = [*old, *more]
            case _:
                merged[name] = value
    return merged


@lru_cache(128)
def fits_block(delta: type[Delta], block_type: str) -> bool:
    """Returns whether a delta of this type may occur in a content block of type `block_type`."""
    if delta in (TextDelta, CitationsDelta):
        return block_type == "text"
    return block_type == "thinking" if delta in (ThinkingDelta, SignatureDelta) else is_tool_use(block_type)


def is_tool_use(block_type: str) -> bool:
    """Returns whether blocks of this type are tool calls, whose input comes in deltas of partial JSON."""
    return block_type.endswith("tool_use")


def opening_text(block: dict[str, Any]) -> tuple[str, str]:
    """Returns the text and the signature that a content block has at its start: usually none, deltas bring them.

    A `message_start` may have whole blocks (programmatic tool calling): each of them becomes such a start.
    """
    match block:
        case {"type": "text", "text": str(text)}:
            return text, ""
        case {"type": "thinking", **fields}:
            return str(fields.get("thinking") or ""), str(fields.get("signature") or "")
    return "", ""


def encode(event: Event) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(event))


def join_deltas(first: Event | UnknownEvent, second: Event | UnknownEvent) -> BlockDelta | None:
    """Returns one delta equal to `first` followed by `second`, or None if they cannot be joined."""
    match first, second:
        case BlockDelta(i, TextDelta(a)), BlockDelta(j, TextDelta(b)) if i == j:
            return BlockDelta(i, TextDelta(a + b))
        case BlockDelta(i, ThinkingDelta(a, m)), BlockDelta(j, ThinkingDelta(b, n)) if i == j:
            tokens = _add_increments(m, n)
            return None if tokens is None else BlockDelta(i, ThinkingDelta(a + b, tokens[0]))
        case BlockDelta(i, InputJsonDelta(a)), BlockDelta(j, InputJsonDelta(b)) if i == j:
            return BlockDelta(i, InputJsonDelta(a + b))
        case _:
            return None


def _add_increments(first: Any, second: Any) -> tuple[Any] | None:
    """Returns the sum of two `estimated_tokens`, each of which may be null or absent; None if one is something else."""
    counts = [count for count in (first, second) if count is not msgspec.UNSET]
    if not all(count is None or type(count) is int for count in counts):
        return None
    numbers = [count for count in counts if count is not None]
    if numbers:
        return (sum(numbers),)
    return (None if counts else msgspec.UNSET,)


class _PlainTextDelta(msgspec.Struct, tag="text_delta", forbid_unknown_fields=True):
    text: Any


class _PlainThinkingDelta(msgspec.Struct, tag="thinking_delta", forbid_unknown_fields=True):
    thinking: Any
    estimated_tokens: Any = None


class _PlainInputJsonDelta(msgspec.Struct, tag="input_json_delta", forbid_unknown_fields=True):
    partial_json: Any


class _PlainBlockDelta(msgspec.Struct, tag="content_block_delta", forbid_unknown_fields=True):
    index: Any
    delta: _PlainTextDelta | _PlainThinkingDelta | _PlainInputJsonDelta


_plain_decoder = msgspec.json.Decoder(_PlainBlockDelta)


def is_plain_delta(raw: bytes | msgspec.Raw) -> bool:
    """Returns whether a delta has only the fields that `join_deltas` joins. Other fields would be lost in the join."""
    try:
        _plain_decoder.decode(raw)
    except DECODE_ERRORS:
        return False
    return True


# The fields of a `message_start` that a turn has anyway, or gets from its other events.
MESSAGE_FIELDS = ("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage")


def envelope(raw: bytes | msgspec.Raw) -> dict[str, Any]:
    """Returns the fields of a message that no Struct here declares: `container`, `context_management`, other counts…

    The result has the shape of a `message_delta`, which has most of these fields. Those of `message_start` are in
    `message`, except its usage, which is in `usage`. Empty for other events and for undecodable fields.
    """
    extra: dict[str, Any] = {}
    try:
        fields = _fields.decode(raw)
    except DECODE_ERRORS:
        return {}
    match fields:
        case {"type": "message_start", "message": dict(message)}:
            usage = message.get("usage")
            extra = {
                "message": _drop_fields(message, MESSAGE_FIELDS),
                "usage": _drop_fields(usage, Usage.__struct_fields__) if isinstance(usage, dict) else {},
            }
        case {"type": "message_delta", "delta": dict(delta), "usage": dict(usage), **rest}:
            extra = _drop_fields(rest, ()) | {
                "delta": _drop_fields(delta, ("stop_reason", "stop_sequence")),
                "usage": _drop_fields(usage, Usage.__struct_fields__),
            }
    return {} if is_deeper(extra, LEVELS_MAX - 3) else {name: value for name, value in extra.items() if value != {}}


def _drop_fields(fields: dict[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names and value is not None}
