"""Checks that the events of one answer fit together (Anthropic's docs, "Streaming Messages"). Pure.

Client protocols render each event as it comes, while the fold looks up the event's block. An event that does not fit
the answer so far would make the two differ, so the answer counts as broken and the event is not stored.

An answer may come whole or in part within its `message_start`. That content is stored as the events that the API
usually sends, so that readers need to know only one form.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from tailrace.generators.backends.block_events import block_events
from tailrace.generators.backends.model_event import ModelEvent, from_event, read_event
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import CUT

# The types of content blocks whose deltas are read, with the types of the fields of their starts.
KNOWN_BLOCKS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "thinking": {"thinking": str, "signature": str},
    "redacted_thinking": {"data": str},
    "tool_use": {"id": str, "name": str, "input": dict},
    "server_tool_use": {"id": str, "name": str, "input": dict},
    "mcp_tool_use": {"id": str, "name": str, "input": dict},
}
# The fields of a message that its `message_delta` has, too.
STOP_FIELDS = ("stop_reason", "stop_sequence", "stop_details", "container")


class EventOrder:
    """The state of one answer, which decides what event may come next: begun or not, the open blocks, complete."""

    def __init__(self) -> None:
        self._has_begun = False
        self._has_stopped = False
        self._next = 0
        self._open: dict[int, str] = {}
        # The end of a message whose `message_start` has a stop reason; stored unless the model sends another one.
        self._early_stop: ModelEvent | None = None

    def accept(self, event: ModelEvent) -> Sequence[ModelEvent]:
        """Returns the events that are stored for `event`: the event itself, but nothing for a `message_stop`.

        For a `message_start` with content or a stop reason, also the events of its blocks, and later the end of the
        message. Raises BackendError if `event` cannot come next.
        """
        match event.event:
            case events.BlockDelta(index, delta) if self._early_stop is None:
                # Most events.
                if not events.fits_block(type(delta), self._open.get(index, "")):
                    raise _misfit(event)
                return (event,)
            case events.MessageStart() if not event.is_hidden:
                start, blocks = self._split_start(event)
                self._check(start)
                for one in blocks:
                    self._check(one)
                return (start, *blocks)
            case events.UnknownEvent() if event.kind == "message_stop":
                end = () if self._has_stopped or self._early_stop is None else (self._early_stop,)
                for one in end:
                    self._check(one)
                self._check(event)
                return end
            case events.MessageDelta(delta) if self._open and delta.stop_reason in CUT:
                # The API does not close a block that it has cut, such as the input of a call. Source: anthropic 2.14.0,
                # tests/lib/streaming/fixtures/incomplete_partial_json_response.txt.
                closing = [from_event(events.BlockStop(index)) for index in sorted(self._open)]
                for one in (*closing, event):
                    self._check(one)
                return (*closing, event)
            case _:
                self._check(event)
                if self._early_stop is not None:
                    # The usage of `message_start` does not include what followed it.
                    self._early_stop = without_usage(self._early_stop)
                return (event,)

    def _split_start(self, event: ModelEvent) -> tuple[ModelEvent, list[ModelEvent]]:
        """Returns a `message_start` without content and stop reason, and the events of its content."""
        fields = read_fields(event.raw)
        message: dict[str, Any] = fields["message"]
        content = message.get("content") or []
        if message.get("content", content) == [] and message.get("stop_reason") is None:
            return event, []
        if not isinstance(content, list):
            raise unreadable("a message_start whose content cannot be read")
        for block in content:
            require_readable_start(block)
        stop = {name: message[name] for name in STOP_FIELDS if message.get(name) is not None}
        if "stop_reason" in stop:
            usage = message.get("usage") or {}
            self._early_stop = _read({"type": "message_delta", "delta": stop, "usage": usage})
        emptied: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        start = _read({**fields, "message": message | emptied})
        whole = [
            _read(change | {"index": index}) for index, block in enumerate(content) for change in block_events(block)
        ]
        return start, whole

    def _check(self, event: ModelEvent) -> None:
        """Raises BackendError if `event` cannot come next."""
        is_start = event.kind == "message_start"
        # A hidden start begins a further call of the same answer.
        fits = is_start != self._has_begun or (is_start and event.is_hidden)
        match event.event:
            case events.BlockDelta(index, delta):
                fits &= events.fits_block(type(delta), self._open.get(index, ""))
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
                read_fields(event.raw)
            case events.OtherDelta(index):
                read_fields(event.raw)
                fits &= index in self._open
            case events.UnknownEvent():
                read_fields(event.raw)
                fits &= event.kind != "message_stop" or self._has_stopped
        if not fits:
            raise _misfit(event)
        self._has_begun = True


def _read(fields: dict[str, Any]) -> ModelEvent:
    """Returns the event with the fields `fields` of the model. Raises BackendError if it cannot be read."""
    event = read_event(msgspec.json.encode(fields), is_regular=True)
    assert event is not None  # noqa: S101  # not a ping
    return event


def _misfit(event: ModelEvent) -> BackendError:
    return unreadable(f"a {event.kind[:40]} that does not fit its answer so far")


def without_usage(event: ModelEvent) -> ModelEvent:
    """Returns the `message_delta` without the usage that it reports."""
    return _read(read_fields(event.raw) | {"usage": {}})


def unreadable(what: str) -> BackendError:
    """Returns the error for an event that the model should not have sent, which `what` names."""
    return BackendError("backend_unreadable", f"the model sent {what}")


def require_readable_start(block: object) -> None:
    """Raises BackendError if the start of a content block cannot be used.

    A start needs a type and fields of the right types; a tool call also needs an id and a name.
    """
    if not isinstance(block, dict):
        raise unreadable("a content block that is no object")
    kind = block.get("type")
    if not isinstance(kind, str) or not kind:
        raise unreadable("a content block without a type")
    for name, wanted in KNOWN_BLOCKS.get(kind, {}).items():
        if not isinstance(block.get(name, wanted()), wanted):
            raise unreadable(f"a {kind} block whose {name} cannot be read")
    if kind.endswith("_tool_result") and not isinstance(block.get("tool_use_id", ""), str):
        raise unreadable(f"a {kind[:40]} block whose tool_use_id cannot be read")
    # A call without a name cannot be executed, and a call without an id cannot be answered.
    if kind in KNOWN_BLOCKS and events.is_tool_use(kind) and not (block.get("id") and block.get("name")):
        raise unreadable(f"a {kind} block without an id or a name")


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
