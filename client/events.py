"""The events of the dialect `tailrace` (docs/API.md) as types, and the end of a turn."""

from typing import Any, Literal

import msgspec

# The stop reasons of a whole answer (docs/API.md, "Stop reasons"). None: a batch, which has no model call of its own.
WHOLE = (None, "end_turn", "stop_sequence", "tool_use")


class Event(msgspec.Struct, kw_only=True):
    """An event of an answer. `cursor` is empty if the event has no id."""

    cursor: str = ""
    """`resume(turn, after=cursor)` reads what comes after this event."""


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of a turn, counted as Anthropic counts them: `input_tokens` contains none of the cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Ending(Event, kw_only=True):
    """The fields of both kinds of end. `cost_usd` is None if the price of the model is unknown."""

    usage: Usage = msgspec.field(default_factory=Usage)
    usage_is_estimated: bool = False
    cost_usd: float | None = None
    text_chars: int | None = None
    text_sha256: str | None = None
    schema_valid: bool | None = None
    answered_by: str | None = None
    """The model that answered, if it is another one than that of `Start`."""


class Start(Event, kw_only=True):
    """The turn exists. `queue_position` is an estimate, from 1; None if a generator was free."""

    type: Literal["start"] = "start"
    turn: str
    session: str
    model: str
    queue_position: int | None = None


class CacheUsage(Event, kw_only=True):
    """A model call begins that used the prompt cache."""

    type: Literal["usage"] = "usage"
    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Delta(Event, kw_only=True):
    """More text of the answer."""

    type: Literal["delta"] = "delta"
    text: str
    index: int = 0
    """The content block. Blocks may be open at the same time: the text of an answer is that of its blocks in order."""


class Thinking(Event, kw_only=True):
    """More text of the model's thinking, which is not part of the answer."""

    type: Literal["thinking"] = "thinking"
    text: str
    index: int = 0
    """The content block."""


class Citation(Event, kw_only=True):
    """A citation of the text block `index`, in Anthropic's format."""

    type: Literal["citation"] = "citation"
    index: int
    citation: dict[str, Any]


class ToolUse(Event, kw_only=True):
    """A tool call begins (`id`, `name`), or a delta of its input (`partial_json`)."""

    type: Literal["tool_use"] = "tool_use"
    index: int
    id: str | None = None
    name: str | None = None
    partial_json: str | None = None


class Block(Event, kw_only=True):
    """A content block of a type that has no event of its own begins (`block`), or a delta of it (`delta`).

    For example a tool that the model's provider runs, its result, or a compaction. In Anthropic's format. The input of
    such a tool may come in `ToolUse` events with the same `index`.
    """

    type: Literal["block"] = "block"
    index: int
    block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None


class ModelEvent(Event, kw_only=True):
    """An event of the model's API that this version of Tailrace does not know, in Anthropic's format."""

    type: Literal["event"] = "event"
    event: dict[str, Any]


class Waiting(Event, kw_only=True):
    """The model cannot be connected to, and the turn waits for it. The next event ends the wait."""

    type: Literal["waiting"] = "waiting"
    reason: str
    """The obstacle to the connection, for example `no such host`."""


class Progress(Event, kw_only=True):
    """The progress of a batch."""

    type: Literal["progress"] = "progress"
    done: int
    failed: int
    of: int
    cost_usd: float


class Reset(Event, kw_only=True):
    """The answer starts again: discard the text so far."""

    type: Literal["reset"] = "reset"
    cause: str | None = None
    """The code of the error that ended the answer so far; None if its generator gave none because it died."""
    reason: str | None = None
    """Why the answer so far was not continued: `on_interrupt`, `schema`, or the type of the block in the way."""


class Done(Ending, kw_only=True):
    """The end of a completed or cancelled turn. Its text so far remains."""

    type: Literal["done"] = "done"
    outcome: Literal["completed", "cancelled"]
    stop_reason: str | None = None


class Steered(Ending, kw_only=True):
    """The end of an answer that was steered. The answer of the turn `turn` begins, without a `Start`."""

    type: Literal["steered"] = "steered"
    turn: str
    outcome: Literal["cancelled"] = "cancelled"


class Failed(Ending, kw_only=True):
    """The end of a failed turn. Its text so far remains."""

    type: Literal["error"] = "error"
    code: str
    message: str


TurnEvent = (
    Start
    | CacheUsage
    | Delta
    | Thinking
    | Citation
    | ToolUse
    | Block
    | ModelEvent
    | Waiting
    | Progress
    | Reset
    | Steered
    | Done
    | Failed
)

TYPES: dict[str, type[TurnEvent]] = {
    "start": Start,
    "usage": CacheUsage,
    "delta": Delta,
    "thinking": Thinking,
    "citation": Citation,
    "tool_use": ToolUse,
    "block": Block,
    "event": ModelEvent,
    "waiting": Waiting,
    "progress": Progress,
    "reset": Reset,
    "steered": Steered,
    "done": Done,
    "error": Failed,
}


def decode(data: str, cursor: str) -> TurnEvent | None:
    """Returns an event; None for a type that a later version has added. Raises msgspec.MsgspecError, ValueError."""
    fields: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    kind = TYPES.get(fields.get("type", ""))
    return None if kind is None else msgspec.convert(fields | {"cursor": cursor}, kind)


class End(Ending, kw_only=True):
    """The end of a turn that was read. A failed turn has `code` and `message`.

    `text` is the text that was read: after `resume` with a cursor, the text after it. If nothing comes after the
    cursor, the other fields are those of `GET /v1/turns/{turn}`; `outcome` is None if this request is refused.
    """

    turn: str
    session: str | None
    model: str | None
    text: str
    outcome: Literal["completed", "cancelled", "failed"] | None
    stop_reason: str | None = None
    """Why the model stopped."""
    code: str | None = None
    message: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the turn is completed and its answer is whole: no limit has cut it, and the model did not pause."""
        return self.outcome == "completed" and self.stop_reason in WHOLE
