"""The chunks of one content block in AI SDK's UI message stream.

Source: `ai` 7, ui-message-chunks.ts. Its schema does not accept null, so absent fields are left out.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.block_start import further_fields, split_block, split_start
from tailrace.gateway.clients.growing_text import GrowingText
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import is_deeper
from tailrace.proto.fold import INPUT_LEVELS_MAX, decode_input
from tailrace.protocols.ai_sdk.tool_result import decode_output

Chunk = dict[str, Any]
Calls = frozenset[str] | None
"""The ids of the tool calls that may get a result. None: all of them, as the answer goes on with an earlier one."""

INPUT_INVALID = "the input of this call is not a JSON object, or is nested too deeply"


class OpenPart(msgspec.Struct, frozen=True):
    """A block that has begun and not ended."""

    id: str
    block: dict[str, Any]
    """The `content_block` of its `content_block_start`."""
    input: GrowingText = GrowingText()
    """The input of a tool call so far, as JSON text."""
    signature: str = ""
    sources: int = 0
    is_shown: bool = False
    """Whether the whole block was shown when it began."""
    is_stopped: bool = False
    """Whether the block has ended. Its last chunk waits: see `may_be_cut`."""


def open_part(index: int, block: dict[str, Any], calls: Calls) -> tuple[list[Chunk], OpenPart]:
    """Returns the chunks that begin a part of the message, and the part.

    A block without a chunk of its own becomes a data part, when it ends.
    """
    part = OpenPart(str(index), block)
    match block:
        case {"type": "text" | "thinking" as kind}:
            _, deltas = split_start(block)
            chunks: list[Chunk] = [{"type": "text-start" if kind == "text" else "reasoning-start", "id": part.id}]
            for delta in deltas:
                more, part = add_delta(part, delta)
                chunks += more
            return chunks, part
        case {"type": "redacted_thinking", "data": str(hidden)}:
            return [{"type": "reasoning-start", "id": part.id, **_metadata(redactedData=hidden)}], part
        case {"type": str(kind), "id": str(), "name": str()} if events.is_tool_use(kind):
            return [{"type": "tool-input-start", **_tool_call(block)}], part
        case {"tool_use_id": str(call), "content": content} if calls is None or call in calls:
            # The result of a tool that the provider runs. The package `ai` raises an error for a result without a call.
            is_error = block.get("is_error") is True or _is_error(content)
            dynamic = {"dynamic": True} if block.get("type") == "mcp_tool_result" else {}
            return [tool_output(call, content, is_error=is_error, is_provider=True) | dynamic], replace(
                part, is_shown=True
            )
        case _:
            return [], part


def add_delta(part: OpenPart, delta: events.Delta) -> tuple[list[Chunk], OpenPart]:
    """Adds a delta. Returns no chunks for a delta that does not fit the block, like the fold."""
    if not events.fits_block(type(delta), str(part.block.get("type"))):
        return [], part
    match delta:
        case events.TextDelta(text):
            return [{"type": "text-delta", "id": part.id, "delta": text}], part
        case events.ThinkingDelta(text):
            return [{"type": "reasoning-delta", "id": part.id, "delta": text}], part
        case events.InputJsonDelta(text):
            chunk = {"type": "tool-input-delta", "toolCallId": part.block.get("id"), "inputTextDelta": text}
            return [chunk] if "id" in part.block else [], replace(part, input=part.input.plus(text))
        case events.SignatureDelta(signature):
            return [], replace(part, signature=signature)
        case events.CitationsDelta(citation):
            number = part.sources + 1
            return [source_chunk(f"{part.id}-{number}", citation)], replace(part, sources=number)


def is_call(part: OpenPart) -> bool:
    """Returns whether `part` is a tool call."""
    return events.is_tool_use(str(part.block.get("type")))


def may_be_cut(part: OpenPart) -> bool:
    """Returns whether `part` is a call of a client's tool with an empty or invalid input.

    What follows its block shows whether the call has no arguments, or the answer was cut within them.
    """
    return part.block.get("type") == "tool_use" and not any(chunk["input"] for chunk in close_part(part))


def close_part(part: OpenPart) -> list[Chunk]:
    """Returns the chunks that end `part`; none for a part that needs no end."""
    match part.block:
        case {"type": "text"}:
            return [{"type": "text-end", "id": part.id, **_metadata(**further_fields(part.block))}]
        case {"type": "thinking"}:
            # The client has to send the signature back with the thinking.
            signature = {"signature": part.signature} if part.signature else {}
            return [{"type": "reasoning-end", "id": part.id, **_metadata(**signature, **further_fields(part.block))}]
        case {"type": "redacted_thinking", "data": str()}:
            return [{"type": "reasoning-end", "id": part.id}]
        case {"type": str(kind), "id": str(), "name": str()} if events.is_tool_use(kind):
            return [_tool_input(part)]
        case {"type": str(kind)} if not (part.is_shown or events.is_tool_use(kind)):
            # Without an id, because `ai` replaces a data part of the same type and id, also one of an earlier turn.
            return [{"type": f"data-{kind}", "data": part.block}]
        case _:
            return []


def add_other_delta(part: OpenPart, delta: dict[str, Any]) -> OpenPart | None:
    """Adds a delta of a type without a Struct, such as `compaction_delta`, to a part whose end shows it.

    Returns None for another part: a tool's call or result, and encrypted thinking.
    """
    kind = str(part.block.get("type"))
    if part.is_shown or kind == "redacted_thinking" or events.is_tool_use(kind):
        return None
    return replace(part, block=events.merge_fields(part.block, delta))


def content_chunks(blocks: Iterable[dict[str, Any]], calls: Calls = frozenset()) -> list[Chunk]:
    """Returns the chunks of whole blocks, each with one delta."""
    chunks: list[Chunk] = []
    for index, block in enumerate(blocks):
        start, deltas = split_block(block)
        more, part = open_part(index, start, calls)
        calls = None if calls is None else calls | call_ids(block)
        chunks += more
        for delta in deltas:
            more, part = add_delta(part, delta)
            chunks += more
        chunks += close_part(part)
    return chunks


def call_ids(block: dict[str, Any]) -> set[str]:
    """Returns the id of a tool call; an empty set for other blocks."""
    match block:
        case {"type": str(kind), "id": str(call), "name": str()} if events.is_tool_use(kind):
            return {call}
        case _:
            return set()


def tool_output(call: str, content: object, *, is_error: bool, is_provider: bool = False) -> Chunk:
    """Returns the chunk of a tool's result. `is_provider`: the provider ran the tool, not the client."""
    executed = {"providerExecuted": True} if is_provider else {}
    output = content if is_provider else decode_output(content)
    if is_error:
        text = output if isinstance(output, str) else msgspec.json.encode(output).decode()
        return {"type": "tool-output-error", "toolCallId": call, "errorText": text, **executed}
    return {"type": "tool-output-available", "toolCallId": call, "output": output, **executed}


def source_chunk(name: str, citation: dict[str, Any]) -> Chunk:
    """Returns the chunk of a citation, which is included as provider metadata for clients that show the quotation."""
    chunk: Chunk
    match citation:
        case {"url": str(url)}:
            title = {"title": citation["title"]} if isinstance(citation.get("title"), str) else {}
            chunk = {"type": "source-url", "sourceId": name, "url": url, **title}
        case _:
            kind = "application/pdf" if citation.get("type") == "page_location" else "text/plain"
            title_text = str(citation.get("document_title") or citation.get("title") or "Document")
            chunk = {"type": "source-document", "sourceId": name, "mediaType": kind, "title": title_text}
    return {**chunk, **_metadata(**citation)}


def _tool_call(block: dict[str, Any]) -> Chunk:
    executed = {} if block["type"] == "tool_use" else {"providerExecuted": True}
    # The tools of an MCP server are not known to the page, as in AI SDK's own provider for Anthropic.
    dynamic = {"dynamic": True} if block["type"] == "mcp_tool_use" else {}
    return {"toolCallId": block["id"], "toolName": block["name"], **executed, **dynamic}


def _tool_input(part: OpenPart) -> Chunk:
    text = part.input.text()
    try:
        value = decode_input(text) if text else part.block.get("input", {})
        is_valid = not is_deeper(value, INPUT_LEVELS_MAX)
    except DECODE_ERRORS:
        is_valid = False
    if is_valid:
        return {"type": "tool-input-available", **_tool_call(part.block), "input": value}
    return {"type": "tool-input-error", **_tool_call(part.block), "input": {}, "errorText": INPUT_INVALID}


def _is_error(content: object) -> bool:
    return isinstance(content, dict) and str(content.get("type")).endswith("_error")


def _metadata(**fields: object) -> dict[str, Any]:
    return {"providerMetadata": {"anthropic": fields}} if fields else {}
