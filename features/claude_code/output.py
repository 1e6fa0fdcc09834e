"""Turns the output of Claude Code into one message in Anthropic's events. Pure.

For one answer, Claude Code calls its model several times. It prints the events of each call (`stream_event`), and at
the end a `result`. The calls become one message: it begins with the start of the first call and ends with the end of
the last one. Text, thinking and tool calls of all calls are its blocks, numbered without a gap. Each call has a price
of its own, also if the answer breaks off later, so hidden events report the usage of the other calls. A tool call
becomes a `server_tool_use` with `executed_by`: Claude Code executes it, and its result is left out.
"""

import msgspec

from tailrace.generators.backends.api_errors import api_error, code_for
from tailrace.generators.backends.model_event import ModelEvent, from_event, move, read_event
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Prefix
from tailrace.proto.errors import BackendError

# Claude Code writes the prompts of its calls itself. Their thinking is not sent back to the API (PROTOCOL R140).
PROMPT = Prefix(system="", tools="", messages="", is_extended=True)
SHOWN_BLOCKS = ("text", "thinking", "redacted_thinking")


class Line(msgspec.Struct, frozen=True):
    """The fields of an output line that are used."""

    type: str
    event: msgspec.Raw = msgspec.Raw(b"null")
    parent_tool_use_id: str | None = None
    """Set within a delegated task, whose output is no part of the answer."""
    is_error: bool = False
    api_error_status: int | None = None
    api_error_type: str | None = None
    api_error: str | None = None
    result: str = ""
    subtype: str = ""


_decode_line = msgspec.json.Decoder(Line).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class ClaudeCodeOutput:
    """The state of one answer, line by line."""

    def __init__(self) -> None:
        self.is_over = False
        self.awaits_model = True
        """Whether the next output comes from the model, and not from a tool that is running."""
        self._has_begun = False
        self._next = 0
        # From the current call's block index to the message's.
        self._targets: dict[int, int] = {}
        # Stops are held until something follows: Claude Code also closes blocks that broke off, and then their message
        # without a stop reason.
        self._held_stops: list[int] = []
        self._usage, self._is_reported = events.UsageSoFar(), True
        self._stop = msgspec.Raw(b"{}")
        self._is_complete = False

    def read(self, line: bytes) -> list[ModelEvent]:
        """Returns the events of `line`, usually none or one. Raises BackendError if the answer broke off."""
        try:
            output = _decode_line(line)
        except DECODE_ERRORS as error:
            raise BackendError("backend_broken", "Claude Code printed a line that cannot be read") from error
        if output.parent_tool_use_id is not None:
            return []
        match output.type:
            case "stream_event":
                return self._event(output.event)
            case "user":
                self.awaits_model = True  # a tool's result
            case "result":
                return self._result(output)
        return []

    def _event(self, raw: msgspec.Raw) -> list[ModelEvent]:
        try:
            read = read_event(bytes(raw))
        except BackendError as error:
            if error.code == "backend_unreadable":
                raise
            # An `error` event: Claude Code repeats the call itself, or reports the error in its result.
            return []
        match read.event if read is not None else None:
            case events.MessageStart() as start:
                self._is_complete = False
                self._targets.clear()
                had_begun, self._has_begun = self._has_begun, True
                reports = self.report_usage()
                begun = ModelEvent(start, msgspec.Raw(bytes(raw)), "message_start", is_hidden=had_begun, prefix=PROMPT)
                return [*reports, begun]
            case events.BlockStart(index, block) if block.get("type") in SHOWN_BLOCKS:
                self._targets[index] = self._next
                self._next += 1
                return [*self._flush_stops(), from_event(events.BlockStart(self._next - 1, block))]
            case events.BlockStart(index, {"type": "tool_use", "id": str(call), "name": str(name)}):
                shown = {"type": "server_tool_use", "id": call, "name": name, "input": {}, "executed_by": "claude_code"}
                self._targets[index] = self._next
                self._next += 1
                return [*self._flush_stops(), from_event(events.BlockStart(self._next - 1, shown))]
            case events.BlockDelta(index, delta) if index in self._targets:
                return [from_event(events.BlockDelta(self._targets[index], delta))]
            case events.BlockStop(index) if index in self._targets:
                self._held_stops.append(self._targets.pop(index))
            case events.MessageDelta(stop, usage) if stop.stop_reason is not None:
                self._usage, self._is_reported = usage, False
                self._stop, self._is_complete = _decode_fields(raw)["delta"], True
                self.awaits_model = False
                # A tool may run for minutes. After any other stop reason the result, with the usage, follows at once.
                return [*self._flush_stops(), *(self.report_usage() if stop.stop_reason == "tool_use" else [])]
            case events.UnknownEvent() if read is not None and read.index in self._targets:
                return [move(read, self._targets[read.index])]
        return []

    def report_usage(self) -> list[ModelEvent]:
        """Returns a hidden event with the usage of the last ended call, unless it was returned already."""
        if self._is_reported:
            return []
        self._is_reported = True
        return [msgspec.structs.replace(_message_delta(msgspec.Raw(b"{}"), self._usage), is_hidden=True)]

    def _flush_stops(self) -> list[ModelEvent]:
        stops, self._held_stops = self._held_stops, []
        return [from_event(events.BlockStop(index)) for index in stops]

    def _result(self, output: Line) -> list[ModelEvent]:
        self.is_over = True
        if output.is_error or output.subtype != "success" or not self._is_complete:
            raise _failure(output)
        return [_message_delta(self._stop, self._usage)]


def _message_delta(stop: msgspec.Raw, usage: events.UsageSoFar) -> ModelEvent:
    counts = {name: count for name, count in msgspec.structs.asdict(usage).items() if count is not None}
    fields = {"type": "message_delta", "delta": stop, "usage": counts}
    raw = msgspec.Raw(msgspec.json.encode(fields))
    return ModelEvent(events.decode(raw), raw, "message_delta")


def _failure(output: Line) -> BackendError:
    """Maps a failed result to a BackendError: the API's own error, as far as Claude Code reports it."""
    message = output.result or "Claude Code came to no result"
    if output.api_error_status is not None or output.api_error_type is not None:
        return api_error(code_for(output.api_error_status or 200, output.api_error_type), message)
    if output.api_error is not None:
        return BackendError("backend_broken", message)
    return BackendError("backend_failed", message)
