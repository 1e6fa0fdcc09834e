"""The items to which each client protocol translates a conversation, and the messages that Claude gets of them. Pure.

`build_messages` knows the rules of Claude's API about a conversation; a translator knows only its own format.

| rule of Claude's API | here |
|---|---|
| results directly follow the answer with their calls | they are put there, in the order of the calls |
| a call's id occurs once | two calls are two answers; a result is of the first open call in the nearest answer |
| each call has one result | the first result counts |
| no text is blank, and no message is empty | a blank text or message is left out; a blank last one is refused |
| thinking has Claude's signature | other thinking is left out |
| an answer does not end with thinking | this thinking is left out |
| the input of a call is an object | another input becomes `{}` |
| a failed call has a reason | FAILED |
| a call of a server tool gets its result before the next question | it is left out behind that |
| files have one of a few types | another file is refused in a new message, and named in an older one |
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from tailrace.gateway.turns.request_body import MessageParam
from tailrace.proto.conversation import simplify, without_lost_calls, without_trailing_thinking
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused
from tailrace.proto.fold import decode_input
from tailrace.proto.server_tools import CALLS
from tailrace.protocols.common.file_block import REFUSED
from tailrace.protocols.common.tool_definition import SERVER_CALLS

Block = dict[str, Any]

NO_CALL = "has the result of {call!r}, and no message before it has this call: send the call, too"
# Precede the signature of thinking, or the data of encrypted thinking, where a protocol has one field for both.
SIGNED, REDACTED = "thinking:", "redacted_thinking:"
# Earlier releases sent the signature alone, with an id that is made of the turn's. AG-UI had another prefix.
OWN_ID = re.compile(r"(?:[a-z]+_)+[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}_[0-9]+.*")
REDACTED_BEFORE = "redacted:"
# How Claude's signatures begin, for items without an id: a protobuf message in base64, whose first field is number 2.
LIKE_CLAUDE = "E"


class Item(msgspec.Struct, frozen=True, gc=False):
    """A part of a conversation. The blocks are in Claude's format.

    Consecutive items of the assistant are one answer, which ends with the first result of its calls.
    """

    role: Literal["system", "user", "assistant", "result"]
    content: list[Block]
    """Blocks, or a `refused_part`; of the role `result`, those of results."""
    number: int = 0
    """The number of the client's message, for errors."""


class Conversation(NamedTuple):
    """The conversation of a request."""

    system: list[Block]
    """The system messages at its beginning."""
    messages: list[MessageParam]


class _Answer(msgspec.Struct):
    blocks: list[Block]
    results: dict[int, Block | None]
    """The result of each call, by the number of the call's block; None: there is none."""
    has_result: bool = False


def build_messages(items: Iterable[Item], name: str = "messages[{}]", *, is_page: bool = False) -> Conversation:
    """Returns the conversation of `items`. Raises Refused; `name` is that of a wrong message, for its number.

    A page sends the whole conversation: its calls without a result wait, and are left out, a result without its call is
    refused, and only its last message is new. Another client may continue a stored answer, to whose calls such results
    belong; the API refuses its calls without a result, and all that stands behind its last answer is new. Its system
    messages are all put at the beginning: only some models accept them elsewhere.
    """
    system: list[Block] = []
    found: list[MessageParam | _Answer] = []
    results_of_stored: dict[str, Block] = {}
    # Each call without a result: its answer, the number of its block, and the number of the client's answer.
    calls: dict[str, list[tuple[_Answer, int, int]]] = {}
    number_of_answer = 0
    answer: _Answer | None = None
    has_server_calls = False
    # Reasons for a refusal unless a later item removes them: parts that Claude does not take, and an empty message.
    refused: list[str] = []
    empty: list[str] = []
    for item in items:
        role, content = item.role, item.content
        if role == "assistant":
            # Also an empty answer, as a client stores one that has failed.
            refused.clear()
            if not content:
                continue
            if answer is None or answer.has_result:
                answer = _Answer([], {})
                found.append(answer)
                number_of_answer += 1
            for block in content:
                kind = block["type"]
                if kind == "tool_use":
                    if is_page and block["id"].startswith(SERVER_CALLS):
                        continue
                    waiting = calls.setdefault(block["id"], [])
                    if waiting and waiting[-1][0] is answer:
                        if block == answer.blocks[waiting[-1][1]]:
                            # The client has sent its message twice.
                            continue
                        answer = _Answer([], {})
                        found.append(answer)
                    waiting.append((answer, len(answer.blocks), number_of_answer))
                    answer.results[len(answer.blocks)] = None
                elif kind in CALLS:
                    has_server_calls = True
                answer.blocks.append(block if kind != REFUSED else _name_file(block))
            empty.clear()
        elif role == "result":
            for given in content:
                call, inner = given["tool_use_id"], given["content"]
                block = given if isinstance(inner, str) else {**given, "content": _usable(inner, item, name, refused)}
                if unanswered := calls.get(call):
                    nearest = unanswered[-1][2]
                    first = next(at for at, one in enumerate(unanswered) if one[2] == nearest)
                    owner, index, _ = unanswered.pop(first)
                    owner.results[index] = block
                    owner.has_result = True
                elif call not in calls and not is_page:
                    results_of_stored.setdefault(call, block)
                elif call not in calls and not call.startswith(SERVER_CALLS):
                    raise Refused("request_invalid", f"`{name.format(item.number)}` {NO_CALL.format(call=call[:100])}")
                empty.clear()
        elif role == "user":
            answer = None
            if is_page:
                refused.clear()
            empty.clear()
            if content:
                found.append(MessageParam("user", simplify(_usable(content, item, name, refused))))
            else:
                empty.append(f"`{name.format(item.number)}` has no text and no file")
        elif is_page and found and content:
            answer = None
            found.append(MessageParam("system", simplify(_usable(content, item, name, refused))))
        else:
            system += _usable(content, item, name, refused)
    if problems := [*refused, *empty]:
        raise Refused("request_invalid", problems[0])
    messages = [MessageParam("user", [*results_of_stored.values()])] if results_of_stored else []
    for one in found:
        if isinstance(one, MessageParam):
            messages.append(one)
        else:
            blocks, results = one.blocks, [block for block in one.results.values() if block is not None]
            if is_page and len(results) < len(one.results):
                blocks = [block for at, block in enumerate(blocks) if one.results.get(at, block) is not None]
            if blocks := without_trailing_thinking(blocks):
                messages.append(MessageParam("assistant", simplify(blocks)))
            if results:
                messages.append(MessageParam("user", results))
    if has_server_calls:
        messages = [MessageParam(one.role, one.content) for one in without_lost_calls(messages)]
    return Conversation(system, messages)


def _usable(blocks: list[Block], item: Item, name: str, refused: list[str]) -> list[Block]:
    """Returns `blocks`, with a text in place of each part that Claude does not take. Adds the reason to `refused`."""
    if reasons := [block["reason"] for block in blocks if block["type"] == REFUSED]:
        refused += [f"`{name.format(item.number)}` {reason}" for reason in reasons]
        return [_name_file(block) if block["type"] == REFUSED else block for block in blocks]
    return blocks


def _name_file(part: Block) -> Block:
    return {"type": "text", "text": f"[{part['name'][:200]} cannot be shown here]"}


def build_text(text: str) -> list[Block]:
    """Returns the block of a text; none for a blank one, which many clients send with a call."""
    return [{"type": "text", "text": text}] if text.strip() else []


def build_call(call: str, name: str, given: object) -> Block:
    """Returns the block of a call. `given`: its input, perhaps as JSON, which is not whole if the answer was cut."""
    if isinstance(given, str):
        try:
            given = decode_input(given or "{}")
        except DECODE_ERRORS:
            given = None
    return {"type": "tool_use", "id": call, "name": name, "input": given if isinstance(given, dict) else {}}


def build_thinking(text: str, secret: str, item_id: str | None = None) -> list[Block]:
    """Returns the block of an item of reasoning; none without the proof that Claude has written it.

    `secret`: what the protocol has sent of its signature. Claude's API would refuse that of another vendor, with which
    a conversation may have begun, in every later request.
    """
    if secret.startswith((REDACTED, REDACTED_BEFORE)):
        return [{"type": "redacted_thinking", "data": secret.partition(":")[2]}]
    is_earlier = OWN_ID.fullmatch(item_id) is not None if item_id else secret.startswith(LIKE_CLAUDE)
    if secret.startswith(SIGNED) or (secret and is_earlier):
        return [{"type": "thinking", "thinking": text, "signature": secret.removeprefix(SIGNED)}]
    return []
