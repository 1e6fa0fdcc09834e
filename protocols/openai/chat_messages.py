"""The messages of a chat completion, and their conversion to Anthropic's messages.

All system messages move to the beginning, as in Anthropic's own OpenAI-compatible endpoint: only some Claude models
accept them in mid-conversation, and only directly before the answer.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import msgspec

from tailrace.proto.errors import Refused
from tailrace.protocols.common.file_block import build_file, refused_part, uploaded_file
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

AUDIO = refused_part("has audio, which Claude does not take: send its text", "audio")


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    cache_control: dict[str, Any] | None = None
    """Anthropic's field, which other servers of this protocol accept, too."""
    prompt_cache_breakpoint: Any = None
    """It has no effect: `cache_control` is the field for caching."""


class TextPart(_Part, frozen=True, tag="text"):
    text: str
    """The text."""


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    """An `https` address, or the image as a `data:` URL."""
    detail: str | None = None
    """It has no effect: images are passed on unchanged."""


class ImagePart(_Part, frozen=True, tag="image_url"):
    image_url: ImageUrl
    """The image."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file_data: str | None = None
    """The content of the file, as a `data:` URL or in base64."""
    filename: str | None = None
    """The name of the file."""
    file_id: str | None = None
    """The id of a file that was uploaded to `/v1/files`."""


class FilePart(_Part, frozen=True, tag="file"):
    file: File
    """The file."""


class AudioPart(_Part, frozen=True, tag="input_audio"):
    input_audio: Any
    """Audio, which Claude does not take: refused behind the last answer; before it, a text stands in its place."""


class RefusalPart(_Part, frozen=True, tag="refusal"):
    refusal: str
    """The text of the refusal."""


class AnsweredText(TextPart, frozen=True, forbid_unknown_fields=False, tag="text"):
    """A text of the assistant. Some clients send the whole message back in each part."""


class AnsweredRefusal(RefusalPart, frozen=True, forbid_unknown_fields=False, tag="refusal"):
    """A refusal of the assistant."""


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    """The name of the called function."""
    arguments: str = ""
    """The arguments, as a string with JSON."""
    parsed_arguments: Any = None
    """The arguments as OpenAI's SDK has parsed them. They are ignored."""


class ToolCall(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    id: str
    """The id of the call, which the tool's message repeats."""
    function: CalledFunction
    """The called function."""
    index: int | None = None
    """A field of stream chunks; some clients send it back in the assembled call."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="role"):
    """A message. Unknown fields are ignored, as by OpenAI: clients send back fields that clients and servers add."""

    name: str | None = None
    """The name of the author. It is ignored."""
    cache_control: dict[str, Any] | None = None
    """Anthropic's field: caches the prompt up to the last part of this message."""


class SystemMessage(_Message, frozen=True, tag="system"):
    content: str | list[TextPart]
    """The instructions."""


class DeveloperMessage(_Message, frozen=True, tag="developer"):
    content: str | list[TextPart]
    """The instructions."""


class UserMessage(_Message, frozen=True, tag="user"):
    content: str | list[TextPart | ImagePart | AudioPart | FilePart]
    """The text of the user, or parts with text, images and files."""


class AssistantMessage(_Message, frozen=True, tag="assistant"):
    content: str | list[AnsweredText | AnsweredRefusal] | None = None
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
    """A deprecated field of OpenAI's answers."""
    parsed: Any = None
    """Like `parsed_arguments`: the value that OpenAI's SDK has parsed from the text, and sends back with it."""


class ToolMessage(_Message, frozen=True, tag="tool"):
    content: str | list[TextPart]
    """The result of the tool."""
    tool_call_id: str
    """The id of the tool call that this message answers."""


Part = TextPart | ImagePart | AudioPart | FilePart | RefusalPart
ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


def conversation_of(messages: Sequence[ChatMessage]) -> Conversation:
    """Returns the conversation of the messages; system and developer messages are at its beginning. Raises Refused."""
    return build_messages(map(_item, messages, count()), "messages[{}].content")


def unknown_fields(messages: Sequence[ChatMessage], sent: Sequence[Block]) -> list[str]:
    """Returns the unknown fields of the messages, as they were sent, for example `messages.content.id`."""
    both = zip(messages, sent, strict=True)
    return plain_names(name for one, fields in both for name in _find_unknown(fields, type(one), "messages"))


INNER: dict[tuple[type[msgspec.Struct], str], tuple[type[msgspec.Struct], ...]] = {
    (AssistantMessage, "content"): (AnsweredText, AnsweredRefusal),
    (AssistantMessage, "tool_calls"): (ToolCall,),
    (ToolCall, "function"): (CalledFunction,),
}
"""The types of the objects in a field of a Struct. An object whose `type` matches none is of the first."""


def _find_unknown(fields: Block, kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    """Yields the paths of the fields that `kind` does not have, also in the objects inside."""
    known = {*kind.__struct_fields__, kind.__struct_config__.tag_field}
    for name, value in fields.items():
        inner = f"{path}.{name}"
        if name not in known:
            yield inner
        elif kinds := INNER.get((kind, name)):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    same = (each for each in kinds if each.__struct_config__.tag == one.get("type"))
                    yield from _find_unknown(one, next(same, kinds[0]), inner)


def _item(message: ChatMessage, number: int) -> Item:
    blocks = _blocks(message.content or "", number)
    match message:
        case AssistantMessage(function_call=None, refusal=refusal, tool_calls=calls):
            said = [*blocks, *build_text(refusal or ""), *([AUDIO] if message.audio is not None else [])]
            called = [build_call(call.id, call.function.name, call.function.arguments) for call in calls or ()]
            return Item("assistant", _marked(said + called, message), number)
        case AssistantMessage():
            why = f"`messages[{number}]`: `function_call` is not supported: send `tool_calls`"
            raise Refused("request_invalid", why)
        case ToolMessage(content=content, tool_call_id=call):
            result = build_result(call, content if isinstance(content, str) else blocks)
            return Item("result", _marked([result], message), number)
        case _:
            return Item("user" if isinstance(message, UserMessage) else "system", _marked(blocks, message), number)


def _marked(blocks: list[Block], message: ChatMessage) -> list[Block]:
    """Returns the blocks of a message; the last one gets the message's `cache_control`."""
    if message.cache_control is None or not blocks:
        return blocks
    return [*blocks[:-1], {**blocks[-1], "cache_control": message.cache_control}]


def _blocks(content: str | Sequence[Part], number: int) -> list[Block]:
    if isinstance(content, str):
        return build_text(content)
    blocks = ((part.cache_control, block) for part in content for block in _part_blocks(part, number))
    return [block if mark is None else {**block, "cache_control": mark} for mark, block in blocks]


def _part_blocks(part: Part, number: int) -> list[Block]:
    match part:
        case TextPart(text=text) | RefusalPart(refusal=text):
            return build_text(text)
        case ImagePart(image_url=image):
            return build_file("", image.url)
        case FilePart(file=File(file_data=str(data), filename=filename)):
            return build_file("", data, filename)
        case FilePart(file=File(file_id=str(file), filename=filename)):
            return [uploaded_file("document", file, filename)]
        case FilePart():
            raise Refused("request_invalid", f"`messages[{number}]`: a file needs its `file_data` or its `file_id`")
        case AudioPart():
            return [AUDIO]
