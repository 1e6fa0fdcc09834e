"""Calls of server tools and MCP servers in a partial answer: which are complete, and how half a call is closed. Pure.

The API executes these tools itself, within the answer: a call is followed by its result. Both go back to the API when
the answer is continued, so that no tool runs twice (PROTOCOL R119). A tool's call without a stored result is not sent
with the next model call. In the stored answer it gets a result, the API's error for a tool that failed: otherwise the
API would refuse the answer when a client sends it back ("tool use was found without a corresponding result block").

Source: anthropic 2.14.0, `BetaContentBlockParam` and the `…ToolResultError` types.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tailrace.proto import events
from tailrace.proto.conversation import is_empty_compaction, without_trailing_thinking
from tailrace.proto.entries import Block, Message
from tailrace.proto.fold import content
from tailrace.proto.server_tools import (
    CALLS,
    answered_calls,
    error_result,
    is_call,
    is_executed_tool,
    is_made_up,
    is_real_result,
    is_result,
)

# Further types of blocks that the API takes back in an answer.
SENDABLE = frozenset({"container_upload", "compaction", "fallback", "mcp_tool_listing"})
# Types of blocks without deltas; results have none, either.
WHOLE_AT_START = frozenset({"redacted_thinking", "container_upload", "fallback", "mcp_tool_listing"})


def is_sendable(kind: str) -> bool:
    """Returns whether the API takes a closed block of this type back as part of an answer (text and thinking aside)."""
    return kind in CALLS or kind in SENDABLE or kind.endswith("_tool_result")


def is_whole_at_start(block: Block) -> bool:
    """Returns whether no delta follows the start of the block, so that nothing of it is missing while it is open."""
    return is_result(block.start) or block.type in WHOLE_AT_START


def has_results(blocks: Iterable[Block]) -> bool:
    """Returns whether the blocks have the result of a call. Errors that `close_half_calls` has made do not count."""
    return any(is_real_result(block.start) for block in blocks)


def without_half_calls(blocks: Sequence[Block], *, keeps_pending: bool = False) -> list[Block]:
    """Returns the blocks without calls that have no result, and without the errors that stand for their results.

    With `keeps_pending`, calls without a result stay, because the API still executes those of a paused answer.
    """
    starts = [block.start for block in blocks]
    answered = answered_calls(starts)
    closed = {start["tool_use_id"] for start in starts if is_made_up(start)} - answered

    def is_half(start: dict[str, Any]) -> bool:
        if is_result(start):
            return start["tool_use_id"] in closed
        call = start.get("id")
        return is_call(start) and (call in closed or not (keeps_pending or call in answered))

    return [block for block in blocks if not is_half(block.start)]


def continued_content(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Returns the partial answer that a continuation sends.

    Incomplete calls, incomplete thinking, thinking at the end, and texts of only white space are left out. If nothing
    is left, the continuation repeats the first call.
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
    """Returns the calls without a result in the last message, if it is an answer: a pause that the client sent back.

    The API executes them, and its answer begins with their results.
    """
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or not isinstance(last.content, list):
        return []
    answered = [block.get("tool_use_id") for block in last.content]
    return [block for block in last.content if block.get("type") in CALLS and block.get("id") not in answered]


def without_pending_calls(messages: Sequence[Message], blocks: Sequence[Block]) -> list[Message]:
    """Returns `messages` without the `pending_calls` whose results are not in `blocks`, the answer."""
    answered = answered_calls(block.start for block in blocks)
    pending = [call for call in pending_calls(messages) if call.get("id") not in answered]
    if not pending:
        return list(messages)
    *before, last = messages
    blocks_left = [one for one in last.content if isinstance(one, dict) and one not in pending]
    kept = without_trailing_thinking(blocks_left)
    return [*before, *([Message("assistant", kept)] if kept else [])]


def close_half_calls(blocks: Sequence[Block], messages: Sequence[Message] = ()) -> list[events.Event]:
    """Returns the events that close half calls and half thoughts, which a continuation cannot go on with.

    An open block gets its stop, and each call without a result gets an error, also each of `pending_calls`. Empty if
    there is nothing to close. An open text block at the end stays open if no error follows it: the continuation goes on
    in it.
    """
    starts = [block.start for block in blocks]
    answered = {start["tool_use_id"] for start in starts if is_result(start)}
    # A continuation that sends nothing of the answer lets the API execute the calls of the request.
    half = pending_calls(messages) if continued_content(blocks) else []
    half = [call for call in (*half, *filter(is_call, starts)) if call.get("id") not in answered]
    closing: list[events.Event] = []
    for index, block in enumerate(blocks):
        is_continued = block.type == "text" and index == len(blocks) - 1 and not half
        if not block.is_closed and not is_continued:
            closing.append(events.BlockStop(index))
    for number, call in enumerate(half, start=len(blocks)):
        closing += [events.BlockStart(number, error_result(call)), events.BlockStop(number)]
    return closing
