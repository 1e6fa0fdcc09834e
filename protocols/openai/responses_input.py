"""Converts the input items of OpenAI's Responses API to Anthropic's messages, and back.

Consecutive items of the assistant (messages, reasoning, calls) become one message, and so do the outputs of its calls.
Claude's thinking comes back as reasoning items; Claude accepts it only with its signature.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import msgspec

from tailrace.gateway.turns.request_body import MessageParam
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.protocols.openai import common
from tailrace.protocols.openai.builtin_calls import ITEM_TYPES
from tailrace.protocols.openai.responses_object import REDACTED, SIGNED, Item
from tailrace.protocols.openai.responses_stream import output_items

Block = dict[str, Any]
Role = Literal["user", "assistant", "system"]
# The id of a reasoning item of Tailrace: `rs_{turn}_{index}`.
OWN_ID = re.compile(r"rs_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}_[0-9]+")
# How Claude's signatures begin, for items without an id: a protobuf message in base64, whose first field is number 2.
LIKE_CLAUDE = "E"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A content part of any type. Other fields are ignored: a client may send back parts of an earlier output."""

    type: str
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
    """`message`, `function_call`, `function_call_output`, `reasoning`, `item_reference`, or a call of a built-in tool
    in an earlier response: `web_search_call`, `code_interpreter_call`, `mcp_call` or `mcp_list_tools`.
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
    arguments: str | None = None
    """The arguments, as a string with JSON."""
    output: str | list[Part] | None = None
    """The result of the function."""
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


def system_of(items: str | Sequence[InputItem], instructions: str | None) -> str | list[Block] | None:
    """Returns the instructions and all system and developer messages, as a text if possible; None if there are none."""
    blocks = _blocks(instructions or "", "instructions")
    for index, one in enumerate(() if isinstance(items, str) else items):
        if _role(one, index) == "system":
            blocks += _blocks(one.content or "", f"input[{index}]")
    return common.system_prompt(blocks)


def messages_of(items: str | Sequence[InputItem]) -> list[MessageParam]:
    """Returns all items but those of `system_of` as messages. Raises Refused."""
    if isinstance(items, str):
        return [MessageParam("user", items)]
    with_roles = [(_role(one, index), index, one) for index, one in enumerate(items)]
    others = [one for one in with_roles if one[0] != "system"]
    messages = []
    for (role, _), run in groupby(others, _group_key):
        group = list(run)
        blocks = [block for _, index, one in group for block in _item_blocks(one, f"input[{index}]")]
        if blocks:
            messages.append(MessageParam(role, _plain_text(group[0][2]) or blocks))
    return messages


def _group_key(with_role: tuple[Role, int, InputItem]) -> tuple[Role, int | None]:
    """Returns what the items of one message have in common. User messages stay separate: each has its own index."""
    role, index, one = with_role
    return role, index if role == "user" and is_message(one) else None


def is_message(one: InputItem) -> bool:
    return one.type in (None, "message")


def _plain_text(one: InputItem) -> str | None:
    """Returns the content of a user message that is a plain string."""
    return one.content if one.role == "user" and isinstance(one.content, str) else None


def _role(one: InputItem, index: int) -> Role:
    match one:
        case InputItem(type=None | "message", role="user"):
            return "user"
        case InputItem(type=None | "message", role="system" | "developer"):
            return "system"
        case InputItem(type=None | "message", role="assistant") | InputItem(type="function_call" | "reasoning"):
            return "assistant"
        case InputItem(type=kind) if kind in ITEM_TYPES:
            return "assistant"
        case InputItem(type="function_call_output"):
            return "user"
        case InputItem(type="item_reference"):
            # References in POST /v1/responses were replaced earlier.
            raise invalid_item(index, "items cannot be referenced in a batch: send the item itself")
        case InputItem(type=None | "message"):
            raise invalid_item(index, "`role` is missing: send user, assistant, system or developer")
        case _:
            raise invalid_item(index, f"`{(one.type or '')[:64]}` is an item of a tool that is not supported")


def lost_calls(items: str | Sequence[InputItem]) -> list[str]:
    """Returns the types of calls of built-in tools without their stored blocks, which the model does not get."""
    calls = (one for one in (() if isinstance(items, str) else items) if not getattr(one, "blocks", None))
    return list(dict.fromkeys(one.type for one in calls if one.type in ITEM_TYPES))


def invalid_item(index: int, reason: str) -> Refused:
    return Refused("request_invalid", f"`input[{index}]`: {reason}")


def _item_blocks(one: InputItem, where: str) -> list[Block]:
    match one.type:
        case "function_call":
            if one.call_id is None or one.name is None:
                raise Refused("request_invalid", f"`{where}`: a function_call needs `call_id`, `name` and `arguments`")
            return [common.tool_use_block(one.call_id, one.name, one.arguments or "", where)]
        case "function_call_output":
            if one.call_id is None or one.output is None:
                raise Refused("request_invalid", f"`{where}`: a function_call_output needs `call_id` and `output`")
            output = one.output if isinstance(one.output, str) else _blocks(one.output, where)
            return [{"type": "tool_result", "tool_use_id": one.call_id, "content": output}]
        case "reasoning":
            return _thinking_blocks(one)
        case kind if kind in ITEM_TYPES:
            return one.blocks if isinstance(one, StoredItem) else []
        case _:
            return _blocks(one.content or "", where)


def _thinking_blocks(one: InputItem) -> list[Block]:
    """Returns the thinking of a reasoning item; nothing for reasoning without a signature of Claude's.

    Another vendor's encrypted reasoning, which a chat may have begun with, is not a signature: Claude's API would
    refuse every later request of the chat.
    """
    encrypted = one.encrypted_content or ""
    if encrypted.startswith(REDACTED):
        return [{"type": "redacted_thinking", "data": encrypted.removeprefix(REDACTED)}]
    # Earlier releases sent the signature alone. Some clients (Codex) send items back without their ids.
    is_earlier = OWN_ID.fullmatch(one.id) if one.id else encrypted.startswith(LIKE_CLAUDE)
    if not encrypted.startswith(SIGNED) and not (encrypted and is_earlier):
        return []
    thinking = "".join(part.text for part in one.summary)
    return [{"type": "thinking", "thinking": thinking, "signature": encrypted.removeprefix(SIGNED)}]


def _blocks(content: str | Iterable[Part], where: str) -> list[Block]:
    if isinstance(content, str):
        return common.drop_blank_texts([common.text_block(content)])
    return common.drop_blank_texts(_block(part, where) for part in content)


def _block(part: Part, where: str) -> Block:
    match part:
        case Part(type="input_text" | "output_text" | "text"):
            return common.text_block(part.text)
        case Part(type="refusal"):
            return common.text_block(part.refusal)
        case Part(type="input_image", image_url=str(url)):
            return common.image_block(url, where)
        case Part(type="input_file", file_data=str(data)):
            return common.document_block(data, part.filename, where)
        case Part(type="input_file", file_url=str(url)):
            return {"type": "document", "source": {"type": "url", "url": url}}
        case Part(type="input_image", file_id=str(file)):
            return common.file_block("image", file)
        case Part(type="input_file", file_id=str(file)):
            return common.file_block("document", file, part.filename)
        case Part(type="input_image" | "input_file"):
            raise Refused("request_invalid", f"`{where}`: an image or a file needs its URL, its data or its `file_id`")
        case _:
            why = f"content of type `{part.type[:64]}` is not supported: send input_text, input_image or input_file"
            raise Refused("request_invalid", f"`{where}`: {why}")


def items_of(turn: str, messages: Sequence[Message]) -> list[Item]:
    """Returns stored messages as items, oldest first."""
    return list(_items(turn, messages))


def _items(turn: str, messages: Sequence[Message]) -> Iterator[Item]:
    for number, message in enumerate(messages):
        blocks = [common.text_block(message.content)] if isinstance(message.content, str) else message.content
        if message.role == "assistant":
            yield from output_items(f"{turn}_in{number}", blocks)
            continue
        parts: list[Item] = []
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
        if parts:
            yield {
                "id": f"msg_{turn}_in{number}",
                "type": "message",
                "role": message.role,
                "status": "completed",
                "content": parts,
            }


def _output(content: object) -> str | list[Item]:
    """Returns a tool's output as text or parts; another stored JSON value becomes its JSON text."""
    match content:
        case str():
            return content
        case list():
            return [_part(block) for block in content]
        case _:
            return msgspec.json.encode(content).decode()


def _part(block: object) -> Item:
    match block:
        case {"type": "text", "text": str(text)}:
            return {"type": "input_text", "text": text}
        case {"type": "image", "source": {"type": "base64" | "url"} as source}:
            return {"type": "input_image", "detail": "auto", "image_url": _url(source)}
        case {"type": "document", "source": {"type": "base64" | "text" | "url"} as source, **rest}:
            return {"type": "input_file", "filename": rest.get("title"), **_file(source)}
        case _:
            # OpenAI has no part for this block, such as a document of several blocks.
            return {"type": "input_text", "text": msgspec.json.encode(block).decode()}


def _url(source: Block) -> str:
    match source:
        case {"type": "url", "url": str(url)}:
            return url
        case _:
            return f"data:{source.get('media_type')};base64,{source.get('data')}"


def _file(source: Block) -> Item:
    match source:
        case {"type": "url", "url": str(url)}:
            return {"file_url": url}
        case {"type": "text", "data": str(data)}:
            return {"file_data": f"data:text/plain;base64,{base64.b64encode(data.encode()).decode()}"}
        case _:
            return {"file_data": _url(source)}
