"""Prompt caching: puts `cache_control` marks into a call, so that the API caches its prompt (PROTOCOL R61). Pure.

Anthropic's rules (docs, "Prompt caching"): a mark stands on a block and covers everything before it, in the order
tools, system, messages. A call has at most four marks; thinking and empty text blocks take none; prompts shorter than
about a thousand tokens are not cached.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.generators.feature import Feature, Hooks
from tailrace.proto.blobs import references
from tailrace.proto.entries import CacheFor, Message, Request
from tailrace.proto.fold import Turn
from tailrace.proto.usage import estimate_tokens

# No model caches less. Most need two to four times as much, and ignore the marks below that.
TOKENS_MIN = 1024
UNMARKED = ("thinking", "redacted_thinking")
MARKS_MAX = 4
# Fields with values of the model or of the client.
UNREAD = ("input", "input_schema")

Block = dict[str, Any]


def limit_cache_marks(call: Call, request: Request, _turn: Turn) -> Call:
    """Returns `call` without the oldest marks of its history, as far as the call has more than MARKS_MAX.

    The marks of the new messages, the tools and the system prompt stay: the client can remove them itself.
    """
    counts = [count_marks(message.content) for message in call.messages]
    surplus = sum(counts) + count_marks([call.tools, call.system, call.options]) - MARKS_MAX
    messages = list(call.messages)
    for number, count in enumerate(counts[: request.history]):
        if surplus > 0 and count:
            content = without_marks(messages[number].content)
            messages[number] = msgspec.structs.replace(messages[number], content=content)
            surplus -= count
    return msgspec.structs.replace(call, messages=messages)


def count_marks(value: Any) -> int:
    """Returns the number of marks in a part of a call. A call's input and a tool's schema have none of the API's."""
    match value:
        case list():
            return sum(map(count_marks, value))
        case dict():
            inner = [one for name, one in value.items() if name not in UNREAD]
            return (value.get("cache_control") is not None) + count_marks(inner)
    return 0


def without_marks(value: Any) -> Any:
    """Returns a part of a call without marks."""
    match value:
        case list():
            return [without_marks(one) for one in value]
        case dict():
            kept = {name: one for name, one in value.items() if name != "cache_control"}
            return {name: one if name in UNREAD else without_marks(one) for name, one in kept.items()}
    return value


def cache_prompt(call: Call, request: Request, _turn: Turn) -> Call:
    """Returns `call` with the marks that `request` wants."""
    return add_cache_marks(call, request.cache, request.history)


def add_cache_marks(call: Call, cache: CacheFor | None, history: int) -> Call:
    """Returns `call` with marks after its tools, its system prompt, the first `history` messages, and the last message.

    A system message at the end has none: see `_last_spoken`.

    The marks have the same positions in every call of a turn, so that a continuation reads what the first call cached.
    If the client has set marks, none are added.
    """
    if cache is None or has_cache_marks(call) or (cache == "auto" and estimate_prompt(call) < TOKENS_MIN):
        return call
    mark: Block = {"type": "ephemeral", "ttl": "1h"} if cache == "1h" else {"type": "ephemeral"}
    ends = {_last_spoken(call.messages[:history]), _last_spoken(call.messages)}
    return msgspec.structs.replace(
        call,
        tools=[*call.tools[:-1], call.tools[-1] | {"cache_control": mark}] if call.tools else call.tools,
        system=_mark_last(call.system, mark) if call.system else call.system,
        messages=[
            msgspec.structs.replace(message, content=_mark_last(message.content, mark)) if number in ends else message
            for number, message in enumerate(call.messages)
        ],
    )


def _last_spoken(messages: Sequence[Message]) -> int:
    """Returns the index of the last message that is no system message; -1 without one.

    The API refuses a mark on a message with `clear_at` (diillson/chatcli#1524), and reads no entry whose mark is on a
    system message again (anthropics/claude-code#96101).
    """
    return max((number for number, message in enumerate(messages) if message.role != "system"), default=-1)


def _mark_last(content: str | list[Block], mark: Block) -> str | list[Block]:
    """Returns `content` with a mark on the last block that can have one."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for number in range(len(blocks) - 1, -1, -1):
        if blocks[number].get("type") not in UNMARKED and blocks[number].get("text") != "":
            return [*blocks[:number], blocks[number] | {"cache_control": mark}, *blocks[number + 1 :]]
    return content


def has_cache_marks(call: Call) -> bool:
    """Returns whether the client has set a mark."""
    return count_marks([call.tools, call.system, call.options, *(one.content for one in call.messages)]) > 0


def estimate_prompt(call: Call) -> int:
    """Returns about how many tokens the prompt has, by Anthropic's ratio for English."""
    encoded = msgspec.json.encode([call.tools, call.system, call.messages])
    return estimate_tokens(len(encoded) + sum(blob.bytes for blob in references(call)))


FEATURE = Feature(Hooks(filters=(limit_cache_marks, cache_prompt)))
