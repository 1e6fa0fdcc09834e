"""The events of the dialect `tailrace`, in the order of their appearance."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tailrace.proto.entries import Outcome
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.usage import Usage


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="type"):
    """An event. The stream of a session names its turn in the field `turn`."""


class StartEvent(_Event, frozen=True, kw_only=True, tag="start"):
    """The request is in the log."""

    turn: TurnId
    """The id of the turn."""
    session: SessionId
    """The session of the turn."""
    model: str
    """The model of the request."""
    queue_position: int | None = None
    """The position of a turn that waits behind others."""


class UsageEvent(_Event, frozen=True, kw_only=True, tag="usage"):
    """The use of the prompt cache, if a model call used it."""

    input_tokens: int
    """Input tokens that no cache had."""
    cache_creation_input_tokens: int
    """Input tokens that were written to the cache."""
    cache_read_input_tokens: int
    """Input tokens that were read from the cache."""


class DeltaEvent(_Event, frozen=True, kw_only=True, tag="delta"):
    """A delta of the answer's text."""

    text: str
    """The text to append."""
    index: int = 0
    """The content block; left out for the first one."""


class ThinkingEvent(_Event, frozen=True, kw_only=True, tag="thinking"):
    """A delta of the model's thinking."""

    text: str
    """The thinking to append."""
    index: int = 0
    """The content block; left out for the first one."""


class CitationEvent(_Event, frozen=True, kw_only=True, tag="citation"):
    """A citation of a text block, in Anthropic's format."""

    index: int
    """The content block."""
    citation: Any
    """The citation."""


class ToolUseEvent(_Event, frozen=True, kw_only=True, tag="tool_use"):
    """A tool call begins (`id` and `name`), or a delta of the input of the tool call or `block` with this index."""

    index: int
    """The content block."""
    id: str | UnsetType = UNSET
    """The id of the call."""
    name: str | UnsetType = UNSET
    """The name of the tool."""
    partial_json: str | UnsetType = UNSET
    """JSON to append to the input of the call."""


class BlockEvent(_Event, frozen=True, kw_only=True, tag="block"):
    """A block of another type begins, in Anthropic's format, or has a `delta` of a type unknown to this version.

    Of a text or thinking, only the fields that have no other event.
    """

    index: int
    """The content block."""
    block: Any = UNSET
    """The block."""
    delta: Any = UNSET
    """The delta."""


class UnknownEvent(_Event, frozen=True, kw_only=True, tag="event"):
    """An event of a type that this version does not know, unchanged."""

    event: Any
    """The event."""


class WaitingEvent(_Event, frozen=True, kw_only=True, tag="waiting"):
    """The model cannot be connected to, and the turn waits for it."""

    reason: str
    """Why the model cannot be connected to."""


class ProgressEvent(_Event, frozen=True, kw_only=True, tag="progress"):
    """The progress of a batch, with its cost."""

    done: int
    """Requests that have succeeded."""
    failed: int
    """Requests that have failed."""
    of: int
    """All requests."""
    cost_usd: float
    """The cost so far, in dollars."""


class ResetEvent(_Event, frozen=True, kw_only=True, tag="reset"):
    """Discard the text so far: the answer starts again."""

    cause: str | None = None
    """The code of the error."""
    reason: str | None = None
    """Why the answer was not continued: `on_interrupt`, `schema` or the type of a block."""


class _Ended(_Event, frozen=True, kw_only=True):
    """The end of a turn: `DoneEvent` or `SteeredEvent`."""

    outcome: Outcome
    """How the turn has ended."""
    stop_reason: str | None
    """The model's stop reason."""
    schema_valid: bool | None = None
    """Whether the answer matches the schema of its request."""
    answered_by: str | None = None
    """The model that answered, if it is another one."""
    usage: Usage
    """The billed tokens of all calls."""
    usage_is_estimated: bool
    """Whether a call broke off before the model had counted its output."""
    cost_usd: float | None
    """The cost in dollars; null if a price is unknown."""
    text_chars: int
    """The number of code points of the answer's text."""
    text_sha256: str
    """The SHA-256 of the answer's text."""


class DoneEvent(_Ended, frozen=True, kw_only=True, tag="done"):
    """The end of a turn that has not failed."""

    outcome: Literal["completed", "cancelled"]
    """How the turn has ended."""


class ErrorEvent(_Event, frozen=True, kw_only=True, tag="error"):
    """The end of a turn that has failed. The text remains."""

    code: str
    """The code of the error."""
    message: str
    """A sentence about the error."""
    schema_valid: bool | None = None
    """Whether the answer matches the schema of its request."""
    answered_by: str | None = None
    """The model that answered, if it is another one."""
    usage: Usage
    """The billed tokens of all calls."""
    usage_is_estimated: bool
    """Whether a call broke off before the model had counted its output."""
    cost_usd: float | None
    """The cost in dollars; null if a price is unknown."""
    text_chars: int
    """The number of code points of the answer's text."""
    text_sha256: str
    """The SHA-256 of the answer's text."""


class SteeredEvent(_Ended, frozen=True, kw_only=True, tag="steered"):
    """In place of `done`: a message was put into the answer, and the events of its turn follow, without `start`."""

    turn: TurnId
    """The turn whose events follow."""


TurnEvent = (
    StartEvent
    | UsageEvent
    | DeltaEvent
    | ThinkingEvent
    | CitationEvent
    | ToolUseEvent
    | BlockEvent
    | UnknownEvent
    | WaitingEvent
    | ProgressEvent
    | ResetEvent
    | DoneEvent
    | ErrorEvent
    | SteeredEvent
)
