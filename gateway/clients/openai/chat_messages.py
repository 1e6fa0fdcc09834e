"""The messages of a chat completion, as OpenAI's protocol has them, and the same in Anthropic's shape. Pure.

System messages, wherever they stand, are put at the beginning, as Anthropic's own OpenAI-compatible endpoint does it:
Claude takes them in mid-conversation only in some models, and there only right before its answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from tailrace.gateway.clients.openai import common
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused

Block = dict[str, Any]
System = str | list[Block] | None


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    cache_control: dict[str, Any] | None = None
    """Anthropic's, as other servers of this protocol take it too."""
    prompt_cache_breakpoint: Any = None


class TextPart(_Part, frozen=True, tag="text"):
    text: str


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    detail: str | None = None


class ImagePart(_Part, frozen=True, tag="image_url"):
    image_url: ImageUrl


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


class FilePart(_Part, frozen=True, tag="file"):
    file: File


class RefusalPart(_Part, frozen=True, tag="refusal"):
    refusal: str


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: str = ""
    parsed_arguments: Any = None


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    id: str
    function: Function
    index: int | None = None
    """Of a stream's piece; some clients send back what they have put together of those."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role"):
    name: str | None = None


class SystemMessage(_Message, frozen=True, tag="system"):
    content: str | list[TextPart]


class DeveloperMessage(_Message, frozen=True, tag="developer"):
    content: str | list[TextPart]


class UserMessage(_Message, frozen=True, tag="user"):
    content: str | list[TextPart | ImagePart | FilePart]


class AssistantMessage(_Message, frozen=True, tag="assistant"):
    content: str | list[TextPart | RefusalPart] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    parsed: Any = None
    """As `parsed_arguments`: what OpenAI's SDK has made of the text, and sends back with it."""


class ToolMessage(_Message, frozen=True, tag="tool"):
    content: str | list[TextPart]
    tool_call_id: str


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


def system_of(told: Iterable[ChatMessage]) -> System:
    """All that the system and the developer say, in their order; None when they say nothing."""
    said = [one.content for one in told if isinstance(one, SystemMessage | DeveloperMessage)]
    blocks = [block for content in said for block in _blocks(content, "a system message")]
    match blocks:
        case []:
            return None
        case [{"type": "text", "text": str(text), **rest}] if not rest:
            return text
        case _:
            return blocks


def conversation_of(told: Sequence[ChatMessage]) -> list[Message]:
    """What the others say. The answers to one message's tool calls are one message; raises Refused."""
    spoken = [(n, one) for n, one in enumerate(told) if not isinstance(one, SystemMessage | DeveloperMessage)]
    messages: list[Message] = []
    for is_tools, run in groupby(spoken, lambda pair: isinstance(pair[1], ToolMessage)):
        if is_tools:
            results = [_result(one, f"messages[{n}]") for n, one in run if isinstance(one, ToolMessage)]
            messages.append(Message("user", results))
        else:
            messages += [_message(one, f"messages[{n}]") for n, one in run]
    return messages


def _message(told: ChatMessage, where: str) -> Message:
    match told:
        case UserMessage(content=str(text)):
            return Message("user", text)
        case UserMessage(content=content):
            return Message("user", _blocks(content, where))
        case AssistantMessage():
            return Message("assistant", list(_answer(told, where)))
        case _:
            raise AssertionError(told)


def _answer(told: AssistantMessage, where: str) -> Iterator[Block]:
    if told.audio is not None or told.function_call is not None:
        raise Refused("request_invalid", f"`{where}`: Claude has no `audio`, and `function_call` is now `tool_calls`")
    blocks = [*_blocks(told.content or [], where), *_blocks(told.refusal or [], where)]
    blocks += [_call(call, where) for call in told.tool_calls or ()]
    if not blocks:
        raise Refused("request_invalid", f"`{where}` says nothing: leave it out")
    yield from blocks


def _call(call: ToolCall, where: str) -> Block:
    return common.call(call.id, call.function.name, call.function.arguments, f"{where}.tool_calls")


def _result(told: ToolMessage, where: str) -> Block:
    content = told.content if isinstance(told.content, str) else _blocks(told.content, where)
    return {"type": "tool_result", "tool_use_id": told.tool_call_id, "content": content}


def _blocks(content: str | Sequence[TextPart | ImagePart | FilePart | RefusalPart], where: str) -> list[Block]:
    """Empty texts are left out: Claude refuses them, and many clients send them along with a call."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    blocks = [(part, _block(part, where)) for part in content]
    return [
        block if part.cache_control is None else {**block, "cache_control": part.cache_control}
        for part, block in blocks
        if block["type"] != "text" or block["text"].strip()
    ]


def _block(part: TextPart | ImagePart | FilePart | RefusalPart, where: str) -> Block:
    match part:
        case TextPart(text=text) | RefusalPart(refusal=text):
            return {"type": "text", "text": text}
        case ImagePart(image_url=image):
            return common.image(image.url, where)
        case FilePart(file=File(file_data=str(told), filename=filename)):
            return common.document(told, filename, where)
        case FilePart():
            raise Refused(
                "request_invalid", f"`{where}`: files are sent along as `file_data`; there are no uploads here"
            )
