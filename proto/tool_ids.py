"""Tool call ids as Claude accepts them. Pure.

Claude's API accepts only ids of letters, digits, `_` and `-`, and each id for only one call of a conversation. Other
vendors use other characters (`functions.get_weather:0`), and some number the calls of each answer anew (`call_0`). The
log keeps the ids that clients and models have used; only a request to Claude has the mapped ids.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from tailrace.proto.entries import Message
from tailrace.proto.runtime import base64url

VALID = re.compile(r"[a-zA-Z0-9_-]+")
# An id that already begins so is mapped, too: no id is then equal to a mapped one.
MAPPED = "tailrace_"


def with_valid_tool_ids(messages: list[Message]) -> list[Message]:
    """Returns `messages`, in which each tool call has a valid id of its own, and each result the id of its call."""
    contents = [one.content for one in messages]
    mapped = map_tool_ids(contents)
    if mapped is contents:
        return messages
    return [
        one if content is one.content else msgspec.structs.replace(one, content=content)
        for one, content in zip(messages, mapped, strict=True)
    ]


def map_tool_ids(contents: Sequence[Any]) -> Sequence[Any]:
    """Returns the contents of a conversation's messages with valid tool call ids; `contents` itself if all are valid.

    A call whose id an earlier message has, too, gets another id. A result has the id of the last call before it. Values
    that are no blocks of tools stay as they are: the API refuses what it cannot read.
    """
    # By id of a call: how many messages have it, and the mapped id in the last of them.
    times: dict[str, int] = {}
    current: dict[str, str] = {}
    is_changed = False
    found: list[Any] = []
    for content in contents:
        if not isinstance(content, list):
            found.append(content)
            continue
        called: set[str] = set()
        blocks = []
        for block in content:
            match block:
                case {"type": "tool_use", "id": str(call)}:
                    if call not in called:
                        called.add(call)
                        current[call] = _valid_id(call, times.get(call, 0))
                        times[call] = times.get(call, 0) + 1
                    blocks.append(_with(block, "id", current[call]))
                case {"type": "tool_result", "tool_use_id": str(call)}:
                    blocks.append(_with(block, "tool_use_id", current.get(call) or _valid_id(call, 0)))
                case _:
                    blocks.append(block)
        if any(new is not old for new, old in zip(blocks, content, strict=True)):
            is_changed = True
            found.append(blocks)
        else:
            found.append(content)
    return found if is_changed else contents


def _with(block: dict[str, Any], field: str, value: str) -> dict[str, Any]:
    return block if block[field] == value else {**block, field: value}


def _valid_id(call: str, repetition: int) -> str:
    """Returns the id for a call whose id `call` is in `repetition` earlier messages. Different pairs get different ids.

    The same pair always gets the same id: the prompt of a longer conversation begins with the prompt of the last call,
    which the API has cached.
    """
    if repetition == 0 and VALID.fullmatch(call) is not None and not call.startswith(MAPPED):
        return call
    # Lone surrogates may come from JSON escapes.
    hashed = hashlib.sha256(f"{repetition}:{call}".encode("utf-8", "surrogatepass")).digest()
    return MAPPED + base64url.encode(hashed)
