"""The response object of OpenAI's Responses API, and its output items, from what a turn's record holds. Pure.

A record says the same whether the log or the database was asked, so the object does too. What was asked is not told
again (`tools`, `instructions`): those fields have the values that say nothing. Source: OpenAI's API reference,
"Responses", as its Python SDK 3.52 types it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from tailrace.gateway.clients.failure import type_of
from tailrace.gateway.clients.openai.annotations import Annotation, of_responses
from tailrace.proto.entries import Failure, Request
from tailrace.proto.records import TurnRecord
from tailrace.proto.usage import Usage

Item = dict[str, Any]
Status = Literal["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"]

PREFIX = "resp_"
ITEM_PREFIXES = {"text": "msg", "thinking": "rs", "tool_use": "fc"}
# What stands before it is none of Claude's signatures, which are base64.
REDACTED = "redacted_thinking:"

# Why Claude stopped, where the protocol calls that incomplete. Anthropic's docs, "Stop reasons".
INCOMPLETE = {
    "max_tokens": "max_output_tokens",
    "max_cost": "max_output_tokens",
    "model_context_window_exceeded": "max_output_tokens",
    "refusal": "content_filter",
}
# The protocol has a closed list of codes; ours stands in `type`.
ERROR_CODES = {"backend_rate_limited": "rate_limit_exceeded", "backend_refused_request": "invalid_prompt"}

_encode = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True):
    """What is the same in every state of a response."""

    turn: str
    session: str = ""
    parent: str | None = None
    model: str = ""
    metadata: dict[str, str] = {}
    created_at: int = 0
    """Unix seconds."""


def head_of(turn: str, request: Request, at: datetime) -> Head:
    return Head(turn, request.session, request.parent, request.model, request.metadata or {}, int(at.timestamp()))


def head_of_record(told: TurnRecord) -> Head:
    return Head(told.turn, told.session, told.parent, told.model, told.metadata, int(told.asked_at.timestamp()))


def response(
    head: Head,
    status: Status,
    output: list[Item],
    *,
    usage: Usage | None = None,
    stop_reason: str | None = None,
    failure: Failure | None = None,
    ended_at: datetime | None = None,
) -> dict[str, Any]:
    """The object. `usage` is told once the turn has ended."""
    why = INCOMPLETE.get(stop_reason or "") if status == "incomplete" else None
    return {
        "id": f"{PREFIX}{head.turn}",
        "object": "response",
        "created_at": head.created_at,
        "status": status,
        "completed_at": int(ended_at.timestamp()) if ended_at is not None and status == "completed" else None,
        "error": None if failure is None else error(failure),
        "incomplete_details": None if why is None else {"reason": why},
        "instructions": None,
        "metadata": head.metadata,
        "model": head.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None if head.parent is None else f"{PREFIX}{head.parent}",
        "conversation": {"id": head.session},
        "tool_choice": "auto",
        "tools": [],
        "usage": None if usage is None else counted(usage),
    }


def response_of(told: TurnRecord) -> dict[str, Any]:
    """The object of a turn as far as it is."""
    status = status_of(told.outcome, told.stop_reason, is_taken=told.attempts > 0)
    items = [shown for index, block in enumerate(told.content) if (shown := item(told.turn, index, block))]
    if items and status not in ("completed", "incomplete"):
        # Of the blocks only the last can be open still, or have been broken off.
        items[-1] |= {"status": "in_progress" if status == "in_progress" else "incomplete"}
    return response(
        head_of_record(told),
        status,
        items,
        usage=told.usage if told.outcome != "running" else None,
        stop_reason=told.stop_reason,
        failure=told.error,
        ended_at=told.ended_at,
    )


def status_of(outcome: str, stop_reason: str | None, *, is_taken: bool = True) -> Status:
    match outcome:
        case "running":
            return "in_progress" if is_taken else "queued"
        case "completed":
            return "incomplete" if stop_reason in INCOMPLETE else "completed"
        case "cancelled":
            return "cancelled"
        case _:
            return "failed"


def item(turn: str, index: int, block: dict[str, Any]) -> Item | None:
    """The output item of a whole block, the `index`th of its answer; None for one that the protocol has no word for."""
    match block:
        case {"type": "text", "text": text}:
            return message(turn, index, "completed", text, of_responses(block.get("citations"), len(text)))
        case {"type": "thinking", "thinking": thought}:
            return reasoning(turn, index, "completed", thought, block.get("signature", ""))
        case {"type": "redacted_thinking", "data": hidden}:
            return reasoning(turn, index, "completed", "", f"{REDACTED}{hidden}")
        case {"type": "tool_use", "id": call, "name": name, "input": given}:
            return function_call(turn, index, "completed", call, name, _encode(given).decode())
        case _:
            return None


def item_id(kind: str, turn: str, index: int) -> str:
    """What the item of that block is called, in the stream and ever after."""
    return f"{ITEM_PREFIXES[kind]}_{turn}_{index}"


def message(turn: str, index: int, status: str, text: str | None, annotations: Sequence[Annotation] = ()) -> Item:
    """No text: it has only begun."""
    content = [] if text is None else [output_text(text, annotations)]
    return {
        "id": item_id("text", turn, index),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def output_text(text: str, annotations: Sequence[Annotation] = ()) -> Item:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def reasoning(turn: str, index: int, status: str, thought: str, encrypted: str) -> Item:
    """What Claude shows of its thinking is a summary; its signature is what has to be given back with it."""
    return {
        "id": item_id("thinking", turn, index),
        "type": "reasoning",
        "status": status,
        "summary": [summary_text(thought)] if thought else [],
        "encrypted_content": encrypted or None,
    }


def summary_text(thought: str) -> Item:
    return {"type": "summary_text", "text": thought}


def function_call(turn: str, index: int, status: str, call: str, name: str, arguments: str) -> Item:
    return {
        "id": item_id("tool_use", turn, index),
        "type": "function_call",
        "status": status,
        "call_id": call,
        "name": name,
        "arguments": arguments,
    }


def error(failure: Failure) -> dict[str, Any]:
    return {
        "code": ERROR_CODES.get(failure.code, "server_error"),
        "message": failure.message,
        "type": type_of(failure),
    }


def counted(usage: Usage) -> dict[str, Any]:
    """OpenAI's input holds what was cached; how much of the output was thought, Claude does not say."""
    written, read = usage.cache_creation_input_tokens, usage.cache_read_input_tokens
    input_tokens = usage.input_tokens + written + read
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + usage.output_tokens,
    }
