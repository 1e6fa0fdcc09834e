"""Builds the UI messages of a chat from its turns: the same messages that `useChat` has after all streams.

The parts are built from the chunks that are streamed, like in `ai`'s process-ui-message-stream.ts, so that a page shows
the same after a reload, except for a tool call that was cut, which is left out.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from tailrace.gateway.turns.conversation_match import is_seen
from tailrace.proto.entries import Message
from tailrace.proto.records import TurnRecord
from tailrace.protocols.ai_sdk.part import Chunk, content_chunks
from tailrace.protocols.ai_sdk.stream import Earlier, message_id, record_chunks, tool_results
from tailrace.protocols.common.earlier_steps import goes_on
from tailrace.protocols.common.file_block import file_url
from tailrace.protocols.common.media_types import PDF

Part = dict[str, Any]

# Fields that a part takes over from its chunk, whatever the chunk's type.
COPIED = ("providerMetadata", "providerExecuted", "input", "output", "errorText")


class UIMessage(msgspec.Struct, omit_defaults=True):
    """A message in the format of `useChat`. Mutable only while this module builds it."""

    id: str
    role: str
    metadata: dict[str, Any] = {}
    parts: list[Part] = msgspec.field(default_factory=list)


def build_messages(turns: Iterable[TurnRecord], decided: Iterable[Message] = ()) -> list[UIMessage]:
    """Returns the turns of a conversation as UI messages. Tool results become parts of the message with their call.

    `decided`: see Branch.
    """
    built: list[UIMessage] = []
    # The parts of tool calls by id: a conversation may hold twenty thousand.
    calls: dict[str, Part] = {}
    for turn in turns:
        for number, message in enumerate(turn.input):
            _add_input(built, calls, message, f"{turn.turn}_{number}")
        if turn.outcome != "running":
            is_new = not (goes_on(turn) and built and built[-1].role == "assistant")
            if is_new:
                built.append(UIMessage(message_id(turn.turn, turn.metadata), "assistant"))
            for chunk in record_chunks(turn, Earlier("" if is_new else built[-1].id)):
                add_chunk(built[-1], calls, chunk)
    for message in decided:
        _add_input(built, calls, message, "")
    return built


def _add_input(built: list[UIMessage], calls: dict[str, Part], message: Message, name: str) -> None:
    """Adds a message of the request. Tool results go into the message with the tool call."""
    if not is_seen(message):
        return
    blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
    tool_outputs = tool_results(blocks)
    for chunk in tool_outputs if built else []:
        add_chunk(built[-1], calls, chunk)
    if message.role == "assistant":
        built.append(UIMessage(name, message.role))
        for chunk in content_chunks(blocks, None):
            add_chunk(built[-1], calls, chunk)
        return
    parts = [part for block in blocks for part in _user_parts(block)]
    if parts or not tool_outputs:
        built.append(UIMessage(name, message.role, parts=parts))


def _user_parts(block: dict[str, Any]) -> list[Part]:
    match block:
        # An expired blob is an empty string.
        case {"type": "text", "text": ""} | {"type": "image" | "document", "source": {"data": ""}}:
            return []
        case {"type": "text", "text": str(text)}:
            return [{"type": "text", "text": text}]
        case {"type": "image" | "document", "source": dict(source)}:
            filename = {"filename": block["title"]} if isinstance(block.get("title"), str) else {}
            # The exact type of an image at a URL is not known.
            media = source.get("media_type") or ("image" if block["type"] == "image" else PDF)
            return [{"type": "file", "mediaType": media, "url": file_url(source), **filename}]
        case _:
            return []


def add_chunk(message: UIMessage, calls: dict[str, Part], chunk: Chunk) -> None:
    """Adds a chunk to its message, or to the part in `calls` that it belongs to."""
    rest = {name: value for name, value in chunk.items() if name in COPIED}
    match chunk:
        case {"type": "start" | "finish" | "message-metadata", "messageMetadata": metadata}:
            message.metadata = {**message.metadata, **metadata}
        case {"type": "start-step"}:
            message.parts.append({"type": "step-start"})
        case {"type": "text-start"}:
            message.parts.append({"type": "text", "text": "", "state": "done"})
        case {"type": "reasoning-start", "id": name}:
            message.parts.append({"type": "reasoning", "id": name, "text": "", "state": "done", **rest})
        case {"type": "text-delta" | "reasoning-delta" as kind, "delta": delta}:
            _last(message, kind.removesuffix("-delta"))["text"] += delta
        case {"type": "text-end" | "reasoning-end" as kind}:
            _last(message, kind.removesuffix("-end")).update(rest)
        case {"type": "tool-input-available" | "tool-input-error" as kind, "toolCallId": call, "toolName": name}:
            state = "input-available" if kind == "tool-input-available" else "output-error"
            calls[call] = {**_tool(chunk, name), "toolCallId": call, "state": state, **rest}
            message.parts.append(calls[call])
        # A result without a call is left out.
        case {"type": "tool-output-available" | "tool-output-error" as kind, "toolCallId": call} if call in calls:
            calls[call].update({"state": kind.removeprefix("tool-"), **rest})
        case {"type": str(kind)} if kind.startswith(("data-", "source-")):
            message.parts.append(dict(chunk))
        case _:
            # Other chunks, such as deltas of a tool's input and the ends of steps, are not stored in a message.
            pass


def _tool(chunk: Chunk, name: str) -> Part:
    """Returns the fields that name the tool of a part."""
    return {"type": "dynamic-tool", "toolName": name} if chunk.get("dynamic") else {"type": f"tool-{name}"}


def _last(message: UIMessage, kind: str) -> Part:
    return next(part for part in reversed(message.parts) if part["type"] == kind)
