"""The object `chat.completion`: a whole turn in OpenAI's protocol, and the fields that it shares with its chunks."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from tailrace.proto import odd_json
from tailrace.proto.fold import PARTIAL
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.proto.server_tools import is_executed_tool
from tailrace.proto.usage import Usage
from tailrace.protocols.common.answer_warnings import Shown, types_of, warnings_field, warnings_of
from tailrace.protocols.common.stop_reasons import is_whole
from tailrace.protocols.openai.annotations import TextSpan, chat_annotations, text_spans
from tailrace.protocols.openai.common import thinking_tokens

NEVER = datetime.fromtimestamp(0, UTC)
# OpenAI's finish reasons for Anthropic's stop reasons.
FINISH = {"tool_use": "tool_calls", "refusal": "content_filter"}
# The parts of an answer that a chat completion can show.
SHOWN = Shown(
    frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    has_citation=lambda citation: bool(chat_annotations((TextSpan(citations=(citation,)),))),
    is_shown=is_executed_tool,
)

_encode = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True):
    """The fields at the start of the object and of each chunk."""

    turn: TurnId
    model: str = ""
    asked_at: datetime = NEVER

    def fields(self, kind: str) -> dict[str, Any]:
        created = int(self.asked_at.timestamp())
        return {"id": f"chatcmpl-{self.turn}", "object": kind, "created": created, "model": self.model}


def head_of(record: TurnRecord) -> Head:
    return Head(record.turn, record.answered_by or record.model, record.asked_at)


def render_completion(record: TurnRecord) -> bytes:
    """Returns the JSON body for a request without streaming."""
    choice = {
        "index": 0,
        "message": message_of(record),
        "logprobs": None,
        "finish_reason": finish_reason(record.stop_reason),
    }
    usage = usage_of(record.usage, record.envelope)
    ids = {"session_id": record.session, "project_id": record.project}
    warnings = warnings_field(warnings_of(record, types_of(record.content, SHOWN), record.turn))
    body = {**head_of(record).fields("chat.completion"), "choices": [choice], "usage": usage, **ids, **warnings}
    return odd_json.encode(body)


def message_of(record: TurnRecord) -> dict[str, Any]:
    """Returns the message. `content` is null if there are only tool calls; other empty fields are left out."""
    reasoning = "".join(block["thinking"] for block in record.content if block["type"] == "thinking")
    calls = [call for block in record.content if (call := _tool_call(block))]
    message: dict[str, Any] = {"role": "assistant", "content": record.text or (None if calls else ""), "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    if annotations := chat_annotations(text_spans(record.content)):
        message["annotations"] = annotations
    return message


def finish_reason(stop_reason: str | None) -> str:
    """Returns OpenAI's finish reason for a stop reason of Anthropic.

    Any answer that is not whole gets `length`: the set is closed, and no other value says so.
    """
    return FINISH.get(stop_reason or "", "stop" if is_whole(stop_reason) else "length")


def usage_of(usage: Usage, envelope: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the usage of all model calls. OpenAI counts cache reads and writes as part of the prompt."""
    prompt = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    reasoning = thinking_tokens(envelope)
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_input_tokens,
            "cache_write_tokens": usage.cache_creation_input_tokens,
        },
        **details,
    }


def as_tool_use(block: dict[str, Any]) -> dict[str, Any]:
    """Returns `block`. A call that Claude Code has executed becomes a tool call, as in other servers for Claude."""
    if not is_executed_tool(block):
        return block
    return {**block, "type": "tool_use", "name": str(block.get("name", "")).lower()}


def _tool_call(block: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the call; None for other blocks, and for a call without id or name, which a stream omits, too."""
    match as_tool_use(block):
        case {"type": "tool_use", "id": str(call), "name": str(name), "input": given}:
            arguments = block.get(PARTIAL, odd_json.encode(given).decode())
            return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}
        case _:
            return None
