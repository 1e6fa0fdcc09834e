"""Which parts of a call the model is to keep for the next one: marks of `cache_control` in it (R61). Pure.

Anthropic's rules (docs, "Prompt caching"): a mark is on a block, and means all before it (tools, system, messages).
There are four at most; thoughts and empty texts take none; what is shorter than some thousand tokens is not kept.
"""

from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.proto.blobs import references
from tailrace.proto.entries import CacheFor, Message
from tailrace.proto.usage import ESTIMATE_CHARS, ESTIMATE_TOKENS

# Below this no model keeps anything; most want two to four times as much, and pass over the marks until then.
TOKENS_MIN = 1024
UNMARKED = ("thinking", "redacted_thinking")

Block = dict[str, Any]


def marked(call: Call, cache: CacheFor | None, history: int) -> Call:
    """`call` with marks behind its tools, its system prompt, the first `history` messages, and the last one.

    They stand in the same places however often the call is made: what goes on from a partial answer reads what the
    first call has written. Where the client has set marks of its own, there are no others.
    """
    if cache is None or is_marked(call) or (cache == "auto" and tokens_in(call) < TOKENS_MIN):
        return call
    mark: Block = {"type": "ephemeral", "ttl": "1h"} if cache == "1h" else {"type": "ephemeral"}
    ends = {history - 1, len(call.messages) - 1}
    return msgspec.structs.replace(
        call,
        tools=[*call.tools[:-1], call.tools[-1] | {"cache_control": mark}] if call.tools else call.tools,
        system=_blocks(call.system, mark) if call.system else call.system,
        messages=[
            Message(message.role, _blocks(message.content, mark)) if number in ends else message
            for number, message in enumerate(call.messages)
        ],
    )


def _blocks(content: str | list[Block], mark: Block) -> str | list[Block]:
    """`content` with a mark on the last block that takes one."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for number in range(len(blocks) - 1, -1, -1):
        if blocks[number].get("type") not in UNMARKED and blocks[number].get("text") != "":
            return [*blocks[:number], blocks[number] | {"cache_control": mark}, *blocks[number + 1 :]]
    return content


def is_marked(call: Call) -> bool:
    """Whether the client has set a mark."""
    if "cache_control" in (call.options or {}):
        return True
    contents = [call.system, *(message.content for message in call.messages)]
    told = [block for content in contents if isinstance(content, list) for block in content]
    return any("cache_control" in block for block in [*told, *(call.tools or ())]) or any(
        "cache_control" in inner
        for block in told
        if isinstance(inners := block.get("content"), list)
        for inner in inners
    )


def tokens_in(call: Call) -> int:
    """About how many tokens its prompt has, as Anthropic counts English."""
    said = msgspec.json.encode([call.tools, call.system, call.messages])
    return (len(said) + sum(blob.bytes for blob in references(call))) * ESTIMATE_TOKENS // ESTIMATE_CHARS
