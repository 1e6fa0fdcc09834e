"""Calls of server tools and MCP servers in a partial answer: which are complete, and how half a call is closed. Pure.

The API executes these tools itself, within the answer: a call is followed by its result. Both go back to the API when
the answer is continued, so that no tool runs twice (PROTOCOL R119). A call whose result was not stored is no part of
the next call. In the stored answer it gets a result of its own, the API's error for a tool that failed: otherwise the
API would refuse the answer when a client sends it back ("tool use was found without a corresponding result block").

Source: anthropic 2.14.0, `BetaContentBlockParam` and the `…ToolResultError` types.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tailrace.proto import events
from tailrace.proto.conversation import is_empty_compaction, without_trailing_thinking
from tailrace.proto.entries import Block, Message
from tailrace.proto.fold import content, is_executed_tool

CALLS = ("server_tool_use", "mcp_tool_use")
# Further types of answers that the API takes back.
SENDABLE = frozenset({"container_upload", "compaction", "fallback", "mcp_tool_listing"})
# Types of blocks that have no deltas, besides results.
WHOLE_AT_START = frozenset({"redacted_thinking", "container_upload", "fallback", "mcp_tool_listing"})
# The tools whose result has another name than the tool.
RESULT_NAMES = {"tool_search_tool_regex": "tool_search", "tool_search_tool_bm25": "tool_search"}
INTERRUPTED = "The call was interrupted before its result arrived."


def is_sendable(kind: str) -> bool:
    """Returns whether the API takes a closed block of this type back as part of an answer (text and thinking aside)."""
    return kind in CALLS or kind in SENDABLE or kind.endswith("_tool_result")


def is_call(block: Block) -> bool:
    """Returns whether the block is a call of a server tool or an MCP server that the API executes."""
    return block.type in CALLS and not is_executed_tool(block.start)


def is_result(block: Block) -> bool:
    """Returns whether the block is a result of such a call."""
    return block.type.endswith("_tool_result") and isinstance(block.start.get("tool_use_id"), str)


def is_whole_at_start(block: Block) -> bool:
    """Returns whether no delta follows the start of the block, so that nothing of it is missing while it is open."""
    return is_result(block) or block.type in WHOLE_AT_START


def has_results(blocks: Iterable[Block]) -> bool:
    """Returns whether the blocks have the result of a call, which is no error that `close_half_calls` has made."""
    return any(_is_real_result(block) for block in blocks)


def without_half_calls(blocks: Sequence[Block], *, keeps_pending: bool = False) -> list[Block]:
    """Returns the blocks without calls that have no result, and without the errors that stand for their results.

    With `keeps_pending`, calls that nothing stands for stay: those of a paused answer, which the API still executes.
    """
    answered = {block.start["tool_use_id"] for block in blocks if _is_real_result(block)}
    closed = {block.start["tool_use_id"] for block in blocks if _is_made_up(block)} - answered

    def is_half(block: Block) -> bool:
        call = block.start.get("id")
        return is_call(block) and (call in closed or not (keeps_pending or call in answered))

    return [
        block
        for block in blocks
        if not is_half(block) and not (is_result(block) and block.start["tool_use_id"] in closed)
    ]


def continued_content(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Returns the partial answer that a continuation sends: without half blocks, texts of white space, late thinking.

    If nothing is left, the continuation is the call of the beginning.
    """
    return without_trailing_thinking([content(block) for block in without_half_calls(blocks) if is_accepted(block)])


def is_accepted(block: Block) -> bool:
    """Returns whether the API accepts the block in an answer: no text of white space, no half thought."""
    match block.type:
        case "text":
            return bool(block.text.strip())
        case "thinking":
            return bool(block.text.strip()) and bool(block.signature)
        case _:
            return not is_executed_tool(block.start) and not is_empty_compaction(content(block))


def pending_calls(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns the calls without a result in an answer that is the last message: a pause that the client sent back.

    The API executes them, and its answer begins with their results.
    """
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or not isinstance(last.content, list):
        return []
    answered = [block.get("tool_use_id") for block in last.content]
    return [block for block in last.content if block.get("type") in CALLS and block.get("id") not in answered]


def without_pending_calls(messages: Sequence[Message], blocks: Sequence[Block]) -> list[Message]:
    """Returns `messages` without those of `pending_calls` whose results are not in `blocks`, the answer to them."""
    answered = [block.start["tool_use_id"] for block in blocks if _is_real_result(block)]
    pending = [call for call in pending_calls(messages) if call.get("id") not in answered]
    if not pending:
        return list(messages)
    *before, last = messages
    blocks_left = [one for one in last.content if isinstance(one, dict) and one not in pending]
    kept = without_trailing_thinking(blocks_left)
    return [*before, *([Message("assistant", kept)] if kept else [])]


def close_half_calls(blocks: Sequence[Block], messages: Sequence[Message] = ()) -> list[events.Event]:
    """Returns the events that close what a continuation cannot go on with: half calls and half thoughts.

    An open block gets its stop, and each call without a result gets an error, also those of `pending_calls`. Empty if
    there is nothing to close. An open text block at the end stays open if no error follows it: the continuation goes
    on in it.
    """
    answered = {block.start["tool_use_id"] for block in blocks if is_result(block)}
    # A continuation that sends nothing of the answer lets the API execute the calls of the request.
    half = pending_calls(messages) if continued_content(blocks) else []
    half = [
        call for call in (*half, *(block.start for block in blocks if is_call(block))) if call.get("id") not in answered
    ]
    closing: list[events.Event] = []
    for index, block in enumerate(blocks):
        is_continued = block.type == "text" and index == len(blocks) - 1 and not half
        if not block.is_closed and not is_continued:
            closing.append(events.BlockStop(index))
    for number, call in enumerate(half, start=len(blocks)):
        closing += [events.BlockStart(number, error_result(call)), events.BlockStop(number)]
    return closing


def error_result(call: dict[str, Any]) -> dict[str, Any]:
    """Returns the block that says that the call of a server tool or MCP server has failed, in the API's words."""
    if call.get("type") == "mcp_tool_use":
        text = [{"type": "text", "text": INTERRUPTED}]
        return {"type": "mcp_tool_result", "tool_use_id": call.get("id"), "is_error": True, "content": text}
    name = str(call.get("name"))
    kind = f"{RESULT_NAMES.get(name, name)}_tool_result"
    error = {"type": f"{kind}_error", "error_code": "unavailable"}
    return {"type": kind, "tool_use_id": call.get("id"), "content": error}


def _is_made_up(block: Block) -> bool:
    """Returns whether `error_result` has made the block. An error of the API has further fields, such as `caller`."""
    match block.start:
        case {"type": "mcp_tool_result", "tool_use_id": str(), "is_error": True, "content": [{"text": text}]}:
            return bool(text == INTERRUPTED)
        case {"type": str(kind), "tool_use_id": str(), "content": dict(error), **rest} if not rest:
            return error == {"type": f"{kind}_error", "error_code": "unavailable"}
    return False


def _is_real_result(block: Block) -> bool:
    return is_result(block) and not _is_made_up(block)
