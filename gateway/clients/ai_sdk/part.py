"""One content block as chunks of AI SDK's UI message stream: opened, added to, closed. It knows no turn.

Shapes: `ai` 7, ui-message-chunks.ts. Its schema takes no null: what there is not is left out.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.ai_sdk.tool_result import shown
from tailrace.gateway.clients.growing_text import Pieces
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import is_deeper
from tailrace.proto.fold import INPUT_LEVELS_MAX

Chunk = dict[str, Any]

NOT_WHOLE = "the input of this call broke off"


class Part(msgspec.Struct, frozen=True):
    """A block that is open."""

    id: str
    block: dict[str, Any]
    """The `content_block` as it was opened."""
    input: Pieces = Pieces()
    """What there is of a call's input."""
    signature: str = ""
    sources: int = 0


def opened(index: int, block: dict[str, Any]) -> tuple[list[Chunk], Part]:
    part = Part(str(index), block)
    match block:
        case {"type": "text"}:
            text = str(block.get("text") or "")
            said = [{"type": "text-delta", "id": part.id, "delta": text}] if text else []
            return [{"type": "text-start", "id": part.id}, *said], part
        case {"type": "thinking"}:
            return [{"type": "reasoning-start", "id": part.id}], part
        case {"type": "redacted_thinking", "data": str(hidden)}:
            return [{"type": "reasoning-start", "id": part.id, **_metadata(redactedData=hidden)}], part
        case {"type": "tool_use" | "server_tool_use", "id": str(), "name": str()}:
            return [{"type": "tool-input-start", **_call(block)}], part
        case {"tool_use_id": str(call), "content": content}:
            # What a tool of the model's own side has brought.
            return [output(call, content, is_error=_is_failure(content), is_ours=False)], part
        case _:
            return [], part


def added(part: Part, delta: events.Delta) -> tuple[list[Chunk], Part]:
    """What does not fit the block adds nothing, as in a fold."""
    if not events.fits_block(delta, str(part.block.get("type"))):
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
            return [], replace(part, signature=part.signature + signature)
        case events.CitationsDelta(citation):
            number = part.sources + 1
            return [source(f"{part.id}-{number}", citation)], replace(part, sources=number)


def closed(part: Part) -> list[Chunk]:
    match part.block:
        case {"type": "text"}:
            return [{"type": "text-end", "id": part.id}]
        case {"type": "thinking"}:
            # The model wants it back with the thought.
            signed = _metadata(signature=part.signature) if part.signature else {}
            return [{"type": "reasoning-end", "id": part.id, **signed}]
        case {"type": "redacted_thinking", "data": str()}:
            return [{"type": "reasoning-end", "id": part.id}]
        case {"type": "tool_use" | "server_tool_use", "id": str(), "name": str()}:
            return [_called(part)]
        case _:
            return []


def whole(index: int, content: dict[str, Any]) -> list[Chunk]:
    """A block that is not streamed, by the same three steps."""
    start, deltas = _apart(content)
    chunks, part = opened(index, start)
    for delta in deltas:
        more, part = added(part, delta)
        chunks += more
    return chunks + closed(part)


def broken(called: Chunk) -> Chunk:
    """A call whose input broke off: nobody may take it for one without an input."""
    return {**called, "type": "tool-input-error", "input": {}, "errorText": NOT_WHOLE}


def output(call: str, content: object, *, is_error: bool, is_ours: bool = True) -> Chunk:
    """The result of a tool's call; `is_ours`: the client's own, or else of the model's side."""
    executed = {} if is_ours else {"providerExecuted": True}
    told = shown(content) if is_ours else content
    if is_error:
        text = told if isinstance(told, str) else msgspec.json.encode(told).decode()
        return {"type": "tool-output-error", "toolCallId": call, "errorText": text, **executed}
    return {"type": "tool-output-available", "toolCallId": call, "output": told, **executed}


def source(name: str, citation: dict[str, Any]) -> Chunk:
    """Where a text has something from. The citation itself goes with it, for who shows what was quoted."""
    chunk: Chunk
    match citation:
        case {"url": str(url)}:
            title = {"title": citation["title"]} if isinstance(citation.get("title"), str) else {}
            chunk = {"type": "source-url", "sourceId": name, "url": url, **title}
        case _:
            kind = "application/pdf" if citation.get("type") == "page_location" else "text/plain"
            named = str(citation.get("document_title") or citation.get("title") or "Document")
            chunk = {"type": "source-document", "sourceId": name, "mediaType": kind, "title": named}
    return {**chunk, **_metadata(**citation)}


def _call(block: dict[str, Any]) -> Chunk:
    executed = {"providerExecuted": True} if block["type"] == "server_tool_use" else {}
    return {"toolCallId": block["id"], "toolName": block["name"], **executed}


def _called(part: Part) -> Chunk:
    text, given = part.input.text(), part.block.get("input", {})
    try:
        told = msgspec.json.decode(text) if text else given
        is_whole = not is_deeper(told, INPUT_LEVELS_MAX)
    except DECODE_ERRORS:
        told, is_whole = {}, False
    called = {"type": "tool-input-available", **_call(part.block), "input": told}
    return called if is_whole else broken(called)


def _is_failure(content: object) -> bool:
    return isinstance(content, dict) and str(content.get("type")).endswith("_error")


def _metadata(**said: object) -> dict[str, Any]:
    return {"providerMetadata": {"anthropic": said}}


def _apart(content: dict[str, Any]) -> tuple[dict[str, Any], list[events.Delta]]:
    """A block as it would have been opened, and its deltas."""
    match content:
        case {"type": "text", "text": str(text)}:
            # A client may have said it, with anything there.
            cited = content.get("citations")
            said: list[events.Delta] = [events.TextDelta(text)] if text else []
            quoted = [one for one in cited if isinstance(one, dict)] if isinstance(cited, list) else []
            return {"type": "text", "text": ""}, said + [events.CitationsDelta(one) for one in quoted]
        case {"type": "thinking", "thinking": str(text)}:
            thought: list[events.Delta] = [events.ThinkingDelta(text)] if text else []
            return {"type": "thinking"}, [*thought, events.SignatureDelta(str(content.get("signature") or ""))]
        case {"type": "tool_use" | "server_tool_use", "input": given}:
            return content, [events.InputJsonDelta(msgspec.json.encode(given).decode())]
        case _:
            return content, []
