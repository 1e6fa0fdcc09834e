"""The five kinds of entry of a turn's log, as they are stored. They are data: what they add up to is `fold`'s.

The kind is the last token of the subject; the payload is JSON. Every entry carries `prev`, the sequence of the last
valid entry before it, and (all but the request) `attempt`, the number of the attempt that it belongs to.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, TurnId
from tailrace.proto.usage import Usage

OnInterrupt = Literal["continue", "restart", "fail"]
Mode = Literal["fresh", "continue", "restart"]
CacheFor = Literal["auto", "5m", "1h"]
Outcome = Literal["completed", "cancelled", "failed"]
Via = Literal["messages", "message_batches"]
"""Which of Anthropic's APIs answers."""

# The backend of an attempt that is the same whoever writes it, for its name is the message batch's (PROTOCOL R67).
MESSAGE_BATCHES = "message_batches"


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation, in Anthropic's shape."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class Reservation(msgspec.Struct, frozen=True):
    """A counter that an `amount` was added to for the turn, or a slot that it has: then that is its sequence."""

    subject: str
    unit: Literal["tokens", "nusd", "slot"]
    amount: int


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a batch asks: `count` requests, a line each, in the blob of that name; at most `parallel` run at once."""

    sha256: str
    bytes: int
    count: int
    parallel: int
    blobs: list[str] | None = None
    """The SHA-256 of each blob that its requests refer to."""


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asked what: everything that a generator needs, so that it needs no database."""

    prev: Seq = BEFORE_FIRST
    model: str
    max_tokens: int
    messages: list[Message]
    history: int = 0
    """How many of `messages` come from the session's earlier turns."""
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] | None = None
    """Further fields of Anthropic's Messages API, as they were given: `thinking`, `tool_choice`, `stop_sequences`…"""
    betas: list[str] | None = None
    """The values of `anthropic-beta` that the call is made with."""
    api_version: str | None = None
    """The value of `anthropic-version` that the call is made with; None: the generator's own."""
    session: SessionId
    parent: TurnId | None = None
    project: str | None = None
    metadata: dict[str, str] | None = None
    cache: CacheFor | None = None
    """How long the model is to keep the prompt; `auto`: five minutes, if it is long enough to be kept."""
    on_interrupt: OnInterrupt = "continue"
    on_disconnect: str = "continue"
    by: str | None = None
    """The name of the credential that asked, which is no secret."""
    max_cost_nano_usd: int | None = msgspec.field(default=None, name="max_cost_nusd")
    """What the answer may cost: it is closed when it has."""
    holds: list[Reservation] | None = None
    """What limits have counted for this turn before it was asked, by an estimate: settled once it has ended."""
    webhook: str | None = None
    """The URL that is told of the turn's end."""
    batch: Batch | None = None
    """The turn asks no model: it has these asked, each as a turn of its own, and ends when they have."""
    via: Via = "messages"
    """With `message_batches`, of a batch and of each of its turns: whoever carries the batch writes their answers."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A generator has taken the turn. Later attempts have higher numbers; older ones have lost it."""

    prev: Seq
    attempt: int
    generator: str
    backend: str
    mode: Mode
    misfit: str | None = None
    """Why the answer before it, which was whole, did not fit its schema: the model is told so, and asked again."""
    is_hedge: bool = False
    """Its call was made beside that of the attempt before it, and had a token first."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of Anthropic's streaming vocabulary, as it came or joined from several.

    `is_hidden` marks a continuation's `message_start`: it counts for the usage and is not shown to any reader.
    `left_out` counts the characters that a continuation has said before it and that are not told at all.
    """

    prev: Seq
    attempt: int
    event: msgspec.Raw
    is_hidden: bool = False
    left_out: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a batch has come: `done` of its turns are completed, `failed` have ended otherwise."""

    prev: Seq
    attempt: int
    done: int
    failed: int
    of: int
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    """Of those that have ended."""
    message_batch: str | None = None
    """The id under which Anthropic's Message Batches have it."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a turn failed: a code of proto.errors.CODES, a sentence for a person, and when asking again may help."""

    code: str
    message: str
    retry_after_s: float | None = None


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last entry. Its count and hash of the text let a reader, the log and SQLite be proved equal."""

    prev: Seq
    attempt: int
    outcome: Outcome
    stop_reason: str | None = None
    stop_sequence: str | None = None
    envelope: dict[str, Any] | None = None
    """What the model's `message_delta` said besides, and its usage besides these counts, as they were given."""
    usage: Usage = Usage()
    usage_is_estimated: bool = False
    """A call broke off before the model had counted its output."""
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    schema_valid: bool | None = msgspec.field(default=None, name="fits")
    """Whether the answer is valid by the turn's JSON Schema; None: it has no schema, or it could not be checked."""
    error: Failure | None = None
    text_chars: int
    """Unicode code points in the answer's text blocks."""
    text_sha256: str


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a kind that is newer than this version: a link of the chain, nothing else."""

    prev: Seq
    attempt: int


class Unreadable(msgspec.Struct, frozen=True):
    """A payload that is not what its kind says. Never valid (PROTOCOL R11)."""

    prev: Seq = Seq(-1)


Entry = Request | Attempt | Event | Progress | End | Unknown | Unreadable

KINDS: dict[type, str] = {
    Request: "request",
    Attempt: "attempt",
    Event: "event",
    Progress: "progress",
    End: "end",
}


class Stored(msgspec.Struct, frozen=True):
    """An entry as the log holds it: with its sequence, and the time at which the server stored it (UTC)."""

    seq: Seq
    at: datetime
    entry: Entry


_encoder = msgspec.json.Encoder()
_decoders: dict[str, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(shape) for shape, kind in KINDS.items()}
_unknown: msgspec.json.Decoder[Unknown] = msgspec.json.Decoder(Unknown)


def kind_of(entry: Entry) -> str:
    return KINDS[type(entry)]


def encode(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def decode(kind: str, payload: bytes) -> Entry:
    """The entry in `payload`: the kind first, then the body, so that newer kinds pass through older readers."""
    try:
        entry: Entry = _decoders.get(kind, _unknown).decode(payload)
    except DECODE_ERRORS:
        return Unreadable()
    return entry
