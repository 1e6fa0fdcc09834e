"""Converts the input items of OpenAI's Responses API to Anthropic's messages, and back.

All system and developer messages move to the beginning.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, starmap
from typing import Any, Literal

import msgspec

from tailrace.gateway.turns.conversation_match import is_seen
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.protocols.common.file_block import build_file, build_untyped_file, file_url, refused_part, uploaded_file
from tailrace.protocols.common.history_items import (
    Conversation,
    Item,
    build_call,
    build_messages,
    build_text,
    build_thinking,
    each_answer_once,
)
from tailrace.protocols.common.tool_definition import build_result
from tailrace.protocols.openai.builtin_calls import ITEM_TYPES
from tailrace.protocols.openai.responses_object import Head
from tailrace.protocols.openai.responses_object import Item as OutputItem
from tailrace.protocols.openai.responses_stream import output_items

# The ends of the types of items that belong to tools of another vendor, in answers and in what clients send.
OF_MODEL = ("_call", "_approval_request", "program")
OF_CLIENT = ("_output", "_approval_response", "additional_tools", "configuration_update")

Block = dict[str, Any]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A content part of any type. Other fields are ignored: a client may send back parts of an earlier output."""

    type: str = ""
    """`input_text`, `input_image`, `input_file`, `output_text` or `refusal`."""
    text: str = ""
    """The text of the part."""
    refusal: str = ""
    """The text of a refusal."""
    image_url: str | None = None
    """An `https` address, or the image as a `data:` URL."""
    file_data: str | None = None
    """The content of the file, as a `data:` URL or in base64."""
    file_url: str | None = None
    """The address of the file."""
    file_id: str | None = None
    """The id of a file that was uploaded to `/v1/files`."""
    filename: str | None = None
    """The name of the file."""


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item of any type; a message if it has no type."""

    type: str | None = None
    """`message`, `function_call`, `function_call_output`, `reasoning`, `item_reference`; a call of a built-in tool in
    an earlier response: `web_search_call`, `code_interpreter_call`, `mcp_call` or `mcp_list_tools`; or, of a chat with
    another vendor, `custom_tool_call` and `custom_tool_call_output`.
    """
    id: str | None = None
    """For `item_reference`: the id of an output item of an earlier response."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    """Who wrote the message."""
    content: str | list[Part] | None = None
    """The text of the message, or its parts."""
    call_id: str | None = None
    """The id of the function call."""
    name: str | None = None
    """The name of the called function."""
    arguments: str | dict[str, Any] | None = None
    """The arguments, as a string with JSON."""
    input: str | None = None
    """The input of a `custom_tool_call`, as a text."""
    output: str | list[Part] | dict[str, Any] | None = None
    """The result of the function, as a text or its parts."""
    summary: list[Part] = []
    """The summary of earlier reasoning."""
    encrypted_content: str | None = None
    """The signed form of earlier reasoning, which the model can read."""
    container_id: str | None = None
    """The container of a `code_interpreter_call`."""


class StoredItem(InputItem, frozen=True, kw_only=True):
    """A call of a built-in tool in an earlier response, as the model gets it again."""

    blocks: list[Block] = []
    """The call and its result, in Anthropic's format."""


def conversation_of(items: str | Sequence[InputItem], instructions: str | None = None) -> Conversation:
    """Returns the conversation of `input`. Its system messages follow the instructions. Raises Refused."""
    given = [InputItem(role="user", content=items)] if isinstance(items, str) else items
    prompt = Item("system", build_text(instructions or ""))
    name = "input" if isinstance(items, str) else "input[{}]"
    return build_messages(chain([prompt], starmap(_item, each_answer_once(given))), name)


def _item(number: int, one: InputItem) -> Item:
    match one.type:
        case None | "message" if one.role is not None:
            role = "system" if one.role == "developer" else one.role
            return Item(role, _blocks(one.content or "", number), number)
        case None | "message":
            raise invalid_item(number, "`role` is missing: send user, assistant, system or developer")
        case "function_call" | "custom_tool_call" as kind:
            if one.call_id is None or one.name is None:
                raise invalid_item(number, f"a {kind} needs `call_id`, `name` and its input")
            given = one.arguments or "" if one.input is None else {"input": one.input}
            return Item("assistant", [build_call(one.call_id, one.name, given)], number)
        case "function_call_output" | "custom_tool_call_output" as kind:
            if one.call_id is None or not isinstance(one.output, str | list):
                raise invalid_item(number, f"a {kind} needs `call_id` and `output`")
            content = one.output if isinstance(one.output, str) else _blocks(one.output, number)
            return Item("result", [build_result(one.call_id, content)], number)
        case "reasoning":
            thinking = "".join(part.text for part in one.summary)
            return Item("assistant", build_thinking(thinking, one.encrypted_content or ""), number)
        case kind if kind in ITEM_TYPES:
            return Item("assistant", one.blocks if isinstance(one, StoredItem) else [], number)
        case "item_reference":
            # References in POST /v1/responses were replaced earlier.
            raise invalid_item(number, "items cannot be referenced in a batch: send the item itself")
        case kind:
            part = refused_part(f"(`{kind[:64]}`) is of a tool that is not supported", kind)
            # A chat that has begun with another vendor.
            if kind.endswith(OF_MODEL):
                return Item("assistant", [part], number)
            if kind.endswith(OF_CLIENT):
                return Item("user", [part], number)
            raise invalid_item(number, f"items of the type `{kind[:64]}` are not supported")


def _blocks(content: str | Iterable[Part], number: int) -> list[Block]:
    if isinstance(content, str):
        return build_text(content)
    return [block for part in content for block in _part_blocks(part, number)]


def _part_blocks(part: Part, number: int) -> list[Block]:
    match part:
        case Part(type="input_text" | "output_text" | "text" | "refusal"):
            return build_text(part.text or part.refusal)
        case Part(type=""):
            raise invalid_item(number, "a part needs a `type`")
        case Part(type="input_image", image_url=str(url)):
            return build_file("", url)
        case Part(type="input_file", file_data=str(url)) | Part(type="input_file", file_url=str(url)):
            return build_untyped_file(url, part.filename)
        case Part(type="input_image" | "input_file" as kind, file_id=str(file)):
            return [uploaded_file("image" if kind == "input_image" else "document", file, part.filename)]
        case Part(type="input_image" | "input_file"):
            raise invalid_item(number, "an image or a file needs its URL, its data or its `file_id`")
        case _:
            why = f"has content of the type `{part.type[:64]}`: send input_text, input_image or input_file"
            return [refused_part(why, part.filename or part.type)]


def lost_calls(items: str | Sequence[InputItem]) -> list[str]:
    """Returns the types of calls of built-in tools without their stored blocks, which the model does not get."""
    calls = (one for one in (() if isinstance(items, str) else items) if not getattr(one, "blocks", None))
    return list(dict.fromkeys(one.type for one in calls if one.type in ITEM_TYPES))


def invalid_item(index: int, reason: str) -> Refused:
    return Refused("request_invalid", f"`input[{index}]`: {reason}")


def items_of(turn: str, messages: Sequence[Message]) -> list[OutputItem]:
    """Returns stored messages as items, oldest first."""
    return list(_items(turn, messages))


def _items(turn: str, messages: Sequence[Message]) -> Iterator[OutputItem]:
    for number, message in enumerate(messages):
        blocks = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
        if message.role == "assistant":
            yield from output_items(Head(f"{turn}_in{number}", goes_on=True), blocks)
            continue
        parts: list[OutputItem] = []
        for index, block in enumerate(blocks):
            match block:
                case {"type": "tool_result", "tool_use_id": call}:
                    yield {
                        "id": f"fco_{turn}_in{number}_{index}",
                        "type": "function_call_output",
                        "status": "completed",
                        "call_id": call,
                        "output": _output(block.get("content", "")),
                    }
                case _:
                    parts.append(_part(block))
        if parts and is_seen(message):
            yield {
                "id": f"msg_{turn}_in{number}",
                "type": "message",
                "role": message.role,
                "status": "completed",
                "content": parts,
            }


def _output(content: object) -> str | list[OutputItem]:
    """Returns a tool's output as text or parts; another stored JSON value becomes its JSON text."""
    match content:
        case str():
            return content
        case list():
            return [_part(block) for block in content]
        case _:
            return msgspec.json.encode(content).decode()


def _part(block: object) -> OutputItem:
    match block:
        case {"type": "text", "text": str(text)}:
            return {"type": "input_text", "text": text}
        case {"type": "image", "source": {"type": "base64" | "url"} as source}:
            return {"type": "input_image", "detail": "auto", "image_url": file_url(source)}
        case {"type": "document", "source": {"type": "base64" | "text" | "url"} as source, **rest}:
            field = "file_url" if source["type"] == "url" else "file_data"
            return {"type": "input_file", "filename": rest.get("title"), field: file_url(source)}
        case _:
            # OpenAI has no part for this block, such as a document of several blocks.
            return {"type": "input_text", "text": msgspec.json.encode(block).decode()}
