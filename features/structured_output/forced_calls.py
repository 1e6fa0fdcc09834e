"""Forced tool calls for models without them: structured output, which is stored as the call (PROTOCOL R77). Pure.

The log then holds an ordinary tool call, so every dialect, resume and the session's history work as for any other call.
The arguments are stored while they arrive. The text of an answer without a call is stored, too, and the plan requests
one more answer.
"""

import re
from typing import Any

import msgspec

from tailrace.features.common.schema_prompt import append_to_question
from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import ModelEvent, Sink, from_event
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.forced_tools import Functions, call_schema, forced_functions

ONE_PROMPT = "Your whole answer is the arguments of one call of the function `{names}`, as a JSON object."
CHOICE_PROMPT = (
    "Your whole answer is one call of one of these functions, as a JSON object that has first the function's `name` "
    "and then its `arguments`: {names}."
)
NAMED_CALL = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\{)')
# The beginning of a call is shorter, even with the longest name. A longer text is decoded only at its end.
OPENING_CHARS_MAX = 512


class _NamedCall(msgspec.Struct, frozen=True):
    name: str
    arguments: msgspec.Raw


def request_forced_call(call: Call, request: Request, _turn: Turn) -> Call:
    """Returns `call` with the schema of a tool call instead of a forced tool choice that the model refuses."""
    functions = forced_functions(request)
    if not functions:
        return call
    options = {name: value for name, value in (call.options or {}).items() if name != "output_format"}
    config = options.get("output_config")
    answer_format = {"type": "json_schema", "schema": call_schema(functions)}
    options["output_config"] = (config if isinstance(config, dict) else {}) | {"format": answer_format}
    # The tools stay: the API wants the definitions of those that were called earlier in the conversation.
    options["tool_choice"] = {"type": "none"}
    prompt = (ONE_PROMPT if len(functions) == 1 else CHOICE_PROMPT).format(names=", ".join(functions))
    return append_to_question(msgspec.structs.replace(call, options=options), prompt)


def write_forced_call(sink: Sink, request: Request, _turn: Turn) -> Sink:
    """Returns a sink that passes the answer to `sink` as a tool call; `sink` itself if no call is forced."""
    functions = forced_functions(request)
    if not functions:
        return sink
    mapper = CallMapper(functions)

    def map_event(event: ModelEvent) -> None:
        for one in mapper.map(event):
            sink(one)

    return map_event


class CallMapper:
    """Maps the events of one answer: its first text block that begins a call becomes a tool call."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._call_id = ""
        # A text block that may become a call: its start event, and its text so far.
        self._start: ModelEvent | None = None
        self._held = ""
        # The index of the call's block, and the end of its text that may close the object around the arguments.
        self._call: int | None = None
        self._tail = ""

    def map(self, event: ModelEvent) -> list[ModelEvent]:
        """Returns the events that the log gets for an event of the model."""
        match event.event:
            case events.MessageStart(head):
                # Derived from the message, so that every generator writes the same result of a message batch.
                self._call_id = f"toolu_{head.id.removeprefix('msg_')}"
            case events.BlockStart(_, {"type": "text"} as block) if self._call is None:
                self._start, self._held = event, ""
                return self._hold(str(block.get("text", "")))
            case events.BlockDelta(_, events.TextDelta(text)) if self._start is not None:
                return self._hold(text)
            case events.BlockStop() if self._start is not None:
                return [*self._decide_at_end(), event]
            case events.BlockDelta(index, events.TextDelta(text)) if index == self._call:
                return self._arguments_delta(text)
            case events.BlockDelta(index, events.CitationsDelta()) if index == self._call:
                return []
            case events.MessageDelta(events.StopReason("end_turn")) if self._call is not None:
                return [_stop_for_tool(event)]
            case _:
                pass
        return [*self._release(), event]

    def _hold(self, text: str) -> list[ModelEvent]:
        """Adds `text` to the held block; returns its events as soon as it is known to be a call, or text."""
        self._held += text
        beginning = self._held.lstrip()
        if not beginning:
            return []
        if not beginning.startswith("{"):
            return self._release()
        if len(self._functions) == 1:
            return self._open(next(iter(self._functions)), beginning)
        found = NAMED_CALL.match(self._held) if len(self._held) <= OPENING_CHARS_MAX else None
        if found is None or found[1] not in self._functions:
            return []
        return self._open(found[1], self._held[found.end() :])

    def _decide_at_end(self) -> list[ModelEvent]:
        """Returns the events of the held block at its end: a call whose fields have another order, or text."""
        try:
            call = msgspec.json.decode(self._held, type=_NamedCall)
        except DECODE_ERRORS:
            return self._release()
        if call.name not in self._functions:
            return self._release()
        # With the closing brace that `_arguments_delta` expects after the arguments, and leaves out.
        return self._open(call.name, f"{bytes(call.arguments).decode()}}}")

    def _open(self, name: str, arguments: str) -> list[ModelEvent]:
        assert self._start is not None  # noqa: S101
        assert isinstance(self._start.event, events.BlockStart)  # noqa: S101
        self._call, self._start = self._start.event.index, None
        block: dict[str, Any] = {"type": "tool_use", "id": self._call_id, "name": name, "input": {}}
        return [from_event(events.BlockStart(self._call, block)), *self._arguments_delta(arguments)]

    def _arguments_delta(self, text: str) -> list[ModelEvent]:
        """Returns the delta of the arguments, without a closing brace that may belong to the object around them."""
        if len(self._functions) > 1:
            text = self._tail + text
            kept = text.rstrip().removesuffix("}").rstrip()
            text, self._tail = kept, text[len(kept) :]
        assert self._call is not None  # noqa: S101
        return [from_event(events.BlockDelta(self._call, events.InputJsonDelta(text)))] if text else []

    def _release(self) -> list[ModelEvent]:
        """Returns the events of the held block as text."""
        if self._start is None:
            return []
        start, self._start = self._start, None
        assert isinstance(start.event, events.BlockStart)  # noqa: S101
        text = self._held.removeprefix(str(start.event.content_block.get("text", "")))
        delta = [from_event(events.BlockDelta(start.event.index, events.TextDelta(text)))] if text else []
        return [start, *delta]


def _stop_for_tool(event: ModelEvent) -> ModelEvent:
    """Returns a `message_delta` with the stop reason `tool_use` and all its other fields."""
    fields = msgspec.json.decode(event.raw)
    fields["delta"]["stop_reason"] = "tool_use"
    raw = msgspec.Raw(msgspec.json.encode(fields))
    return msgspec.structs.replace(event, event=events.decode(raw), raw=raw, original="")
