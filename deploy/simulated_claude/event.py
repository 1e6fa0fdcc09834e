"""Serialisation of a reply: Anthropic's streaming events, or one message. Pure."""

import hashlib
from collections.abc import Iterator
from itertools import chain

import msgspec

from tailrace.deploy.simulated_claude.answer import Block
from tailrace.deploy.simulated_claude.fault import ERROR_TYPES, Break
from tailrace.deploy.simulated_claude.refusal import error_body
from tailrace.deploy.simulated_claude.reply import Reply

Frame = tuple[bytes, bool]  # the bytes of an event, and whether it is a delta, which is sent at the directed rate

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
GARBAGE = b'event: content_block_delta\ndata: {"type":"content_block_delta","ind\n\n'
MESSAGES = {"429": "Number of requests has exceeded your rate limit", "500": "Internal server error"}
OVERLOADED = "Overloaded"
# The field of a delta that carries its text.
FIELDS = {"thinking": "thinking", "text": "text", "tool_use": "partial_json"}
TYPES = {"thinking": "thinking_delta", "text": "text_delta", "tool_use": "input_json_delta"}


def frames(reply: Reply) -> Iterator[Frame]:
    """Yields the events in order, up to the fault if there is one. The writer performs a `cut` or `stall`."""
    yield message_start(reply), False
    yield PING, False
    blocks = chain.from_iterable(block_frames(i, block, reply.turn) for i, block in enumerate(reply.part.blocks))
    if reply.breaks is None:
        yield from blocks
    else:
        yield from apply_break(blocks, reply.breaks)
        if reply.breaks.kind != "garbage":
            return
    yield message_delta(reply), False
    yield MESSAGE_STOP, False


def apply_break(blocks: Iterator[Frame], breaks: Break) -> Iterator[Frame]:
    """Yields the first `breaks.after` deltas of `blocks`, and then the error or garbage of the fault, if it has one."""
    left = breaks.after
    while left:
        frame = next(blocks)
        left -= frame[1]
        yield frame
    if breaks.kind == "garbage":
        yield GARBAGE, False
        yield from blocks
    elif breaks.kind in ERROR_TYPES:
        yield sse("error", error_body(ERROR_TYPES[breaks.kind], error_message(breaks.kind))), False


def block_frames(index: int, block: Block, turn: str) -> Iterator[Frame]:
    yield content_block_start(index, block, turn), False
    if block.kind == "tool_use":  # the API opens a tool's input with an empty piece
        yield delta(index, {"type": "input_json_delta", "partial_json": ""}), False
    head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":' % (
        index,
        TYPES[block.kind].encode(),
        FIELDS[block.kind].encode(),
    )
    for text in block.deltas:
        yield b"%b%b}}\n\n" % (head, msgspec.json.encode(text)), True
    for number in range(block.cites):
        yield delta(index, {"type": "citations_delta", "citation": citation(number)}), False
    if block.kind == "thinking":
        yield delta(index, {"type": "signature_delta", "signature": signature(block)}), False
    yield event({"type": "content_block_stop", "index": index}), False


def message_start(reply: Reply) -> bytes:
    # One output token, as the API sends here: it is included in the final count.
    return event({"type": "message_start", "message": shell(reply, [], stop_reason=None, output_tokens=1)})


def content_block_start(index: int, block: Block, turn: str) -> bytes:
    empty: dict[str, object]
    match block.kind:
        case "thinking":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            empty = {"type": "text", "text": ""}
        case "tool_use":
            empty = {"type": "tool_use", "id": tool_id(block, turn), "name": block.tool, "input": {}}
    return event({"type": "content_block_start", "index": index, "content_block": empty})


def delta(index: int, change: dict[str, object]) -> bytes:
    return event({"type": "content_block_delta", "index": index, "delta": change})


def message_delta(reply: Reply) -> bytes:
    return event(
        {
            "type": "message_delta",
            "delta": {"stop_reason": reply.stop_reason, "stop_sequence": reply.part.stop_sequence},
            "usage": usage(reply, reply.part.deltas),
            **context_management(reply),
        }
    )


def context_management(reply: Reply) -> dict[str, object]:
    """Returns the report for a request with `context_management`: nothing was cleared."""
    return {"context_management": {"applied_edits": []}} if reply.is_managed else {}


def message(reply: Reply) -> bytes:
    """Returns the body of a response without streaming."""
    content = [content_block(block, reply.turn) for block in reply.part.blocks]
    whole = shell(reply, content, stop_reason=reply.stop_reason, output_tokens=reply.part.deltas)
    return msgspec.json.encode({**whole, "stop_sequence": reply.part.stop_sequence, **context_management(reply)})


def content_block(block: Block, turn: str) -> dict[str, object]:
    match block.kind:
        case "thinking":
            return {"type": "thinking", "thinking": block.content, "signature": signature(block)}
        case "text":
            cited = {"citations": [citation(number) for number in range(block.cites)]} if block.cites else {}
            return {"type": "text", "text": block.content, **cited}
        case "tool_use":
            tool_input = msgspec.Raw(block.content.encode())
            return {"type": "tool_use", "id": tool_id(block, turn), "name": block.tool, "input": tool_input}


def shell(
    reply: Reply, content: list[dict[str, object]], *, stop_reason: str | None, output_tokens: int
) -> dict[str, object]:
    """Returns Anthropic's message object around `content`."""
    return {
        "id": reply.message_id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage(reply, output_tokens),
    }


def usage(reply: Reply, output_tokens: int) -> dict[str, object]:
    return {
        "input_tokens": reply.input_tokens,
        "cache_creation_input_tokens": reply.cached.written,
        "cache_read_input_tokens": reply.cached.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": reply.cached.written - reply.cached.written_1h,
            "ephemeral_1h_input_tokens": reply.cached.written_1h,
        },
        "service_tier": reply.service_tier,
        "output_tokens": output_tokens,
    }


def error_message(kind: str) -> str:
    return MESSAGES.get(kind, OVERLOADED)


def event(body: dict[str, object]) -> bytes:
    return sse(str(body["type"]), msgspec.json.encode(body))


def sse(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def citation(number: int) -> dict[str, object]:
    """Returns a citation of ten characters: of a document, a web page or a file, in turn."""
    cited = {"cited_text": f"{number:09d}."}
    start = 10 * number
    match number % 3:
        case 0:
            place = {
                "document_index": 0,
                "document_title": None,
                "start_char_index": start,
                "end_char_index": start + 10,
            }
            return {"type": "char_location", **cited, **place, "file_id": None}
        case 1:
            page = {"url": f"https://page.example/{number}", "title": f"Page {number}", "encrypted_index": "c2lt"}
            return {"type": "web_search_result_location", **cited, **page}
        case _:
            file = {"document_title": f"{number}.pdf", "file_id": f"file_sim{number}"}
            pages = {"document_index": 1, "start_page_number": 1, "end_page_number": 2}
            return {"type": "page_location", **cited, **file, **pages}


def signature(block: Block) -> str:
    return "sim" + hashlib.sha256(block.content.encode()).hexdigest()


def tool_id(block: Block, turn: str) -> str:
    """Returns an id that differs between the turns of a conversation: OpenAI's Agents SDK drops a repeated one."""
    return "toolu_sim" + hashlib.sha256(f"{turn}{block.tool}{block.content}".encode()).hexdigest()[:20]
