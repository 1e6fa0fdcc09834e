"""Calls of server tools and MCP servers, and their results, as content blocks of an answer. Pure.

The API executes these tools itself, within the answer: a call is followed by its result.

Source: anthropic 2.14.0, `BetaContentBlock` and the `…ToolResultError` types.
"""

from collections.abc import Iterable, Mapping
from typing import Any

CALLS = ("server_tool_use", "mcp_tool_use")
# The tools whose result has another name than the tool.
RESULT_NAMES = {"tool_search_tool_regex": "tool_search", "tool_search_tool_bm25": "tool_search"}
INTERRUPTED = "The call was interrupted before its result arrived."

ContentBlock = Mapping[str, Any]


def is_executed_tool(block: ContentBlock) -> bool:
    """Returns whether this content block is a tool call that a backend has executed itself, as Claude Code does.

    Clients see it, and no model gets it: its result is not in the answer.
    """
    return block.get("type") == "server_tool_use" and "executed_by" in block


def is_call(block: ContentBlock) -> bool:
    """Returns whether the block is a call of a server tool or an MCP server that the API executes."""
    return block.get("type") in CALLS and not is_executed_tool(block)


def is_result(block: ContentBlock) -> bool:
    """Returns whether the block is a result of such a call."""
    return str(block.get("type")).endswith("_tool_result") and isinstance(block.get("tool_use_id"), str)


def error_result(call: ContentBlock) -> dict[str, Any]:
    """Returns the block that says that the call of a server tool or MCP server has failed, in the API's words."""
    if call.get("type") == "mcp_tool_use":
        text = [{"type": "text", "text": INTERRUPTED}]
        return {"type": "mcp_tool_result", "tool_use_id": call.get("id"), "is_error": True, "content": text}
    name = str(call.get("name"))
    kind = f"{RESULT_NAMES.get(name, name)}_tool_result"
    error = {"type": f"{kind}_error", "error_code": "unavailable"}
    return {"type": kind, "tool_use_id": call.get("id"), "content": error}


def is_made_up(block: ContentBlock) -> bool:
    """Returns whether `error_result` has made the block. An error of the API has further fields, such as `caller`."""
    match block:
        case {"type": "mcp_tool_result", "tool_use_id": str(), "is_error": True, "content": [{"text": text}]}:
            return bool(text == INTERRUPTED)
        case {"type": str(kind), "tool_use_id": str(), "content": dict(error), **rest} if not rest:
            return error == {"type": f"{kind}_error", "error_code": "unavailable"}
    return False


def is_real_result(block: ContentBlock) -> bool:
    """Returns whether the block is a result that `error_result` has not made."""
    return is_result(block) and not is_made_up(block)


def answered_calls(blocks: Iterable[ContentBlock]) -> set[str]:
    """Returns the ids of the calls whose real results are in `blocks`."""
    return {block["tool_use_id"] for block in blocks if is_real_result(block)}
