"""Prompt caching: puts `cache_control` marks into a call, so that the API caches its prompt (PROTOCOL R61). Pure.

Anthropic's rules (docs, "Prompt caching"): a mark stands on a block and covers everything before it, in the order
tools, system, messages. A call has at most four marks; thinking and empty text blocks take none; prompts shorter than
about a thousand tokens are not cached.
"""

from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.generators.feature import Feature, Hooks
from tailrace.proto.blobs import references
from tailrace.proto.entries import CacheFor, Request
from tailrace.proto.fold import Turn
from tailrace.proto.usage import estimate_tokens

# No model caches less. Most need two to four times as much, and ignore the marks below that.
TOKENS_MIN = 1024
UNMARKED = ("thinking", "redacted_thinking")

Block = dict[str, Any]


def cache_prompt(call: Call, request: Request, _turn: Turn) -> Call:
    """Returns `call` with the marks that `request` wants."""
    return add_cache_marks(call, request.cache, request.history)


def add_cache_marks(call: Call, cache: CacheFor | None, history: int) -> Call:
    """Returns `call` with marks after its tools, its system prompt, the first `history` messages, and the last message.

    The marks have the same positions in every call of a turn, so that a continuation reads what the first call cached.
    If the client has set marks, none are added.
    """
    if cache is None or has_cache_marks(call) or (cache == "auto" and estimate_prompt(call) < TOKENS_MIN):
        return call
    mark: Block = {"type": "ephemeral", "ttl": "1h"} if cache == "1h" else {"type": "ephemeral"}
    ends = {history - 1, len(call.messages) - 1}
    return msgspec.structs.replace(
        call,
        tools=[*call.tools[:-1], call.tools[-1] | {"cache_control": mark}] if call.tools else call.tools,
        system=_mark_last(call.system, mark) if call.system else call.system,
        messages=[
            msgspec.structs.replace(message, content=_mark_last(message.content, mark)) if number in ends else message
            for number, message in enumerate(call.messages)
        ],
    )


def _mark_last(content: str | list[Block], mark: Block) -> str | list[Block]:
    """Returns `content` with a mark on the last block that can have one."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for number in range(len(blocks) - 1, -1, -1):
        if blocks[number].get("type") not in UNMARKED and blocks[number].get("text") != "":
            return [*blocks[:number], blocks[number] | {"cache_control": mark}, *blocks[number + 1 :]]
    return content


def has_cache_marks(call: Call) -> bool:
    """Returns whether the client has set a mark."""
    if "cache_control" in (call.options or {}):
        return True
    contents = [call.system, *(message.content for message in call.messages)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return any("cache_control" in block for block in [*blocks, *(call.tools or ())]) or any(
        isinstance(inner, dict) and "cache_control" in inner
        for block in blocks
        if isinstance(inners := block.get("content"), list)
        for inner in inners
    )


def estimate_prompt(call: Call) -> int:
    """Returns about how many tokens the prompt has, by Anthropic's ratio for English."""
    encoded = msgspec.json.encode([call.tools, call.system, call.messages])
    return estimate_tokens(len(encoded) + sum(blob.bytes for blob in references(call)))


FEATURE = Feature(Hooks(filters=(cache_prompt,)))
