"""The input items of OpenAI's Responses API, as Anthropic's messages, and back. Pure.

What the assistant said and called in a row is one message of Claude's, and so are the outputs of those calls. Claude's
own thoughts come back as reasoning items with their signature; without one Claude does not take them.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import msgspec

from tailrace.gateway.clients.openai import common
from tailrace.gateway.clients.openai.responses_object import REDACTED, Item, item
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused

Block = dict[str, Any]
Speaker = Literal["user", "assistant", "system"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a content, of any type; what is not named here is the server's own, when an output comes back."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item of any type: a message when it names none."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] = []
    encrypted_content: str | None = None


def system_of(items: str | Sequence[InputItem], instructions: str | None) -> str | list[Block] | None:
    """The instructions, and what the system and the developer say, wherever they say it."""
    said = [] if instructions is None else [text(instructions)]
    for index, one in enumerate(() if isinstance(items, str) else items):
        if _speaker(one, index) == "system":
            said += _blocks(one.content or "", f"input[{index}]")
    match said:
        case []:
            return None
        case [{"text": str(only)}]:
            return only
        case _:
            return said


def messages_of(items: str | Sequence[InputItem]) -> list[Message]:
    """What the others say; raises Refused."""
    if isinstance(items, str):
        return [Message("user", items)]
    said = [(_speaker(one, index), index, one) for index, one in enumerate(items)]
    spoken = [one for one in said if one[0] != "system"]
    messages = []
    for (speaker, _), run in groupby(spoken, lambda one: (one[0], one[0] == "user" and is_message(one[2]) and one[1])):
        told = list(run)
        blocks = [block for _, index, one in told for block in _said(one, f"input[{index}]")]
        if blocks:
            messages.append(Message(speaker, _plain(told[0][2]) or blocks))
    return messages


def is_message(one: InputItem) -> bool:
    return one.type in (None, "message")


def _plain(one: InputItem) -> str | None:
    """What a user said in one string stays one."""
    return one.content if one.role == "user" and isinstance(one.content, str) else None


def _speaker(one: InputItem, index: int) -> Speaker:
    match one:
        case InputItem(type=None | "message", role="user"):
            return "user"
        case InputItem(type=None | "message", role="system" | "developer"):
            return "system"
        case InputItem(type=None | "message", role="assistant") | InputItem(type="function_call" | "reasoning"):
            return "assistant"
        case InputItem(type="function_call_output"):
            return "user"
        case InputItem(type="item_reference"):
            raise refused(index, "items are not looked up: send the item itself, or `previous_response_id`")
        case InputItem(type=None | "message"):
            raise refused(index, "a message has a `role`: user, assistant, system or developer")
        case _:
            raise refused(index, f"`{(one.type or '')[:64]}` is an item of OpenAI's own tools, which are not here")


def refused(index: int, why: str) -> Refused:
    return Refused("request_invalid", f"`input[{index}]`: {why}")


def _said(one: InputItem, where: str) -> list[Block]:
    match one.type:
        case "function_call":
            if one.call_id is None or one.name is None:
                raise Refused("request_invalid", f"`{where}`: a function_call has `call_id`, `name` and `arguments`")
            return [common.call(one.call_id, one.name, one.arguments or "", where)]
        case "function_call_output":
            if one.call_id is None or one.output is None:
                raise Refused("request_invalid", f"`{where}`: a function_call_output has `call_id` and `output`")
            output = one.output if isinstance(one.output, str) else _blocks(one.output, where)
            return [{"type": "tool_result", "tool_use_id": one.call_id, "content": output}]
        case "reasoning":
            return _thought(one)
        case _:
            return _blocks(one.content or "", where)


def _thought(one: InputItem) -> list[Block]:
    if not one.encrypted_content:
        return []
    if one.encrypted_content.startswith(REDACTED):
        return [{"type": "redacted_thinking", "data": one.encrypted_content.removeprefix(REDACTED)}]
    thinking = "".join(part.text for part in one.summary)
    return [{"type": "thinking", "thinking": thinking, "signature": one.encrypted_content}]


def _blocks(content: str | Iterable[Part], where: str) -> list[Block]:
    """Empty texts are left out: Claude refuses them."""
    if isinstance(content, str):
        return [text(content)] if content else []
    blocks = [_block(part, where) for part in content]
    return [block for block in blocks if block.get("text") != ""]


def _block(part: Part, where: str) -> Block:
    match part:
        case Part(type="input_text" | "output_text" | "text"):
            return text(part.text)
        case Part(type="refusal"):
            return text(part.refusal)
        case Part(type="input_image", image_url=str(url)):
            return common.image(url, where)
        case Part(type="input_file", file_data=str(data)):
            return common.document(data, part.filename, where)
        case Part(type="input_file", file_url=str(url)):
            return {"type": "document", "source": {"type": "url", "url": url}}
        case Part(type="input_image" | "input_file"):
            raise Refused("request_invalid", f"`{where}`: there are no uploads here: send the address or the data")
        case _:
            raise Refused("request_invalid", f"`{where}`: Claude does not take `{part.type[:64]}`")


def text(said: str) -> Block:
    return {"type": "text", "text": said}


def items_of(turn: str, messages: Sequence[Message]) -> list[Item]:
    """The messages as items again, oldest first."""
    return list(_items(turn, messages))


def _items(turn: str, messages: Sequence[Message]) -> Iterator[Item]:
    for number, message in enumerate(messages):
        blocks = [text(message.content)] if isinstance(message.content, str) else message.content
        said: list[Item] = []
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
                case _ if message.role == "assistant":
                    if (shown := item(f"{turn}_in{number}", index, block)) is not None:
                        yield shown
                case _:
                    said.append(_part(block))
        if said:
            yield {
                "id": f"msg_{turn}_in{number}",
                "type": "message",
                "role": message.role,
                "status": "completed",
                "content": said,
            }


def _output(content: object) -> str | list[Item]:
    """What was stored may be any JSON, and is told as such where it is no content."""
    match content:
        case str():
            return content
        case list():
            return [_part(block) for block in content]
        case _:
            return msgspec.json.encode(content).decode()


def _part(block: object) -> Item:
    match block:
        case {"type": "text", "text": str(said)}:
            return {"type": "input_text", "text": said}
        case {"type": "image", "source": dict(source)}:
            return {"type": "input_image", "detail": "auto", "image_url": _address(source)}
        case {"type": "document", "source": dict(source), **rest}:
            return {"type": "input_file", "filename": rest.get("title"), **_file(source)}
        case _:
            return {"type": "input_text", "text": msgspec.json.encode(block).decode()}


def _address(source: Block) -> str:
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
            return {"file_data": _address(source)}
