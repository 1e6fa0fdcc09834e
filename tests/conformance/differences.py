"""The differences between two ways to a message that are allowed. All of them are here."""

import re
from collections.abc import Sequence
from typing import Any

# Half of a pair that a kill has cut is closed with a result of one of these codes.
CUT = "unavailable"
LIMITS = ("max_tokens", "model_context_window_exceeded")
# The escape of half of a surrogate pair. Each one in the cases stands alone.
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
THOUGHTS = ("thinking", "redacted_thinking")

Message = dict[str, Any]
Block = dict[str, Any]


def comparable(message: Message) -> Message:
    """Returns a message without its id, and without fields that are null or a count of 0, which may also be absent.

    A `citations` without any may be absent, too.
    """
    return {name: _simplified(value) for name, value in message.items() if name != "id" and _is_set(value)}


def _is_set(value: Any) -> bool:
    return value is not None and value != [] and not (value == 0 and isinstance(value, int))


def _simplified(value: Any) -> Any:
    match value:
        case dict():
            return {name: _simplified(one) for name, one in value.items() if _is_set(one)}
        case list():
            return [_simplified(one) for one in value]
    return value


def as_json(message: Message) -> Message:
    """Returns a message as an answer without a stream has it.

    The input of a call that a limit has cut is empty there; from a stream, the SDK reads what a part of JSON has.
    """
    is_cut = message["stop_reason"] in LIMITS
    content = [{**one, "input": {}} if is_cut and one["type"] == "tool_use" else one for one in message["content"]]
    return comparable({**message, "content": content})


def after_kill(content: list[Block]) -> list[Block]:
    """Returns the blocks that a kill may not change.

    Without thinking, because the model thinks again; without half pairs that were closed with an error; citations left
    out, because the model has not to cite the text again that it had written; and neighbouring texts joined, because a
    continuation goes on in the block that was open.
    """
    dropped = set[int]()
    for index, block in enumerate(content):
        if _is_closed_half(block):
            # The model may have called again with the same id.
            calls = [at for at in range(index) if content[at].get("id") == block["tool_use_id"]]
            dropped |= {index, *calls[-1:]}
    found: list[Block] = []
    for index, block in enumerate(content):
        if block["type"] in THOUGHTS or index in dropped:
            continue
        if block["type"] != "text":
            found.append(block)
        elif found and found[-1]["type"] == "text":
            found[-1] = {"type": "text", "text": found[-1]["text"] + block["text"]}
        else:
            found.append({"type": "text", "text": block["text"]})
    return [_simplified(block) for block in found]


def _is_closed_half(block: Block) -> bool:
    if "tool_use_id" not in block:
        return False
    content = block.get("content")
    return bool(block.get("is_error")) or (isinstance(content, dict) and content.get("error_code") == CUT)


def as_sent(text: str) -> str:
    """Returns a JSON text as it is sent to the model: the API refuses half of a surrogate pair (PROTOCOL R125)."""
    return HALF_PAIR.sub(r"\\ufffd", text)


def as_history(content: list[Block], answered: Sequence[str]) -> list[Block]:
    """Returns the blocks of an answer as the next turn of a session sends them to the model.

    Without calls that have no result, except those `answered` by the next turn, without texts of white space, and
    without thinking at the end: the API refuses all of these.
    """
    results = {*answered, *(block.get("tool_use_id") for block in content)}
    # Code of a server tool that waits for the client's tool.
    results |= {(block.get("caller") or {}).get("tool_id") for block in content if block.get("id") in answered}
    found = [
        block
        for block in content
        if not (block["type"].endswith("tool_use") and block["id"] not in results)
        and not (block["type"] == "text" and not block["text"].strip())
    ]
    while found and found[-1]["type"] in THOUGHTS:
        found.pop()
    return [_simplified(block) for block in found]
