"""What Claude Code prints becomes one message in Anthropic's events. Pure; what it does with its tools is not told.

Claude Code asks its model several times for one answer: for each it prints the model's own events (`stream_event`), and
at the end a `result`. Here the first message's beginning is the beginning, text and thoughts of all of them are blocks
of it, numbered on, and the end has the usage of all. Tool calls and their results stay in Claude Code's own hands.
"""

import msgspec

from tailrace.generators.backends.anthropic_api import code_of
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import BackendError
from tailrace.proto.usage import Usage

TOLD = ("text", "thinking", "redacted_thinking")

Told = tuple[str, bytes]
"""An event's type, and the event."""


class Line(msgspec.Struct, frozen=True):
    """As much of a line as is looked into."""

    type: str
    event: msgspec.Raw = msgspec.Raw(b"null")
    parent_tool_use_id: str | None = None
    """Set for what is said within a task that it has given away: that is no part of the answer."""
    is_error: bool = False
    api_error_status: int | None = None
    api_error_type: str | None = None
    api_error: str | None = None
    result: str = ""
    subtype: str = ""


read_line = msgspec.json.Decoder(Line).decode
fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class ClaudeCodeOutput:
    """One answer, line by line."""

    def __init__(self) -> None:
        self.is_over = False
        self.awaits_model = True
        """Whether silence is the model's, and not that of a tool at work."""
        self._has_begun = False
        self._next = 0
        self._places: dict[int, int] = {}
        # A stop is held back until something follows: Claude Code closes blocks that were broken off, too, and their
        # message without a reason.
        self._unstopped: list[int] = []
        self._usage = Usage()
        self._usage_call = Usage()
        self._stop = msgspec.Raw(b"{}")
        self._is_whole = False

    def read(self, line: bytes) -> list[Told]:
        """The events in `line`, mostly none or one. Raises BackendError when it says that the answer broke off."""
        try:
            said = read_line(line)
        except DECODE_ERRORS as error:
            raise BackendError("backend_broken", "Claude Code printed a line that cannot be read") from error
        if said.parent_tool_use_id is not None:
            return []
        match said.type:
            case "stream_event":
                return self._event(bytes(said.event))
            case "user":
                self.awaits_model = True  # with a tool's result
            case "result":
                return self._result(said)
        return []

    def _event(self, raw: bytes) -> list[Told]:
        match events.decode(raw):
            case events.MessageStart(message):
                self._usage_call, self._is_whole = message.usage, False
                self._places.clear()
                begun, self._has_begun = self._has_begun, True
                return [] if begun else [("message_start", raw)]
            case events.BlockStart(index, block) if block.get("type") in TOLD:
                self._places[index] = self._next
                self._next += 1
                return [*self._stops(), told(events.BlockStart(self._next - 1, block))]
            case events.BlockDelta(index, delta) if index in self._places:
                return [told(events.BlockDelta(self._places[index], delta))]
            case events.BlockStop(index) if index in self._places:
                self._unstopped.append(self._places.pop(index))
            case events.MessageDelta(stop, usage) if stop.stop_reason is not None:
                self._usage += usage.merge_into(self._usage_call)
                self._stop, self._is_whole = fields_of(raw)["delta"], True
                self.awaits_model = False
                return self._stops()
        return []

    def _stops(self) -> list[Told]:
        stopped, self._unstopped = self._unstopped, []
        return [told(events.BlockStop(place)) for place in stopped]

    def _result(self, said: Line) -> list[Told]:
        self.is_over = True
        if said.is_error or said.subtype != "success" or not self._is_whole:
            raise failure(said)
        usage = msgspec.to_builtins(self._usage)
        return [("message_delta", msgspec.json.encode({"type": "message_delta", "delta": self._stop, "usage": usage}))]


def told(event: events.BlockStart | events.BlockDelta | events.BlockStop) -> Told:
    kinds = {
        events.BlockStart: "content_block_start",
        events.BlockDelta: "content_block_delta",
        events.BlockStop: "content_block_stop",
    }
    return kinds[type(event)], bytes(events.encode(event))


def failure(said: Line) -> BackendError:
    """What a result that is none is to us: the API's own error as far as Claude Code passes it on."""
    message = said.result or "Claude Code came to no result"
    if said.api_error_status is not None or said.api_error_type is not None:
        return BackendError(code_of(said.api_error_status or 200, said.api_error_type), message)
    if said.api_error is not None:
        return BackendError("backend_broken", message)
    return BackendError("backend_failed", message)
