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
| the input of a call is an object | another input becomes `{}`, and so does one that is nested too deeply |
| the name of a call has 1 to 128 letters, digits, `_` and `-` | other characters become `_` |
| a failed call has a reason | FAILED |
| a call of a server tool gets its result before the next question | it is left out behind that |
| files have one of a few types | another file is refused in a new message, and named in an older one |
| an answer has no file, and the prompt neither | the same; in an answer, it is always named |
| the first message is the user's | (generators/continuation.py puts one before an answer) |
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from tailrace.gateway.turns.request_body import MessageParam
from tailrace.proto.conversation import simplify, without_lost_calls, without_trailing_thinking
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import Refused
from tailrace.proto.fold import INPUT_LEVELS_MAX, decode_input
from tailrace.proto.server_tools import CALLS
from tailrace.protocols.common.file_block import REFUSED
from tailrace.protocols.common.tool_definition import SERVER_CALLS

Block = dict[str, Any]

NOTHING = "has no text and no file"
NO_CALL = "has the result of {call!r}, and no message before it has this call: send the call, too"
OLD_RESULT = "has the result of a call before the last answer, and nothing else is new: ask a question, too"
OF_USER = "has a file, which Claude takes only in messages of the user, and in results of tools"
# The types of parts that no message can have, and those that a message of the assistant or the system cannot have.
ALWAYS_REFUSED = frozenset({REFUSED})
FILES = ALWAYS_REFUSED | {"image", "document"}
# Precede the signature of thinking, or the data of encrypted thinking, where a protocol has one field for both.
SIGNED, REDACTED = "thinking:", "redacted_thinking:"
# Names of tools. Another model may have called something else, and the API refuses it in every later request.
NAME_CHARS_MAX, NOT_IN_NAMES = 128, re.compile(r"[^a-zA-Z0-9_-]")
Message = TypeVar("Message", bound=Any)
# The roles of messages and items that belong to an answer, in any protocol.
ANSWERED = ("assistant", "reasoning", "tool", None)


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
    first: Item
    """The first item of the client's answer: calls with one id in it are in several `_Answer`."""
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
    steps = _Steps(name, is_page=is_page)
    add = {"assistant": steps.answer, "result": steps.results, "user": steps.question, "system": steps.system}
    for item in items:
        add[item.role](item)
    return steps.end()


class _Steps:
    """Puts the items of a conversation in the order of Claude's API."""

    def __init__(self, name: str, *, is_page: bool) -> None:
        self._name, self._is_page = name, is_page
        self._prompt: list[Block] = []
        self._found: list[MessageParam | _Answer] = []
        self._results_of_stored: dict[str, Block] = {}
        # The calls of each id that have no result: their answers, and the numbers of their blocks.
        self._calls: dict[str, list[tuple[_Answer, int]]] = {}
        # The answer to which further items of the assistant belong.
        self._answer: _Answer | None = None
        self._has_server_calls = False
        # Why new parts are refused, unless a later item makes them old.
        self._refused: list[str] = []
        # The question, or the results, behind the last answer.
        self._last: Item | None = None

    def answer(self, item: Item) -> None:
        # Also an empty answer, as a client stores one that has failed.
        self._refused.clear()
        if not item.content:
            return
        answer, self._last = self._answer, None
        if answer is None or answer.has_result:
            answer = self._begin(item)
        for block in item.content:
            kind = block["type"]
            if kind == "tool_use":
                answer = self._add_call(block, answer)
                continue
            if kind in CALLS:
                self._has_server_calls = True
            answer.blocks.append(_name_file(block) if kind in FILES else block)

    def _begin(self, first: Item) -> _Answer:
        self._answer = answer = _Answer(first, [], {})
        self._found.append(answer)
        return answer

    def _add_call(self, block: Block, answer: _Answer) -> _Answer:
        """Returns the answer to which the call belongs."""
        call = block["id"]
        if self._is_page and call.startswith(SERVER_CALLS):
            return answer
        waiting = self._calls.setdefault(call, [])
        if waiting and waiting[-1][0] is answer:
            earlier = answer.blocks[waiting[-1][1]]
            if (block["name"], block["input"]) == (earlier["name"], earlier["input"]):
                # The client has sent its message twice. A mark of the cache may be in one of them.
                earlier.update(block)
                return answer
            answer = self._begin(answer.first)
        waiting.append((answer, len(answer.blocks)))
        answer.results[len(answer.blocks)] = None
        answer.blocks.append(block)
        return answer

    def results(self, item: Item) -> None:
        for given in item.content:
            call, inner = given["tool_use_id"], given["content"]
            block = given if isinstance(inner, str) else {**given, "content": self._usable(inner, item)}
            if waiting := self._calls.get(call):
                nearest = waiting[-1][0].first
                owner, at = waiting.pop(next(n for n, one in enumerate(waiting) if one[0].first is nearest))
                owner.results[at] = block
                owner.has_result = True
            elif call not in self._calls and not self._is_page:
                self._results_of_stored.setdefault(call, block)
            elif call not in self._calls and not call.startswith(SERVER_CALLS):
                raise Refused("request_invalid", self._problem(item, NO_CALL.format(call=call[:100])))
            self._last = item

    def question(self, item: Item) -> None:
        self._answer, self._last = None, item
        if self._is_page:
            self._refused.clear()
        if item.content:
            self._found.append(MessageParam("user", simplify(self._usable(item.content, item))))

    def system(self, item: Item) -> None:
        blocks = self._usable(item.content, item, FILES)
        if self._is_page and self._found and blocks:
            self._answer = None
            self._found.append(MessageParam("system", simplify(blocks)))
        else:
            self._prompt += blocks

    def _usable(self, blocks: list[Block], item: Item, kinds: frozenset[str] = ALWAYS_REFUSED) -> list[Block]:
        """Returns `blocks` with a text in place of each of the types `kinds`, and remembers why."""
        for block in blocks:
            if block["type"] in kinds:
                files = [one for one in blocks if one["type"] in kinds]
                self._refused += [self._problem(item, one.get("reason", OF_USER)) for one in files]
                return [_name_file(one) if one["type"] in kinds else one for one in blocks]
        return blocks

    def _problem(self, item: Item, reason: str) -> str:
        return f"`{self._name.format(item.number)}` {reason}"

    def end(self) -> Conversation:
        """Returns the conversation. Raises Refused for what is new, and can have no answer."""
        messages = [MessageParam("user", [*self._results_of_stored.values()])] if self._results_of_stored else []
        for one in self._found:
            if isinstance(one, MessageParam):
                messages.append(one)
                continue
            blocks, results = one.blocks, [block for block in one.results.values() if block is not None]
            if self._is_page and len(results) < len(one.results):
                blocks = [block for at, block in enumerate(blocks) if one.results.get(at, block) is not None]
            if blocks := without_trailing_thinking(blocks):
                messages.append(MessageParam("assistant", simplify(blocks)))
            if results:
                messages.append(MessageParam("user", results))
        if self._last is not None and (not self._last.content or [one.role for one in messages[-1:]] == ["assistant"]):
            self._refused.append(self._problem(self._last, OLD_RESULT if self._last.content else NOTHING))
        if self._refused:
            raise Refused("request_invalid", self._refused[0])
        if self._has_server_calls:
            messages = [MessageParam(one.role, one.content) for one in without_lost_calls(messages)]
        return Conversation(self._prompt, messages)


def _name_file(part: Block) -> Block:
    """Returns the text in place of a part, with its mark of the cache."""
    name = part.get("name") or part.get("title") or part["type"]
    text = {"type": "text", "text": f"[{name[:200]} cannot be shown here]"}
    return text | {"cache_control": part["cache_control"]} if "cache_control" in part else text


def each_answer_once(messages: Iterable[Message], start: int = 0) -> Iterator[tuple[int, Message]]:
    """Yields messages with their numbers, from `start`; an answer that a client sends twice, with its id, once."""
    first: dict[str, Message] = {}
    for number, one in enumerate(messages, start):
        if not one.id or one.role not in ANSWERED or first.setdefault(one.id, one) is one or first[one.id] != one:
            yield number, one


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
    elif is_deeper(given, INPUT_LEVELS_MAX):
        given = None
    name = NOT_IN_NAMES.sub("_", name[:NAME_CHARS_MAX]) or "unnamed"
    return {"type": "tool_use", "id": call, "name": name, "input": given if isinstance(given, dict) else {}}


def build_thinking(text: str, secret: str) -> list[Block]:
    """Returns the block of an item of reasoning; none without the proof that Claude has written it.

    `secret`: what the protocol has sent of its signature. Claude's API would refuse that of another vendor, with which
    a conversation may have begun, in every later request. Only the prefix proves it: signatures of Claude and of Gemini
    are messages of Protocol Buffers that begin alike.
    """
    kind, _, value = secret.partition(":")
    if value and f"{kind}:" == SIGNED:
        return [{"type": "thinking", "thinking": text, "signature": value}]
    return [{"type": "redacted_thinking", "data": value}] if value and f"{kind}:" == REDACTED else []
