"""Checks that the events of one answer fit together (Anthropic's docs, "Streaming Messages"). Pure; changes no event.

Client protocols render each event as it comes, while the fold looks up the event's block. An event that does not fit
the answer so far would make the two differ, so the answer counts as broken and the event is not stored.
"""

from typing import Any

import msgspec

from tailrace.generators.backends.model_event import ModelEvent
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.errors import BackendError

# The types of content blocks whose deltas are read, with the type of each field that their start may have.
KNOWN_BLOCKS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "thinking": {"thinking": str, "signature": str},
    "redacted_thinking": {"data": str},
    "tool_use": {"id": str, "name": str, "input": dict},
    "server_tool_use": {"id": str, "name": str, "input": dict},
    "mcp_tool_use": {"id": str, "name": str, "input": dict},
}
# Their content comes in deltas. The fold does not read it from the start of the block.
EMPTY_AT_START = {"thinking": ("thinking", "signature")}


class EventOrder:
    """The state of one answer that decides which event may come next: begun or not, the open blocks, complete."""

    def __init__(self) -> None:
        self._has_begun = False
        self._has_stopped = False
        self._next = 0
        self._open: dict[int, str] = {}

    def check(self, event: ModelEvent) -> None:
        """Raises BackendError if `event` cannot come next."""
        is_start = event.kind == "message_start"
        # A hidden start begins a further call of the same answer.
        fits = is_start != self._has_begun or (is_start and event.is_hidden)
        match event.event:
            case events.BlockDelta(index, delta):
                fits &= events.fits_block(delta, self._open.get(index, ""))
            case events.BlockStart(index, block):
                require_readable_start(block)
                # A stop reason completes the message.
                fits &= index == self._next and not self._has_stopped
                self._open[index] = block["type"]
                self._next += 1
            case events.BlockStop(index):
                fits &= self._open.pop(index, None) is not None
            case events.MessageDelta(delta):
                read_fields(event.raw)
                self._has_stopped |= delta.stop_reason is not None
                fits &= not (self._has_stopped and self._open)
            case events.MessageStart():
                require_empty(event.raw)
            case events.UnknownEvent():
                self._check_unknown(event)
                fits &= event.kind != "message_stop" or self._has_stopped
        if not fits:
            raise BackendError(
                "backend_broken", f"the model sent a {event.kind[:40]} that does not fit its answer so far"
            )
        self._has_begun = True

    def _check_unknown(self, event: ModelEvent) -> None:
        """Raises BackendError for a delta of an unknown type in a block of a known type: its content would be lost."""
        block = self._open.get(event.index, "") if event.kind == "content_block_delta" else None
        if block is not None and block in ("", *KNOWN_BLOCKS):
            raise unreadable("a delta of an unknown type")
        read_fields(event.raw)


def unreadable(what: str) -> BackendError:
    """Returns the error for an event that the model should not have sent, which `what` names."""
    return BackendError("backend_unreadable", f"the model sent {what}")


def require_readable_start(block: dict[str, Any]) -> None:
    """Raises BackendError unless the start of a content block can be used.

    It needs a type and fields of their types, and a tool call needs an id and a name.
    """
    kind = block.get("type")
    if not isinstance(kind, str) or not kind:
        raise unreadable("a content block without a type")
    for name, wanted in KNOWN_BLOCKS.get(kind, {}).items():
        if not isinstance(block.get(name, wanted()), wanted):
            raise unreadable(f"a {kind} block whose {name} cannot be read")
    # Without its name a call cannot be executed, and without its id it cannot be answered.
    if kind in KNOWN_BLOCKS and events.is_tool_use(kind) and not (block.get("id") and block.get("name")):
        raise unreadable(f"a {kind} block without an id or a name")
    if any(block.get(name) for name in EMPTY_AT_START.get(kind, ())):
        raise unreadable(f"a {kind} block that has content at its start")


def require_empty(raw: msgspec.Raw) -> None:
    """Raises BackendError for a `message_start` with content: it comes in blocks."""
    if read_fields(raw)["message"].get("content"):
        raise unreadable("a message_start that has content")


def read_fields(raw: msgspec.Raw) -> dict[str, Any]:
    """Returns an event with all its fields, also those that no Struct declares.

    Raises BackendError if a reader could not decode it. Its entry adds one level to its depth (PROTOCOL R7).
    """
    try:
        fields: dict[str, Any] = msgspec.json.decode(raw)
        is_readable = not is_deeper(fields, LEVELS_MAX - 1)
    except DECODE_ERRORS:
        is_readable = False
    if not is_readable:
        raise unreadable("an event that cannot be decoded, or is nested too deeply")
    return fields
