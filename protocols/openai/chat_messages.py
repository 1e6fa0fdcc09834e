"""The messages of a chat completion, and their conversion to Anthropic's messages.

All system messages move to the beginning, as in Anthropic's own OpenAI-compatible endpoint: only some Claude models
accept them in mid-conversation, and only directly before the answer.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, get_args

import msgspec

from tailrace.proto.errors import Refused
from tailrace.protocols.common.file_block import build_file, build_untyped_file, refused_part, uploaded_file
from tailrace.protocols.common.history_items import (
    Conversation,
    Item,
    build_call,
    build_messages,
    build_text,
)
from tailrace.protocols.common.tool_definition import build_result
from tailrace.protocols.common.unsupported import plain_names

Block = dict[str, Any]


class ImageUrl(msgspec.Struct, frozen=True):
    url: str
    """An `https` address, or the image as a `data:` URL."""
    detail: str | None = None
    """It has no effect: images are passed on unchanged."""


class File(msgspec.Struct, frozen=True):
    file_data: str | None = None
    """The content of the file, as a `data:` URL or in base64."""
    filename: str | None = None
    """The name of the file."""
    file_id: str | None = None
    """The id of a file that was uploaded to `/v1/files`."""


class ChatPart(msgspec.Struct, frozen=True, kw_only=True):
    """A content part of any type, in a message of any role. Claude takes images and files from users and tools."""

    type: str = "text"
    """`text`, `image_url`, `file` or `refusal`. Another type is refused behind the last answer, such as `input_audio`;
    before it, a text stands in its place.
    """
    text: str | None = None
    """The text of the part."""
    refusal: str | None = None
    """The text of a refusal."""
    image_url: ImageUrl | None = None
    """The image."""
    file: File | None = None
    """The file."""
    cache_control: dict[str, Any] | None = None
    """Anthropic's field, which other servers of this protocol accept, too."""
    prompt_cache_breakpoint: Any = None
    """It has no effect: `cache_control` is the field for caching."""


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    """The name of the called function."""
    arguments: str = ""
    """The arguments, as a string with JSON."""
    input: str = ""
    """The input of a custom tool, as a text."""
    parsed_arguments: Any = None
    """The arguments as OpenAI's SDK has parsed them. They are ignored."""


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    """The id of the call, which the tool's message repeats."""
    type: str = "function"
    """`function`; or `custom`, in a chat that another vendor's model has begun."""
    function: CalledFunction | None = None
    """The called function."""
    custom: CalledFunction | None = None
    """The called custom tool."""
    index: int | None = None
    """A field of stream chunks; some clients send it back in the assembled call."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="role"):
    """A message. Unknown fields are ignored, as by OpenAI: clients send back fields that clients and servers add."""

    name: str | None = None
    """The name of the author. It is ignored."""
    cache_control: dict[str, Any] | None = None
    """Anthropic's field: caches the prompt up to the last part of this message."""


class SystemMessage(_Message, frozen=True, tag="system"):
    content: str | list[ChatPart]
    """The instructions."""


class DeveloperMessage(SystemMessage, frozen=True, tag="developer"):
    """The same, by its newer name."""


class UserMessage(_Message, frozen=True, tag="user"):
    content: str | list[ChatPart]
    """The text of the user, or parts with text, images and files."""


class AssistantMessage(_Message, frozen=True, tag="assistant"):
    content: str | list[ChatPart] | None = None
    """The earlier answer."""
    refusal: str | None = None
    """The text of an earlier refusal."""
    tool_calls: list[ToolCall] | None = None
    """The tools that the assistant has called."""
    reasoning_content: str | None = None
    """The earlier reasoning. It is ignored."""
    annotations: Any = None
    """A field of OpenAI's answers. It is ignored."""
    audio: Any = None
    """The audio of an earlier answer. A text stands in its place."""
    function_call: Any = None
    """A deprecated field of OpenAI's answers. A text stands in its place."""
    parsed: Any = None
    """Like `parsed_arguments`: the value that OpenAI's SDK has parsed from the text, and sends back with it."""


class ToolMessage(_Message, frozen=True, tag="tool"):
    content: str | list[ChatPart]
    """The result of the tool."""
    tool_call_id: str
    """The id of the tool call that this message answers."""


class FunctionMessage(UserMessage, frozen=True, tag="function"):
    """The result of a `function_call`, which is deprecated. Claude gets it like a message of the user."""


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


def conversation_of(messages: Sequence[ChatMessage]) -> Conversation:
    """Returns the conversation of the messages; system and developer messages are at its beginning. Raises Refused."""
    return build_messages(map(_item, messages, count()), "messages[{}].content")


def unknown_fields(messages: Sequence[ChatMessage], sent: Sequence[Block]) -> list[str]:
    """Returns the unknown fields of the messages, as they were sent, for example `messages.content.id`."""
    both = zip(messages, sent, strict=True)
    return plain_names(name for one, fields in both for name in _find_unknown(fields, type(one), "messages"))


INNER: dict[tuple[type[msgspec.Struct], str], type[msgspec.Struct]] = {
    **{(kind, "content"): ChatPart for kind in get_args(ChatMessage)},
    (AssistantMessage, "tool_calls"): ToolCall,
    (ToolCall, "function"): CalledFunction,
}
"""The types of the objects in a field of a Struct."""


def _find_unknown(fields: Block, kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    """Yields the paths of the fields that `kind` does not have, also in the objects inside."""
    known = {*kind.__struct_fields__, kind.__struct_config__.tag_field}
    for name, value in fields.items():
        inner = f"{path}.{name}"
        if name not in known:
            yield inner
        elif inner_kind := INNER.get((kind, name)):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    yield from _find_unknown(one, inner_kind, inner)


def _item(message: ChatMessage, number: int) -> Item:
    blocks = _blocks(message.content or "", number)
    match message:
        case AssistantMessage():
            said = blocks + build_text(message.refusal or "")
            if message.audio is not None or message.function_call is not None:
                said.append(refused_part("", "a function call" if message.audio is None else "audio"))
            called = [_call(call, number) for call in message.tool_calls or ()]
            return Item("assistant", _marked(said + called, message), number)
        case ToolMessage(content=content, tool_call_id=call):
            result = build_result(call, content if isinstance(content, str) else blocks)
            return Item("result", _marked([result], message), number)
        case _:
            return Item("user" if isinstance(message, UserMessage) else "system", _marked(blocks, message), number)


def _call(call: ToolCall, number: int) -> Block:
    if (called := call.function or call.custom) is None:
        raise Refused("request_invalid", f"`messages[{number}].tool_calls`: a call needs its `function`")
    return build_call(call.id, called.name, called.arguments if called is call.function else {"input": called.input})


def _marked(blocks: list[Block], message: ChatMessage) -> list[Block]:
    """Returns the blocks of a message; the last one gets the message's `cache_control`."""
    if message.cache_control is None or not blocks:
        return blocks
    return [*blocks[:-1], {**blocks[-1], "cache_control": message.cache_control}]


def _blocks(content: str | Sequence[ChatPart], number: int) -> list[Block]:
    if isinstance(content, str):
        return build_text(content)
    blocks = ((part.cache_control, block) for part in content for block in _part_blocks(part, number))
    return [block if mark is None else {**block, "cache_control": mark} for mark, block in blocks]


def _part_blocks(part: ChatPart, number: int) -> list[Block]:
    match part:
        case ChatPart(type="text", text=str(text)) | ChatPart(type="refusal", refusal=str(text)):
            return build_text(text)
        case ChatPart(type="image_url", image_url=ImageUrl(url=url)):
            return build_file("", url)
        case ChatPart(type="file", file=File(file_data=str(data), filename=filename)):
            return build_untyped_file(data, filename)
        case ChatPart(type="file", file=File(file_id=str(file), filename=filename)):
            return [uploaded_file("document", file, filename)]
        case ChatPart(type="text" | "refusal" | "image_url" | "file" as kind):
            why = f"a part of the type {kind} needs its `{kind}`, and a file its `file_data` or its `file_id`"
            raise Refused("request_invalid", f"`messages[{number}].content`: {why}")
        case ChatPart(type="thinking" | "redacted_thinking" | "reasoning"):
            # Without the proof that it is Claude's, like `reasoning_content`.
            return []
        case ChatPart(type=kind):
            why = f"has a part of the type {kind[:64]!r}, which Claude does not take: send text, image_url or file"
            return [refused_part(why, kind)]
