"""Builds the messages of AG-UI: of a conversation in Anthropic's format, and of a client's page after a reload. Pure.

The messages of an answer are made of its events, as the client makes them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tailrace.gateway.turns.conversation_match import is_seen
from tailrace.proto.conversation import simplify
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Message
from tailrace.protocols.ag_ui.blocks import Answer, add_blocks, close_blocks
from tailrace.protocols.ag_ui.events import Json


def build_messages(messages: Iterable[Message], name: str) -> list[Json]:
    """Returns the messages of a conversation that a page shows. Their ids are made of `name` and their numbers."""
    found: list[Json] = []
    for number, message in enumerate(messages):
        blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
        own = f"in_{name}_{number}"
        if message.role == "assistant":
            shown, answer = add_blocks(Answer(own), blocks)
            add_events(found, [*shown, *close_blocks(answer)[0]])
        elif message.role == "system":
            text = text_of(blocks)
            found += [{"id": own, "role": "system", "content": text}] if text and is_seen(message) else []
        else:
            found += _tool_messages(blocks, own)
            parts = [part for block in blocks if (part := _part(block)) is not None]
            found += [{"id": own, "role": "user", "content": simplify(parts)}] if parts else []
    return found


def add_events(messages: list[Json], shown: Iterable[Json]) -> None:
    """Adds the messages, and their content, of the events of an answer."""
    by_id = {message["id"]: message for message in messages}

    def add(message: Json) -> Json:
        messages.append(message)
        by_id[message["id"]] = message
        return message

    calls: dict[str, Json] = {}
    for event in shown:
        match event:
            case {"type": "TEXT_MESSAGE_START", "messageId": name}:
                add({"id": name, "role": "assistant", "content": ""})
            case {"type": "REASONING_MESSAGE_START", "messageId": name}:
                add({"id": name, "role": "reasoning", "content": ""})
            case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": name, "delta": delta}:
                by_id[name]["content"] += delta
            case {"type": "REASONING_ENCRYPTED_VALUE", "entityId": name, "encryptedValue": secret}:
                by_id[name]["encryptedValue"] = secret
            case {"type": "TOOL_CALL_START", "toolCallId": call, "toolCallName": tool, "parentMessageId": name, **rest}:
                owner = by_id.get(name) or add({"id": name, "role": "assistant"})
                calls[call] = {"id": call, "type": "function", "function": {"name": tool, "arguments": ""}, **rest}
                owner.setdefault("toolCalls", []).append(calls[call])
            case {"type": "TOOL_CALL_ARGS", "toolCallId": call, "delta": delta}:
                calls[call]["function"]["arguments"] += delta
            case {"type": "TOOL_CALL_RESULT", "messageId": name, "toolCallId": call, "content": content}:
                add({"id": name, "role": "tool", "toolCallId": call, "content": content})
            case _:
                pass


def build_page(messages: Sequence[Json]) -> list[Json]:
    """Returns messages of AG-UI as TanStack AI keeps them after a stream: a call and its result are in one message.

    What follows a result is another message: TanStack AI sends all texts of a message back before its calls.
    """
    found: list[Json] = []
    calls: dict[str, Json] = {}
    for message in messages:
        match message["role"]:
            case "user" | "system" as role:
                content = message["content"]
                parts = [{"type": "text", "content": content}] if isinstance(content, str) else map(_page_part, content)
                found.append({"id": message["id"], "role": role, "parts": list(parts)})
            case _:
                if not found or found[-1]["role"] != "assistant" or _ends_before(message, found[-1]["parts"]):
                    found.append({"id": message["id"], "role": "assistant", "parts": []})
                if message["role"] == "assistant":
                    # The id with which the answer is streamed.
                    found[-1]["id"] = message["id"]
                parts = _answer_parts(message)
                found[-1]["parts"] += parts
                calls |= {part["id"]: part for part in parts if part["type"] == "tool-call"}
                if message["role"] == "tool" and message["toolCallId"] in calls:
                    text = message["content"]
                    calls[message["toolCallId"]] |= {"state": "complete", "output": _json_of(text) or text}
    return found


def _json_of(text: str) -> msgspec.Raw | None:
    """Returns a JSON text as it is; None if it is none."""
    try:
        msgspec.json.decode(text)
    except DECODE_ERRORS:
        return None
    return msgspec.Raw(text.encode())


def _ends_before(message: Json, parts: list[Json]) -> bool:
    return message["role"] != "tool" and bool(parts) and parts[-1]["type"] == "tool-result"


def _answer_parts(message: Json) -> list[Json]:
    match message:
        case {"role": "reasoning", "content": text}:
            signature = {"signature": message["encryptedValue"]} if "encryptedValue" in message else {}
            return [{"type": "thinking", "content": text, **signature}]
        case {"role": "tool", "toolCallId": call, "content": content}:
            return [
                {
                    "type": "tool-result",
                    "id": message["id"],
                    "toolCallId": call,
                    "content": content,
                    "state": "complete",
                }
            ]
        case _:
            text = message.get("content")
            calls = [
                {
                    "type": "tool-call",
                    "id": call["id"],
                    "name": call["function"]["name"],
                    "arguments": call["function"]["arguments"],
                    "state": "input-complete",
                    **{name: call[name] for name in call if name == "metadata"},
                    **({} if (given := _json_of(call["function"]["arguments"])) is None else {"input": given}),
                }
                for call in message.get("toolCalls", [])
            ]
            return [*([{"type": "text", "content": text}] if text else []), *calls]


def _page_part(part: Json) -> Json:
    return {"type": "text", "content": part["text"]} if part["type"] == "text" else part


def _tool_messages(blocks: Iterable[dict[str, Any]], name: str) -> list[Json]:
    """Returns the messages of the tool results among the blocks of a message."""
    found: list[Json] = []
    for number, block in enumerate(blocks):
        match block:
            case {"type": "tool_result", "tool_use_id": str(call)}:
                text = text_of(block.get("content", ""))
                error = {"error": text} if block.get("is_error") else {}
                own = f"{name}_{number}"
                found.append({"id": own, "role": "tool", "toolCallId": call, "content": text, **error})
            case _:
                pass
    return found


def text_of(content: object) -> str:
    """Returns the text of a message, or of a tool's result. What is no text is left out."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _part(block: Json) -> Json | None:
    match block:
        # An expired blob is an empty string, and a text that is not put back is an object.
        case {"type": "text", "text": str(text)} if text:
            return {"type": "text", "text": text}
        case {"type": "image" | "document" as kind, "source": {"type": "url", "url": str(url)}}:
            return {"type": kind, "source": {"type": "url", "value": url}}
        case {"type": "image" | "document" as kind, "source": {"data": str(data), "media_type": str(media)}} if data:
            return {"type": kind, "source": {"type": "data", "value": data, "mimeType": media}}
        case _:
            return None
