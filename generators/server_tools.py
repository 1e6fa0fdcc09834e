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
from tailrace.proto.entries import Block
from tailrace.proto.fold import is_executed_tool

CALLS = ("server_tool_use", "mcp_tool_use")
# Further types of answers that the API takes back.
SENDABLE = frozenset({"container_upload", "compaction", "fallback", "mcp_tool_listing"})
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
    """Returns whether the block is a result of such a call. It is whole at its start."""
    return block.type.endswith("_tool_result") and "tool_use_id" in block.start


def has_results(blocks: Iterable[Block]) -> bool:
    """Returns whether the blocks have the result of a call, which is no error that `close_half_calls` has made."""
    return any(_is_real_result(block) for block in blocks)


def without_half_calls(blocks: Sequence[Block], *, keeps_pending: bool = False) -> list[Block]:
    """Returns the blocks without calls that have no result, and without the errors that stand for their results.

    With `keeps_pending`, calls that nothing stands for stay: those of a paused answer, which the API still executes.
    """
    answered = {block.start.get("tool_use_id") for block in blocks if _is_real_result(block)}
    closed = {block.start["tool_use_id"] for block in blocks if _is_made_up(block)} - answered

    def is_half(block: Block) -> bool:
        call = block.start.get("id")
        return is_call(block) and (call in closed or not (keeps_pending or call in answered))

    return [block for block in blocks if not is_half(block) and block.start.get("tool_use_id") not in closed]


def close_half_calls(blocks: Sequence[Block]) -> list[events.Event]:
    """Returns the events that close what a continuation cannot go on with: half calls and half thoughts.

    An open block gets its stop, and each call without a result gets an error. Empty if there is nothing to close.
    An open text block at the end stays open: the continuation goes on in it.
    """
    closing: list[events.Event] = []
    for index, block in enumerate(blocks):
        is_continued = block.type == "text" and index == len(blocks) - 1
        if not block.is_closed and not is_continued:
            closing.append(events.BlockStop(index))
    answered = {block.start.get("tool_use_id") for block in blocks}
    half = [block for block in blocks if is_call(block) and block.start.get("id") not in answered]
    for number, block in enumerate(half, start=len(blocks)):
        closing += [events.BlockStart(number, error_result(block.start)), events.BlockStop(number)]
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
    match block.start:
        case {"type": "mcp_tool_result", "tool_use_id": str(), "is_error": True, "content": [{"text": text}]}:
            return bool(text == INTERRUPTED)
        case {"type": str(kind), "tool_use_id": str(), "content": {"type": str(error), "error_code": "unavailable"}}:
            return error == f"{kind}_error"
    return False


def _is_real_result(block: Block) -> bool:
    return is_result(block) and not _is_made_up(block)
