"""The entries of a turn's log as they are stored: request, attempt, event, progress, end.

The kind is the last token of the subject; the payload is JSON. Every entry has `prev`, the sequence of the last valid
entry before it, and (except the request) `attempt`, the number of the attempt that it belongs to. `fold` computes a
turn from its entries.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, TurnId
from tailrace.proto.usage import NANO_USD_PER_USD, ModelUsage, Usage

OnInterrupt = Literal["continue", "restart", "fail"]
OnPause = Literal["continue", "return"]
Mode = Literal["fresh", "continue", "restart"]
CacheFor = Literal["auto", "5m", "1h"]
Outcome = Literal["completed", "cancelled", "failed"]
CancelCause = Literal["request", "session", "on_busy", "on_disconnect", "deletion", "batch"]
"""Why a turn was cancelled (PROTOCOL R22)."""
Via = Literal["messages", "message_batches"]
"""The Anthropic API that answers: Messages or Message Batches."""

# The `backend` of an attempt whose answer is a result of a message batch. Every generator writes the same bytes for it,
# because its `generator` is the id of the message batch (PROTOCOL R67).
MESSAGE_BATCHES = "message_batches"


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation, in Anthropic's shape."""

    role: Literal["user", "assistant", "system"]
    """Who wrote the message."""
    content: str | list[dict[str, Any]]
    """The text of the message, or content blocks in Anthropic's format. A system message without content has none."""
    output_config: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """Anthropic's field of a message, with the beta `per-turn-control`: for example the effort."""
    clear_at: str | msgspec.UnsetType | None = msgspec.UNSET
    """Anthropic's field of a system message, with the beta `mid-conversation-system-clear-at`: with
    `next_user_message`, the model does not see the message any more once a later message of the user follows.
    """


class Reservation(msgspec.Struct, frozen=True):
    """A limit has reserved this amount of a counter, or this slot, for a turn.

    `subject` names the counter or the slot. `amount` was added to the counter; for a slot (`unit` is `slot`), it is the
    sequence of the slot's message.
    """

    subject: str
    unit: Literal["tokens", "nusd", "slot"]
    amount: int


class BatchSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the inputs of a batch come from, if it was created through OpenAI's or Anthropic's batch API."""

    file: str | None
    """The id of the uploaded file with the requests, which may have been deleted since. None: they were in the body."""
    endpoint: str
    """The path of the route to which each request is addressed."""
    refused: int = 0
    """The number of refused requests. The blob of the batch has a line for each of them after the inputs."""
    is_invalid: bool = False
    """Whether the batch runs no input, because a line of the file is not a request. The refused lines say why."""


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The inputs of a batch: `count` requests, one per line, in a blob; at most `parallel` run at once."""

    sha256: str
    bytes: int
    count: int
    parallel: int
    blobs: list[str] | None = None
    """The SHA-256 of each blob that the inputs refer to."""
    source: BatchSource | None = msgspec.field(default=None, name="file")


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The request: everything that a generator needs, so that it needs no database."""

    prev: Seq = BEFORE_FIRST
    model: str
    max_tokens: int
    messages: list[Message]
    history: int = 0
    """How many of `messages` come from the session's earlier turns."""
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] | None = None
    """Other fields of Anthropic's Messages API, unchanged: `thinking`, `tool_choice`, `stop_sequences`…"""
    betas: list[str] | None = None
    """The values of the call's `anthropic-beta` header."""
    api_version: str | None = None
    """The value of the call's `anthropic-version` header. None: the generator's default."""
    session: SessionId
    parent: TurnId | None = None
    is_queued: bool = False
    """The request was stored while `parent` ran: the generator puts the conversation before `messages`."""
    store: bool = True
    """Whether the turn is kept after its end. Otherwise persistence counts its usage and erases it (PROTOCOL R109)."""
    project: str | None = None
    user: str | None = None
    """The end user who receives the answer, as the JWT or the request named them."""
    metadata: dict[str, str] | None = None
    cache: CacheFor | None = None
    """Lifetime of the prompt cache. `auto`: five minutes, if the prompt is long enough to be cached."""
    on_interrupt: OnInterrupt = "continue"
    on_pause: OnPause = "return"
    """Whether a generator continues an answer that the model has paused (`pause_turn`), or the client does."""
    on_disconnect: str = "continue"
    by: str | None = None
    """The name of the client's credential, which is not secret."""
    max_cost_nano_usd: int | None = msgspec.field(default=None, name="max_cost_nusd")
    """The answer is ended when it has cost this much."""
    holds: list[Reservation] | None = None
    """The amounts that limits reserved for this turn, by an estimate. Settled after the turn's end."""
    webhook: str | None = None
    """The URL that receives a POST at the turn's end."""
    batch: Batch | None = None
    """The turn is a batch: it calls no model, runs each input as a child turn, and ends after them."""
    via: Via = "messages"
    """`message_batches` for a batch and its child turns: the generator of the batch writes their answers."""
    queue_position: int | None = None
    """The estimated position in the queue when the turn was accepted, from 1. None: a generator was free."""
    traceparent: str | None = None
    """The span of the client's request (W3C Trace Context); None while traces are off."""
    body_sha256: str | None = None
    """The SHA-256 of the body. A POST with the same body may resume the turn. None: no POST can resume it."""
    submission: TurnId | None = None
    """An id that only this POST has, if another POST has claimed the turn's id: the entries of both then differ."""
    encryption_key: bytes | None = None
    """The key of the turn's other entries (PROTOCOL R113). None: they are not encrypted."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A generator has started an attempt. Attempts with lower numbers may write no more."""

    prev: Seq
    attempt: int
    generator: str
    backend: str
    mode: Mode
    misfit: str | None = None
    """Why the previous, complete answer does not fit the schema. It is sent to the model with the repeated request."""
    is_hedge: bool = False
    """Whether the attempt is a hedge: its call ran beside that of the previous attempt, and had a token earlier."""
    traceparent: str | None = None
    """The attempt's span; None while traces are off."""
    cause: str | None = None
    """Why the attempt follows another one: the code of the error that ended it, or `pause_turn`. None for the first
    attempt, and after a takeover: a generator that died gives no reason."""
    reason: str | None = None
    """Why the partial answer before a restart could not be continued (plan.find_obstacle); None for other modes."""

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write it, each with the same bytes: from a message batch (PROTOCOL R67)."""
        return self.backend == MESSAGE_BATCHES


class EventBlob(msgspec.Struct, frozen=True):
    """A reference to the blob that holds an event: its name and its length (PROTOCOL R120)."""

    name: str
    bytes: int


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of Anthropic's streaming vocabulary, as received or joined from several deltas.

    `is_hidden` marks an event that only counts for the usage, such as a continuation's `message_start`. It is not sent
    to readers.
    `left_out`: how many bytes of the call's text since the stored event before this one are not stored (PROTOCOL R70).
    `blob`: where the event is that is too large for its entry; `event` is then a stub. The log client replaces the stub
    by the event, so no other code sees this field.
    `original`: the event as the model sent it, if it is JSON that msgspec refuses; `event` is its regular form (R125).
    """

    prev: Seq
    attempt: int
    event: msgspec.Raw
    is_hidden: bool = False
    left_out: int = 0
    blob: EventBlob | None = None
    original: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The progress of a batch with `of` turns: `done` of them are completed, and `failed` have ended otherwise."""

    prev: Seq
    attempt: int
    done: int
    failed: int
    of: int
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    """The cost of the turns that have ended."""
    message_batch: str | None = None
    """The id of the batch in Anthropic's Message Batches API."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error of a failed turn: a code of proto.errors.CODES, a message, and the delay after which to retry."""

    code: str
    """The code of the error: `tailrace explain CODE` explains it."""
    message: str
    """The fault."""
    retry_after_s: float | None = None
    """Seconds after which a retry may help."""
    details: dict[str, Any] | None = None
    """`error.details` of the model's API, if they are about the request."""


class Block(msgspec.Struct, frozen=True, omit_defaults=True):
    """One content block of the answer. `text` joins its deltas: text, thinking, or the JSON of a tool's input."""

    type: str
    start: dict[str, Any]
    """The `content_block` of its content_block_start."""
    text: str = ""
    signature: str = ""
    citations: tuple[dict[str, Any], ...] = ()
    is_closed: bool = False
    fields: dict[str, Any] | None = None
    """The fields of `start` after deltas of other types (PROTOCOL R116). None without such deltas."""


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last entry, which repeats the answer.

    The count and hash of the text let a reader, the log and the database be compared.
    """

    prev: Seq
    attempt: int
    outcome: Outcome
    stop_reason: str | None = None
    stop_sequence: str | None = None
    envelope: dict[str, Any] | None = None
    """Other fields of the model's `message_delta`, of its usage, and in `message` of its `message_start`, unchanged.

    The counts of its usage are here, too, if `usage` differs from them.
    """
    usage: Usage = Usage()
    """The billed tokens of all calls and models (PROTOCOL R23)."""
    usage_is_estimated: bool = False
    """Whether a call broke off before the model had reported its output tokens."""
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    cost_is_unknown: bool = False
    """Whether a price is unknown; `cost_nano_usd` is then the cost of the rest."""
    by_model: dict[str, ModelUsage] | None = None
    """The same usage and cost by model; None if all of it is of the request's model."""
    answered_by: str | None = None
    """The model that answered, if it is not the request's: see tailrace.proto.pricing.answering_model."""
    price_date: str | None = None
    """The date of the price list. None in the `end` of an older version, which left out tokens beyond the top level."""
    schema_valid: bool | None = msgspec.field(default=None, name="fits")
    """Whether the answer is valid by the turn's JSON Schema; None: it has no schema, or it could not be checked."""
    error: Failure | None = None
    text_chars: int
    """Unicode code points in the answer's text blocks."""
    text_sha256: str
    blocks: tuple[Block, ...] | None = None
    """The content blocks of the fold (PROTOCOL R110). None for a long answer, and in the `end` of an older version."""
    length: int | None = None
    """The number of valid entries of the turn, with this one; None without `blocks`, or if the writer does not know."""
    cause: str | None = None
    """Why the turn was cancelled: a CancelCause, or one of a newer version. None: an older version cancelled it."""
    by: str | None = None
    """The name of the credential of the client that cancelled the turn, as `by` of the request."""

    @property
    def cost_usd(self) -> float | None:
        """In dollars; None if a price is unknown."""
        return None if self.cost_is_unknown else self.cost_nano_usd / NANO_USD_PER_USD


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a kind that this version does not know. It is part of the chain and otherwise ignored."""

    prev: Seq
    attempt: int


class Unreadable(msgspec.Struct, frozen=True):
    """A payload that cannot be decoded as its kind. Never valid (PROTOCOL R11)."""

    prev: Seq = Seq(-1)


Entry = Request | Attempt | Event | Progress | End | Unknown | Unreadable

KINDS: dict[type, str] = {
    Request: "request",
    Attempt: "attempt",
    Event: "event",
    Progress: "progress",
    End: "end",
}


class StoredEntry(msgspec.Struct, frozen=True):
    """An entry with its stream sequence and the time at which the server stored it (UTC)."""

    seq: Seq
    at: datetime
    entry: Entry


_encoder = msgspec.json.Encoder()
_decoders: dict[str, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(shape) for shape, kind in KINDS.items()}
_unknown: msgspec.json.Decoder[Unknown] = msgspec.json.Decoder(Unknown)


encode: Callable[[Entry], bytes] = _encoder.encode


def decode(kind: str, payload: bytes) -> Entry:
    """Decodes `payload` as an entry of `kind`. Returns Unknown for a newer kind, Unreadable if decoding fails."""
    try:
        entry: Entry = _decoders.get(kind, _unknown).decode(payload)
    except DECODE_ERRORS:
        return Unreadable()
    return entry
