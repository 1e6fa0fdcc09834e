"""A JSON Schema behind the question, for models and backends without structured output. Pure."""

from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.proto.conversation import has_results
from tailrace.proto.entries import Message
from tailrace.proto.schema import schema_of
from tailrace.proto.server_tools import is_call

SCHEMA_PROMPT = (
    "Your whole answer is one JSON value that fits this JSON Schema, and nothing else: "
    "no code fence, no introduction, no explanation.\n{schema}"
)


def move_schema_to_prompt(call: Call) -> Call:
    """Returns `call` with the schema behind the question instead of in the options."""
    schema, options = schema_of(call.options), call.options or {}
    if schema is None:
        return call
    kept = {name: value for name, value in options.items() if name not in ("output_config", "output_format")}
    config = {name: value for name, value in options.get("output_config", {}).items() if name != "format"}
    prompt = SCHEMA_PROMPT.format(schema=msgspec.json.encode(schema).decode())
    call = msgspec.structs.replace(call, options=kept | ({"output_config": config} if config else {}) or None)
    return append_to_question(call, prompt)


def append_to_question(call: Call, text: str) -> Call:
    """Returns `call` with `text` as a paragraph after its last question, or in the last result of a tool.

    A change of the system prompt would cost the thinking of all earlier answers (PROTOCOL R140). What follows the
    results of the client's tools ends an answer that has an open call of a server tool, and the API refuses that.
    """
    *before, last = call.messages
    if last.role == "system":
        # A system message with content stands directly before the answer.
        shorter = append_to_question(msgspec.structs.replace(call, messages=before), text)
        return msgspec.structs.replace(shorter, messages=[*shorter.messages, last])
    if last.role != "user":
        return msgspec.structs.replace(call, messages=[*call.messages, Message("user", text)])
    blocks = _with_text(last.content, text)
    if has_results(last) and isinstance(last.content, list) and has_open_server_call(before):
        *others, result = last.content
        blocks = [*others, {**result, "content": _with_text(result.get("content") or [], text)}]
    question = msgspec.structs.replace(last, content=blocks)
    return msgspec.structs.replace(call, messages=[*before, question])


def _with_text(content: Any, text: str) -> list[Any]:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*blocks, {"type": "text", "text": f"\n\n{text}"}]


def has_open_server_call(messages: list[Message]) -> bool:
    """Returns whether a call of a server tool in `messages` has no result yet."""
    blocks = [block for one in messages if isinstance(one.content, list) for block in one.content]
    results = {block.get("tool_use_id") for block in blocks}
    return any(is_call(block) and block.get("id") not in results for block in blocks)


def append_to_system(system: str | list[dict[str, Any]] | None, text: str) -> str | list[dict[str, Any]]:
    """Returns a system prompt with `text` after it, in the form that `system` has: a text, or a list of blocks."""
    match system:
        case None | "":
            return text
        case str():
            return f"{system}\n\n{text}"
        case _:
            return [*system, {"type": "text", "text": text}]
