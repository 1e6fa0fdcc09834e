"""The text, thinking, and inputs and results of tools that a client of each dialect shows for the bytes it received."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.harness.displayed_text import SAYS, data

Json = dict[str, Any]
# Of the error with which a client drops the answer, in dialects that have no event for that.
RESTARTED = "the answer starts again"


class Piece(NamedTuple):
    """A change of what is shown: `text` is added to the part `name` of a kind, or replaces it."""

    kind: str
    name: object
    text: str
    is_whole: bool = False


class Reset(NamedTuple):
    """All that is shown is discarded."""


Change = Piece | Reset
Shown = dict[str, list[str]]
"""The parts that are shown, by kind."""


def tailrace(event: Json) -> Iterator[Change]:
    match event:
        case {"type": "reset"}:
            yield Reset()
        case {"type": "thinking", "text": text}:
            yield Piece("thinking", event.get("index", 0), text)
        case {"type": "tool_use", "index": index, "partial_json": text}:
            yield Piece("input", index, text)
        case {"type": "block", "index": index, "block": block}:
            yield from whole_block(index, block)


def anthropic(event: Json) -> Iterator[Change]:
    match event:
        case {"type": "message_start"}:
            yield Reset()
        case {"type": "content_block_start", "index": index, "content_block": block}:
            yield Piece("text", index, block.get("text", ""))
            yield from whole_block(index, block)
        case {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}:
            yield Piece("text", index, text)
        case {"type": "content_block_delta", "index": index, "delta": {"type": "thinking_delta", "thinking": text}}:
            yield Piece("thinking", index, text)
        case {
            "type": "content_block_delta",
            "index": index,
            "delta": {"type": "input_json_delta", "partial_json": text},
        }:
            yield Piece("input", index, text)


def whole_block(index: int, block: Json) -> Iterator[Change]:
    if given := block.get("input"):
        yield Piece("input", index, json.dumps(given))
    if "tool_use_id" in block:
        yield Piece("result", index, json.dumps(block["content"]))


def ui(event: Json) -> Iterator[Change]:
    match event:
        case {"type": "reset-step"}:
            yield Reset()
        case {"type": "reasoning-delta", "id": name, "delta": text}:
            yield Piece("thinking", name, text)
        case {"type": "tool-input-delta", "toolCallId": name, "inputTextDelta": text}:
            yield Piece("input", name, text)
        case {"type": "tool-output-available", "toolCallId": name, "output": output}:
            yield Piece("result", name, json.dumps(output))


def ag_ui(event: Json) -> Iterator[Change]:
    match event:
        case {"type": "MESSAGES_SNAPSHOT"}:
            yield Reset()
        case {"type": "REASONING_MESSAGE_CONTENT", "messageId": name, "delta": text}:
            yield Piece("thinking", name, text)
        case {"type": "TOOL_CALL_ARGS", "toolCallId": name, "delta": text}:
            yield Piece("input", name, text)
        case {"type": "TOOL_CALL_RESULT", "toolCallId": name, "content": text}:
            yield Piece("result", name, text)


def delta(event: Json) -> Iterator[Change]:
    match event:
        case {"type": "delta", "text": text}:
            yield Piece("text", 0, text)
        case {"type": "error", "message": message} if RESTARTED in message:
            yield Reset()


def content(event: Json) -> Iterator[Change]:
    match event:
        case {"error": message} if RESTARTED in message:
            yield Reset()
        case {"content": text}:
            yield Piece("text", 0, text)


def openai_chat(event: Json) -> Iterator[Change]:
    if RESTARTED in event.get("error", {}).get("message", ""):
        yield Reset()
    for choice in event.get("choices", ()):
        if text := choice["delta"].get("content"):
            yield Piece("text", 0, text)
        if text := choice["delta"].get("reasoning_content"):
            yield Piece("thinking", 0, text)
        for call in choice["delta"].get("tool_calls", ()):
            yield Piece("input", call["index"], call["function"].get("arguments", ""))


def openai_responses(event: Json) -> Iterator[Change]:
    """The `done` events have the whole part, which replaces its deltas; the last event has the whole response."""
    match event:
        case {"type": "response.created"}:
            yield Reset()
        case {"type": "response.output_text.delta", "output_index": index, "delta": text}:
            yield Piece("text", index, text)
        case {"type": "response.reasoning_summary_text.delta", "output_index": index, "delta": text}:
            yield Piece("thinking", index, text)
        case {"type": "response.function_call_arguments.delta", "output_index": index, "delta": text}:
            yield Piece("input", index, text)
        case {"type": "response.output_item.done", "output_index": index, "item": item}:
            yield from whole_item(index, item)
        case {"type": "response.completed" | "response.incomplete" | "response.failed", "response": response}:
            yield Reset()
            for index, item in enumerate(response["output"]):
                yield from whole_item(index, item)


def whole_item(index: int, item: Json) -> Iterator[Change]:
    match item:
        case {"type": "message", "content": [{"text": text}]}:
            yield Piece("text", index, text, is_whole=True)
        case {"type": "reasoning", "summary": [{"text": text}]}:
            yield Piece("thinking", index, text, is_whole=True)
        case {"type": "function_call", "arguments": text}:
            yield Piece("input", index, text, is_whole=True)
        case {"type": "web_search_call", "action": action}:
            yield Piece("result", index, json.dumps(action), is_whole=True)


CHANGES: dict[str, Callable[[Json], Iterator[Change]]] = {
    "tailrace": tailrace,
    "anthropic": anthropic,
    "delta": delta,
    "content": content,
    "ui": ui,
    "ag-ui": ag_ui,
    "ag-ui-1": ag_ui,
    "openai-chat": openai_chat,
    "openai-chat-usage": openai_chat,
    "openai-responses": openai_responses,
}
"""For the dialects that have more than text, or an error in place of a reset. The others show text alone."""
OWN_TEXT = ("anthropic", "delta", "content", "openai-chat", "openai-chat-usage", "openai-responses")
"""Those of which `displayed_text` knows no way to drop a text."""


def show(dialect: str, sent: bytes) -> Shown:
    """Returns what a client shows. Inputs and results are values: another form of the same JSON is no difference."""
    parts: dict[tuple[str, object], str] = {}
    for event in data(sent) if dialect in CHANGES else ():
        for change in CHANGES[dialect](event):
            match change:
                case Reset():
                    parts.clear()
                case Piece(kind, name, text, is_whole=is_whole):
                    parts[kind, name] = text if is_whole else parts.get((kind, name), "") + text
    shown: Shown = {}
    for (kind, _), text in parts.items():
        shown.setdefault(kind, []).append(_value(text) if kind in ("input", "result") else text)
    if dialect not in OWN_TEXT:
        return shown | {"text": [SAYS[dialect](sent)]}
    return shown | {"text": ["".join(shown.get("text", ()))]}


def _value(text: str) -> str:
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text


LAST_ID = re.compile(rb'^(?:id: ([0-9]+(?:-[0-9]+)?)|data: .*"cursor":([0-9]+)\})$', re.MULTILINE)
"""An `id:` line, or the field `cursor` at the end of an event."""


def last_id(received: bytes) -> str | None:
    """Returns the cursor that a client sends after it has received these bytes; None if it has none."""
    found = [one[1] or one[2] for one in LAST_ID.finditer(received)]
    return found[-1].decode() if found else None
