"""The entries of a turn's log as they are stored: request, attempt, event, progress, end.

The kind is the last token of the subject; the payload is JSON. Every entry has `prev`, the sequence of the last valid
entry before it, and (except the request) `attempt`, the number of the attempt that it belongs to. `fold` computes a
turn from its entries.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, TurnId
from tailrace.proto.usage import NANO_USD_PER_USD, ModelUsage, Usage

OnInterrupt = Literal["continue", "restart", "fail"]
OnPause = Literal["continue", "return"]
Mode = Literal["fresh", "continue", "restart"]
CacheFor = Literal["auto", "5m", "1h"]
Outcome = Literal["completed", "cancelled", "failed"]
CancelCause = Literal["request", "session", "on_busy", "on_disconnect", "deletion", "batch", "steer"]
"""Why a turn was cancelled (PROTOCOL R22)."""
NOT_STOPPED = (
    # No client has stopped the turn: its connection was lost, or its user has left and may ask again.
    "on_disconnect",
    # The answer goes on in the successor.
    "steer",
    # An older version has written the end.
    None,
)
"""The causes that are no stop. A repeated request starts no new turn after any other cause, also an unknown one."""
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
    """Anthropic's field of a message, with the beta `mid-conversation-output-config`: for example the effort."""
    clear_at: str | msgspec.UnsetType | None = msgspec.UNSET
    """Anthropic's field of a system message, with the beta `mid-conversation-system-clear-at`: with
    `next_user_message`, the model does not see the message any more once a later message of the user follows.
    """


class Reservation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A limit has reserved this amount of a counter, or this slot, for a turn (PROTOCOL R37)."""

    subject: str
    """The subject of the counter or of the slot."""
    unit: Literal["tokens", "nusd", "slot"]
    """The unit of the counter (`nusd`: billionths of a dollar), or `slot`."""
    amount: int
    """The estimate that was added to the counter; of a slot, the sequence of its message."""
    seq: Seq = BEFORE_FIRST
    """The sequence of the message that has added `amount` to the counter. 0: of a slot, or an older version."""
    limit: int | None = None
    """The most that the counter of a budget may hold. Null: not a budget, or an older version."""


class BatchSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the inputs of a batch come from, if it was created through OpenAI's or Anthropic's batch API."""

    file: str | None
    """The id of the uploaded file with the requests, maybe deleted since. Null: the body had the requests."""
    endpoint: str
    """The path of the route to which each request is addressed."""
    refused: int = 0
    """The number of refused requests. The blob of the batch has a line for each of them after the inputs."""
    is_invalid: bool = False
    """Whether the batch runs no input, because a line of the file is not a request. The refused lines say why."""


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The inputs of a batch: `count` requests, one per line, in a blob; at most `parallel` run at once."""

    sha256: str
    """The SHA-256 of the blob that has the inputs (PROTOCOL R33)."""
    bytes: int
    """The length of that blob."""
    count: int
    """The number of inputs."""
    parallel: int
    """How many turns of the batch run at once."""
    blobs: list[str] | None = None
    """The SHA-256 of each blob that the inputs refer to."""
    source: BatchSource | None = msgspec.field(default=None, name="file")
    """Where the inputs come from; null if the batch was created through Tailrace's own API."""
    holds: list[Reservation] | None = None
    """What the inputs have reserved together; each input has its own part in its `holds`."""


PromptPart = Literal["system", "tools", "messages", "thinking"]


class StoredThinking(msgspec.Struct, frozen=True, omit_defaults=True):
    """A thinking block of an earlier answer, which is sent back only behind an unchanged prefix (PROTOCOL R140)."""

    id: str
    """The digest of the block's signature."""
    prefix: str | None = None
    """The digest of the block's prefix. Empty: a generator had added to the prompt, so that no request has this prefix.
    Null: an older version has stored the answer."""
    after: str = ""
    """The id of the thinking block before it. Empty: there was none."""


class Prefix(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The prompt before a position, as a digest of each part (PROTOCOL R140)."""

    system: str
    """The digest of the system prompt."""
    tools: str
    """The digest of the tools."""
    messages: str
    """The digest of the messages, without thinking."""
    thinking: str = ""
    """The id of the last thinking block before the position. Empty: there is none."""
    block: int = 0
    """Of a call's prompt: how many blocks the answer had before the call."""
    bytes: int = 0
    """The length of the parts as JSON, in bytes."""
    unchanged: int | None = None
    """Of a call's prompt: how many of these bytes come before the first difference from the prompt of the turn before,
    as far as it is known. Null: there is no turn before, or an older version has stored it."""
    is_extended: bool = False
    """Of a call's prompt: whether a generator has added to the prompt of the request, such as a JSON Schema."""
    changed: tuple[PromptPart, ...] = ()
    """The parts with differences. Empty: the prompt begins with the whole prompt of the turn before."""


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The request: everything that a generator needs, so that it needs no database."""

    prev: Seq = BEFORE_FIRST
    """Always 0."""
    model: str
    """The id of the model."""
    max_tokens: int
    """The most tokens of output (PROTOCOL R74)."""
    messages: list[Message]
    """The whole conversation, in Anthropic's format; if `is_queued`, only the messages of this turn."""
    history: int = 0
    """How many of `messages` come from earlier turns of the session."""
    thinking: list[StoredThinking] | None = None
    """The thinking blocks of these earlier turns, oldest first."""
    previous: Prefix | None = None
    """The prompt of the last call for the turn before. Null: there is none."""
    system: str | list[dict[str, Any]] | None = None
    """The system prompt: a text or content blocks."""
    tools: list[dict[str, Any]] | None = None
    """Anthropic's tool definitions."""
    options: dict[str, Any] | None = None
    """Other fields of Anthropic's Messages API, unchanged: `thinking`, `tool_choice`, `stop_sequences`…"""
    betas: list[str] | None = None
    """The values of the call's header `anthropic-beta`."""
    api_version: str | None = None
    """The value of the call's header `anthropic-version` (PROTOCOL R131). Null: the generator's default."""
    session: SessionId
    """The session of the turn."""
    parent: TurnId | None = None
    """The turn before this one in the session."""
    is_queued: bool = False
    """The request was stored while `parent` ran: the generator puts the conversation before `messages` (R79)."""
    store: bool = True
    """Whether the turn is kept after its end. If not, persistence counts its usage and erases it (PROTOCOL R109)."""
    project: str | None = None
    """The project of the session."""
    user: str | None = None
    """The end user who receives the answer (PROTOCOL R89)."""
    owner: str | UnsetType | None = UNSET
    """The owner of the session (PROTOCOL R146). Null: the tenant. Left out by versions without owners."""
    metadata: dict[str, str] | None = None
    """The client's own labels."""
    cache: CacheFor | None = None
    """How long the model caches the prompt (PROTOCOL R61)."""
    on_interrupt: OnInterrupt = "continue"
    """The action of a generator on an answer that was interrupted (PROTOCOL R19)."""
    on_pause: OnPause = "return"
    """Whether a generator (`continue`) or the client (`return`) continues an answer that the model pauses (PROTOCOL
    R117). The gateway always stores this field."""
    on_disconnect: str = "continue"
    """The action when the last reader disconnects: `continue`, `cancel` or `grace:SECONDS` (PROTOCOL R22)."""
    by: str | None = None
    """The name of the credential that created the turn; usage is counted by it. It is not secret."""
    max_cost_nano_usd: int | None = msgspec.field(default=None, name="max_cost_nusd")
    """The most that the answer may cost, in billionths of a dollar (PROTOCOL R41)."""
    holds: list[Reservation] | None = None
    """The reservations of limits for this turn, by an estimate; settled after the turn's end (PROTOCOL R37)."""
    webhook: str | None = None
    """The URL that receives a POST at the turn's end (PROTOCOL R45)."""
    batch: Batch | None = None
    """The turn is a batch (PROTOCOL R63): it calls no model, and each input becomes a turn."""
    via: Via = "messages"
    """Which of Anthropic's APIs answers; a batch and its turns have the same value (PROTOCOL R67)."""
    queue_position: int | None = None
    """The gateway's estimate of the turn's position in the queue, from 1. Null: a generator was free."""
    traceparent: str | None = None
    """The span of the client's request (W3C Trace Context), which the gateway writes. Null: no traces are exported."""
    body_sha256: str | None = None
    """The SHA-256 of the client's body, in lower-case hex; with the key `auto`, of the request (PROTOCOL R62). A POST
    with a cursor must have the same hash (PROTOCOL R78). Null: no POST can resume the turn."""
    submission: TurnId | None = None
    """Set to a new id if another POST has claimed the turn's id with the same idempotency key (PROTOCOL R26)."""
    encryption_key: bytes | None = None
    """The key of the turn's other entries, in Base64 (PROTOCOL R113). Null: they are not encrypted."""


OF_ONE_TURN = (
    *("prev", "messages", "history", "thinking", "previous", "parent", "is_queued", "store", "by", "holds", "batch"),
    *("via", "queue_position", "traceparent", "body_sha256", "submission", "encryption_key"),
)
"""The fields of a request that the turn after it does not take over."""


def without_turn(request: Request) -> Request:
    """Returns a request with only the fields that the turn after it has, too."""
    own = {one.name: one.default for one in msgspec.structs.fields(Request) if one.name in OF_ONE_TURN}
    return msgspec.structs.replace(request, **own | {"messages": []})


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A generator has started an attempt. Attempts with lower numbers may write no more."""

    prev: Seq
    """The sequence of the last valid entry before this one (PROTOCOL R11)."""
    attempt: int
    """The number of the attempt, from 1; higher than that of every attempt before it."""
    generator: str
    """The name of the process. No two processes ever have the same name (PROTOCOL R13)."""
    backend: str
    """The backend that the attempt calls: `claude`, `bedrock`… (PROTOCOL R50)."""
    mode: Mode
    """Whether the attempt keeps the answer so far (PROTOCOL R19)."""
    misfit: str | None = None
    """Why the complete answer before this attempt did not match its schema (PROTOCOL R60)."""
    traceparent: str | None = None
    """The span of the attempt. Null: no traces are exported."""
    cause: str | None = None
    """Why the attempt follows another one of the same process: the code of the error that ended that attempt, or
    `pause_turn`. Null for the first attempt, and after a takeover."""
    reason: str | None = None
    """With the mode `restart`: why the answer so far cannot be continued (PROTOCOL R19)."""

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write this entry, with the same bytes: from a message batch (PROTOCOL R67)."""
        return self.backend == MESSAGE_BATCHES


class EventBlob(msgspec.Struct, frozen=True):
    """A reference to the blob that holds an event (PROTOCOL R120)."""

    name: str
    """The name of the blob in its subject."""
    bytes: int
    """The length of the event."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of Anthropic's streaming vocabulary. The log client replaces a stub by the event in the blob."""

    prev: Seq
    """The sequence of the last valid entry before this one (PROTOCOL R11)."""
    attempt: int
    """The attempt that the event belongs to."""
    event: msgspec.Raw
    """The event as the model sent it, byte for byte, or joined from several deltas (PROTOCOL R9)."""
    is_hidden: bool = False
    """True for an event that only counts for the usage, and is not sent to readers (PROTOCOL R20)."""
    left_out: int = 0
    """How many UTF-8 bytes of the call's text, between the last stored event and this one, are not stored: a
    repetition, thinking at the start of a continuation, or text that was held back when the call ended (PROTOCOL R20,
    R70)."""
    blob: EventBlob | None = None
    """The event is in this blob, and `event` is a stub (PROTOCOL R120)."""
    original: str | None = None
    """The event as the model sent it, if `event` is the regular form of odd JSON (PROTOCOL R125). Null also if the
    original has more than 300,000 characters."""
    prefix: Prefix | None = None
    """The prompt of the call, at its `message_start` (PROTOCOL R140)."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The progress of a batch (PROTOCOL R64)."""

    prev: Seq
    """The sequence of the last valid entry before this one (PROTOCOL R11)."""
    attempt: int
    """The attempt that the entry belongs to."""
    done: int
    """The number of turns of the batch that are completed."""
    failed: int
    """The number of turns that have another outcome, or were deleted."""
    cancelled: int = 0
    """How many of the failed ones were cancelled."""
    expired: int = 0
    """How many of the failed ones were not answered in time (`deadline_exceeded`)."""
    of: int
    """The number of all turns of the batch."""
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    """The cost of the turns that have ended, in billionths of a dollar."""
    message_batch: str | None = None
    """The id of the message batch at Anthropic (PROTOCOL R67)."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error of a failed turn."""

    code: str
    """The code of the error: `tailrace explain CODE` explains it."""
    message: str
    """A sentence about the fault."""
    retry_after_s: float | None = None
    """The seconds after which the model's API allows a retry."""
    details: dict[str, Any] | None = None
    """`error.details` of the model's API, if they are about the request."""


class Block(msgspec.Struct, frozen=True, omit_defaults=True):
    """One content block of the answer (PROTOCOL R110)."""

    type: str
    """The type of the block."""
    start: dict[str, Any]
    """The `content_block` of its `content_block_start`."""
    text: str = ""
    """The joined deltas: text, thinking, or the JSON of a tool's input."""
    signature: str = ""
    """The signature of a `thinking` block."""
    citations: tuple[dict[str, Any], ...] = ()
    """The citations of a `text` block."""
    is_closed: bool = False
    """Whether the block has its `content_block_stop`."""
    fields: dict[str, Any] | None = None
    """The fields of `start` after deltas of other types (PROTOCOL R116). Null without such deltas."""


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last entry of a turn, which repeats the answer."""

    prev: Seq
    """The sequence of the last valid entry before this one (PROTOCOL R11)."""
    attempt: int
    """The current attempt; 0 if the turn has none."""
    outcome: Outcome
    """How the turn ended."""
    stop_reason: str | None = None
    """The model's stop reason. Null: it gave none, or one of more than 128 KiB."""
    stop_sequence: str | None = None
    """The model's stop sequence. Null: see `stop_reason`."""
    envelope: dict[str, Any] | None = None
    """The other fields of the model's `message_delta` and of its `usage`, unchanged, and in `message` those of
    `message_start`; also the counts of the `usage` if they differ from the billed counts (PROTOCOL R23). Null if they
    have more than 256 KiB together, as JSON."""
    usage: Usage = Usage()
    """The billed tokens of all calls (PROTOCOL R23)."""
    usage_is_estimated: bool = False
    """Whether a call broke off before the model had counted its output (PROTOCOL R23)."""
    cost_nano_usd: int = msgspec.field(default=0, name="cost_nusd")
    """The cost of `usage`, in billionths of a dollar (PROTOCOL R23)."""
    cost_is_unknown: bool = False
    """Whether a price is unknown; `cost_nusd` is then the cost of the rest."""
    by_model: dict[str, ModelUsage] | None = None
    """The same usage and cost by the id of the model (PROTOCOL R121). Null: all usage is of the request's model."""
    answered_by: str | None = None
    """The model that answered, if it is not the request's (PROTOCOL R121)."""
    price_date: str | None = None
    """The date of the price list. Null: an older version has written the entry, and counted only the top level of a
    `usage` (PROTOCOL R121)."""
    schema_valid: bool | None = msgspec.field(default=None, name="fits")
    """Whether the answer matches the schema of its request (PROTOCOL R60). Null: no schema, or not checked."""
    error: Failure | None = None
    """Why the turn failed."""
    text_chars: int
    """The number of code points of the answer's text (PROTOCOL R24)."""
    text_sha256: str
    """The SHA-256 of the answer's text (PROTOCOL R24)."""
    blocks: tuple[Block, ...] | None = None
    """The content blocks of the answer (PROTOCOL R110). Null for a long answer, and in the `end` of an older
    version."""
    length: int | None = None
    """The number of valid entries of the turn, with this one (PROTOCOL R110). Null without `blocks`."""
    cause: str | None = None
    """Why the turn was cancelled (PROTOCOL R22). Null for other outcomes, and in the `end` of an older version."""
    by: str | None = None
    """The name of the credential of the client that cancelled the turn, like `by` of the request."""
    prefixes: list[Prefix] = []
    """The prompts of the calls that wrote the answer (PROTOCOL R140)."""
    successor: TurnId | None = None
    """The turn in which the readers of this one go on, because a message steered it (PROTOCOL R137)."""

    @property
    def cost_usd(self) -> float | None:
        """The cost in dollars; None if a price is unknown."""
        return None if self.cost_is_unknown else self.cost_nano_usd / NANO_USD_PER_USD

    @property
    def is_stopped(self) -> bool:
        """Whether the turn was cancelled by a request, a deletion or a newer question (PROTOCOL R22)."""
        return self.outcome == "cancelled" and self.cause not in NOT_STOPPED


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a kind that this version does not know. The entry is part of the chain and otherwise ignored."""

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
