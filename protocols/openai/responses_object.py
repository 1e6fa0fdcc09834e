"""The response object of OpenAI's Responses API and its output items, built from a turn's record.

Consecutive text blocks are one message, because clients take the last message of an answer for its whole text (OpenAI's
Agents SDK), and Claude begins a block at each citation. A call of a server tool and its result are one item, too.

A record is the same from the log and from the database, and so is the object. It does not repeat the request's
`tools` and `instructions`: those fields have their empty values. Source: OpenAI's API reference, "Responses", in the
types of its Python SDK 3.52.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from tailrace.proto import odd_json
from tailrace.proto.entries import End, Failure, Request
from tailrace.proto.fold import PARTIAL
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.proto.usage import Usage
from tailrace.protocols.common.answer_warnings import Shown, warnings_field, warnings_of
from tailrace.protocols.common.earlier_steps import goes_on
from tailrace.protocols.common.failure import LOST, error_type
from tailrace.protocols.common.history_items import REDACTED, SIGNED
from tailrace.protocols.common.stop_reasons import is_whole
from tailrace.protocols.openai import builtin_calls
from tailrace.protocols.openai.annotations import Annotation, TextSpan, responses_annotations
from tailrace.protocols.openai.builtin_calls import kind_of
from tailrace.protocols.openai.common import thinking_tokens

Item = dict[str, Any]
Status = Literal["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"]

PREFIX = "resp_"
MESSAGE_PREFIX = "msg"
ITEM_PREFIXES = {"text": MESSAGE_PREFIX, "thinking": "rs", "redacted_thinking": "rs", "tool_use": "fc"}
# The id of an output item contains the turn's id.
ITEM_ID = re.compile(
    rf"(?:{'|'.join(sorted({*ITEM_PREFIXES.values(), *builtin_calls.ITEM_PREFIXES}))})_(.+)_(\d{{1,9}})"
)

# OpenAI's reason for an answer that is not whole. Clients take a missing reason for `completed` (AI SDK's provider for
# OpenAI). Of OpenAI's reasons, only `max_output_tokens` asks the client to continue.
CUT_REASON = "max_output_tokens"
INCOMPLETE = {"refusal": "content_filter"}
# OpenAI has no reason for a cancelled response: this one is Tailrace's.
CANCELLED = "cancelled"
# OpenAI's reason for a response that `response.steer` has ended. `next_response_id` is Tailrace's.
STEERED = "steered"
# The parts of an answer that a response can show.
SHOWN = Shown(
    frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    has_citation=lambda citation: bool(responses_annotations((TextSpan(citations=(citation,)),))),
    is_shown=builtin_calls.is_shown,
)
# The protocol has a closed list of codes; Anthropic's error type is in `type`.
ERROR_CODES = {"backend_rate_limited": "rate_limit_exceeded", "backend_refused_request": "invalid_prompt"}

_encode = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True):
    """The fields that do not change while a response is generated."""

    turn: str
    session: str = ""
    parent: str | None = None
    model: str = ""
    metadata: dict[str, str] = {}
    created_at: int = 0
    """Unix seconds."""
    goes_on: bool = False
    """Whether the answer may have results of an earlier one's calls."""


def head_of(turn: str, asked: Request | TurnRecord, at: datetime) -> Head:
    """Returns the fields of a turn that was asked at the time `at`."""
    created_at = int(at.timestamp())
    return Head(turn, asked.session, asked.parent, asked.model, asked.metadata or {}, created_at, goes_on(asked))


def build_response(
    head: Head,
    status: Status,
    output: list[Item],
    ended: End | TurnRecord | None = None,
    ended_at: datetime | None = None,
    left_out: Iterable[str] = (),
) -> dict[str, Any]:
    """Returns the response object. `ended` is None before the turn's end.

    `left_out`: the types of blocks, citations and deltas that this protocol cannot show.
    """
    reason = None
    successor = ended.successor if isinstance(ended, End) else None
    if successor is not None:
        status, reason = "incomplete", STEERED
    elif ended is not None and status == "incomplete":
        reason = INCOMPLETE.get(ended.stop_reason or "", CUT_REASON)
    elif status == "cancelled":
        reason = CANCELLED
    failure = None if ended is None else ended.error or (LOST if status == "failed" else None)
    return {
        "id": f"{PREFIX}{head.turn}",
        "object": "response",
        "created_at": head.created_at,
        "status": status,
        "completed_at": int(ended_at.timestamp()) if ended_at is not None and status == "completed" else None,
        "error": None if failure is None else error_object(failure),
        "incomplete_details": None if reason is None else {"reason": reason},
        "instructions": None,
        "metadata": head.metadata,
        "model": (ended.answered_by if ended is not None else None) or head.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None if head.parent is None else f"{PREFIX}{head.parent}",
        "conversation": {"id": head.session},
        "tool_choice": "auto",
        "tools": [],
        "usage": None if ended is None else usage_object(ended.usage, ended.envelope),
        **({} if successor is None else {"next_response_id": f"{PREFIX}{successor}"}),
        **({} if ended is None else transformations_field(ended.envelope)),
        **({} if ended is None else warnings_field(warnings_of(ended, left_out, TurnId(head.turn)))),
    }


def status_of(outcome: str, stop_reason: str | None) -> Status:
    """Returns the status of a response that has ended in OpenAI's terms."""
    match outcome:
        case "completed":
            return "completed" if is_whole(stop_reason) else "incomplete"
        case "cancelled":
            return "cancelled"
        case _:
            return "failed"


def message_item(turn: str, index: int, text: str, spans: Iterable[TextSpan]) -> Item:
    """Returns the item of text blocks, of which the first is the answer's block number `index`."""
    part = output_text(text, responses_annotations(spans))
    message = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return {"id": f"{MESSAGE_PREFIX}_{turn}_{index}", **message}


def block_item(turn: str, index: int, block: Mapping[str, Any]) -> Item | None:
    """Returns the item of the answer's block number `index`, if it is thinking or a function call; otherwise None."""
    item: Item
    match block:
        case {"type": "thinking", "thinking": thinking}:
            item = _reasoning(thinking, f"{SIGNED}{signature}" if (signature := block.get("signature")) else None)
        case {"type": "redacted_thinking", "data": hidden}:
            item = _reasoning("", f"{REDACTED}{hidden}")
        case {"type": "tool_use", "id": str(call), "name": str(name), **rest}:
            arguments, status = rest.get(PARTIAL), "incomplete"
            if not isinstance(arguments, str):
                arguments, status = odd_json.encode(rest.get("input", {})).decode(), "completed"
            item = {"type": "function_call", "status": status, "call_id": call, "name": name, "arguments": arguments}
        case _:
            return None
    return {"id": item_id(block, turn, index), **item}


def _reasoning(thinking: str, encrypted: str | None) -> Item:
    """Returns a reasoning item: Claude's visible thinking as the summary, its signed form as the encrypted content."""
    summary = [summary_text(thinking)] if thinking else []
    return {"type": "reasoning", "status": "completed", "summary": summary, "encrypted_content": encrypted}


def item_id(block: Mapping[str, Any], turn: str, index: int) -> str:
    """Returns the id of the item of a block, the same in the stream and in the stored response."""
    kind = kind_of(block)
    return f"{ITEM_PREFIXES[block['type']] if kind is None else kind.prefix}_{turn}_{index}"


def output_text(text: str, annotations: Sequence[Annotation] = ()) -> Item:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def summary_text(text: str) -> Item:
    return {"type": "summary_text", "text": text}


def error_object(failure: Failure) -> dict[str, Any]:
    """Returns the failure as OpenAI's error; `server_error` for codes that OpenAI does not have."""
    return {
        "code": ERROR_CODES.get(failure.code, "server_error"),
        "message": failure.message,
        "type": error_type(failure),
    }


def transformations_field(envelope: dict[str, Any] | None) -> dict[str, Any]:
    """Returns Anthropic's field `input_transformations`, the thinking that the model did not get; nothing without it.

    OpenAI's protocol has no such field. A client that asks for it has named the beta to Anthropic's protocol.
    """
    match envelope:
        case {"message": {"input_transformations": list(found)}}:
            return {"input_transformations": found}
    return {}


def usage_object(usage: Usage, envelope: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the usage. OpenAI counts cached tokens as input."""
    written, read = usage.cache_creation_input_tokens, usage.cache_read_input_tokens
    input_tokens = usage.input_tokens + written + read
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": thinking_tokens(envelope) or 0},
        "total_tokens": input_tokens + usage.output_tokens,
    }
