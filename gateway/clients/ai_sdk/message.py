"""UI messages from a chat's history: what a client that was there the whole time would have. Pure.

The parts are made from the same chunks that are streamed, as `ai`'s process-ui-message-stream.ts makes them, so that a
page that was loaded anew and one that was not show the same.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from tailrace.gateway.clients.ai_sdk.part import Chunk, whole
from tailrace.gateway.clients.ai_sdk.stream import MESSAGE, chunks, message_id, results
from tailrace.proto.entries import Message
from tailrace.proto.records import TurnRecord

Part = dict[str, Any]

# What a part has from whichever chunk makes it.
KEPT = ("providerMetadata", "providerExecuted")


class UIMessage(msgspec.Struct, omit_defaults=True):
    """One message as `useChat` keeps it. It is filled while it is made, and never leaves here before it is whole."""

    id: str
    role: str
    metadata: dict[str, Any] = {}
    parts: list[Part] = msgspec.field(default_factory=list)


def messages(turns: Iterable[TurnRecord]) -> list[UIMessage]:
    told: list[UIMessage] = []
    # By their ids: a conversation may hold twenty thousand.
    calls: dict[str, Part] = {}
    for turn in turns:
        for number, message in enumerate(turn.input):
            _hear(told, calls, message, f"{turn.turn}_{number}")
        if turn.outcome != "running":
            if MESSAGE not in turn.metadata or not told or told[-1].role != "assistant":
                told.append(UIMessage(message_id(turn.turn, turn.metadata), "assistant"))
            for chunk in chunks(turn):
                add(told[-1], calls, chunk)
    return told


def _hear(told: list[UIMessage], calls: dict[str, Part], message: Message, name: str) -> None:
    """What a client has said: a tool's results belong to the message that called it."""
    blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
    answers = results(blocks)
    for chunk in answers if told else []:
        add(told[-1], calls, chunk)
    if answers:
        return
    told.append(UIMessage(name, message.role))
    for index, block in enumerate(blocks):
        if message.role == "assistant":
            for chunk in whole(index, block):
                add(told[-1], calls, chunk)
        else:
            told[-1].parts += _said(block)


def _said(block: dict[str, Any]) -> list[Part]:
    match block:
        # What has expired is empty.
        case {"type": "text", "text": ""} | {"type": "image" | "document", "source": {"data": ""}}:
            return []
        case {"type": "text", "text": str(text)}:
            return [{"type": "text", "text": text}]
        case {"type": "image" | "document", "source": dict(source)}:
            named = {"filename": block["title"]} if isinstance(block.get("title"), str) else {}
            return [{"type": "file", **_file(source, block["type"]), **named}]
        case _:
            return []


def _file(source: dict[str, Any], kind: str) -> dict[str, str]:
    match source:
        case {"type": "url", "url": str(url)}:
            # Of a picture, nobody has said which kind it is.
            return {"mediaType": "image" if kind == "image" else "application/pdf", "url": url}
        case {"type": "text", "data": str(text)}:
            return {"mediaType": "text/plain", "url": f"data:text/plain,{quote(text)}"}
        case _:
            media = str(source.get("media_type", ""))
            return {"mediaType": media, "url": f"data:{media};base64,{source.get('data')}"}


def add(message: UIMessage, calls: dict[str, Part], chunk: Chunk) -> None:
    """What a chunk makes of the message that it belongs to, and of the `calls` before it."""
    rest = {name: value for name, value in chunk.items() if name in KEPT}
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
        case {"type": "reasoning-end"}:
            _last(message, "reasoning").update(rest)
        case {"type": "tool-input-available", "toolCallId": call, "toolName": name, "input": given}:
            state = {"state": "input-available", "input": given}
            calls[call] = {"type": f"tool-{name}", "toolCallId": call, **state, **rest}
            message.parts.append(calls[call])
        case {"type": "tool-input-error", "toolCallId": call, "toolName": name, "errorText": error, "input": given}:
            state = {"state": "output-error", "input": given, "errorText": error}
            calls[call] = {"type": f"tool-{name}", "toolCallId": call, **state, **rest}
            message.parts.append(calls[call])
        # A result that is of no call is told to nobody.
        case {"type": "tool-output-available", "toolCallId": call, "output": output} if call in calls:
            calls[call].update({"state": "output-available", "output": output, **rest})
        case {"type": "tool-output-error", "toolCallId": call, "errorText": error} if call in calls:
            calls[call].update({"state": "output-error", "errorText": error, **rest})
        case {"type": "source-url" | "source-document" | "data-tailrace"}:
            message.parts.append(dict(chunk))
        case _:
            # Parts of a call's input, steps' ends, an end's words: nothing that a message keeps.
            pass


def _last(message: UIMessage, kind: str) -> Part:
    return next(part for part in reversed(message.parts) if part["type"] == kind)
