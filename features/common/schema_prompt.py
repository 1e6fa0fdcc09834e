"""A JSON Schema behind the question, for models and backends without structured output. Pure."""

from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.proto.entries import Message
from tailrace.proto.schema import schema_of

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
    """Returns `call` with `text` as a paragraph after its last message.

    A change of the system prompt would cost the thinking of all earlier answers (PROTOCOL R140).
    """
    *before, last = call.messages
    if last.role != "user":
        return msgspec.structs.replace(call, messages=[*call.messages, Message("user", text)])
    blocks = [{"type": "text", "text": last.content}] if isinstance(last.content, str) else last.content
    question = msgspec.structs.replace(last, content=[*blocks, {"type": "text", "text": f"\n\n{text}"}])
    return msgspec.structs.replace(call, messages=[*before, question])


def append_to_system(system: str | list[dict[str, Any]] | None, text: str) -> str | list[dict[str, Any]]:
    """Returns a system prompt with `text` after it, in the form that `system` has: a text, or a list of blocks."""
    match system:
        case None | "":
            return text
        case str():
            return f"{system}\n\n{text}"
        case _:
            return [*system, {"type": "text", "text": text}]
