"""Serialisation of a reply: Anthropic's streaming events, or one message. Pure."""

import hashlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from tailrace.deploy.simulated_claude import server_tool
from tailrace.deploy.simulated_claude.answer import Block
from tailrace.deploy.simulated_claude.case import Lines, event_type
from tailrace.deploy.simulated_claude.fault import ERROR_TYPES, Break
from tailrace.deploy.simulated_claude.refusal import error_body
from tailrace.deploy.simulated_claude.reply import Reply
from tailrace.deploy.simulated_claude.server_tool import EXPIRES_AT, ServerCall
from tailrace.deploy.simulated_claude.thinking import Signer, mark_call, parse


class Frame(NamedTuple):
    """The bytes of an event."""

    data: bytes
    is_delta: bool = False
    """Whether the event is sent at the directed rate, and counts as a token."""
    result: dict[str, Any] | None = None
    """The result of a server tool in the event."""
    call: int = 0
    """The number of that tool's call."""


PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
GARBAGE = b'event: content_block_delta\ndata: {"type":"content_block_delta","ind\n\n'
INVALID_KEY = "invalid x-api-key"
OVERLOADED = "Overloaded"
# continuedev/continue#5499 quotes the message.
NO_CREDIT = (
    "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase "
    "credits."
)
MESSAGES = {
    "401": INVALID_KEY,
    # anthropics/claude-code#51610 quotes the message.
    "403": "Permission denied",
    "429": "Number of requests has exceeded your rate limit",
    "500": "Internal server error",
    "credit": NO_CREDIT,
}
REFUSAL = {"type": "refusal", "category": "bio", "explanation": "The simulated Claude refuses."}
# The field of a delta that carries its text.
FIELDS = {"thinking": "thinking", "text": "text", "tool_use": "partial_json", "server_call": "partial_json"}
TYPES = {
    "thinking": "thinking_delta",
    "text": "text_delta",
    "tool_use": "input_json_delta",
    "server_call": "input_json_delta",
}


def frames(reply: Reply) -> Iterator[Frame]:
    """Yields the events in order, up to the fault if there is one. The writer performs a `cut` or `stall`."""
    if reply.lines is not None:
        played = case_frames(reply.lines)
        yield from played if reply.breaks is None else apply_break(played, reply.breaks)
        return
    yield Frame(message_start(reply))
    yield Frame(PING)
    blocks = chain.from_iterable(block_frames(i, block, reply) for i, block in enumerate(reply.part.blocks))
    if reply.breaks is None:
        yield from blocks
    else:
        yield from apply_break(blocks, reply.breaks)
        if reply.breaks.kind != "garbage":
            return
    yield Frame(message_delta(reply))
    yield Frame(MESSAGE_STOP)


def case_frames(lines: Lines) -> Iterator[Frame]:
    for line in lines:
        kind = event_type(line)
        yield Frame(sse(kind, line), is_delta=kind == "content_block_delta")


def apply_break(blocks: Iterator[Frame], breaks: Break) -> Iterator[Frame]:
    """Yields the first `breaks.after` deltas of `blocks`, and then the error or garbage of the fault, if any."""
    left = breaks.after
    while left:
        frame = next(blocks)
        left -= frame.is_delta
        yield frame
    if breaks.kind == "garbage":
        yield Frame(GARBAGE)
        yield from blocks
    elif breaks.kind in ERROR_TYPES:
        yield Frame(sse("error", error_body(ERROR_TYPES[breaks.kind], error_message(breaks.kind))))


def block_frames(index: int, block: Block, reply: Reply) -> Iterator[Frame]:
    if block.kind == "server_result" and block.server is not None:
        whole = content_block(index, reply)
        yield Frame(content_block_start(index, whole), is_delta=True, result=whole, call=block.server.number)
        yield Frame(event({"type": "content_block_stop", "index": index}))
        return
    yield Frame(content_block_start(index, empty_block(index, reply)))
    if block.kind in ("tool_use", "server_call"):  # the API opens a tool's input with an empty piece
        yield Frame(delta(index, {"type": "input_json_delta", "partial_json": ""}))
    head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":' % (
        index,
        TYPES[block.kind].encode(),
        FIELDS[block.kind].encode(),
    )
    for text in block.deltas:
        yield Frame(b"%b%b}}\n\n" % (head, msgspec.json.encode(text)), is_delta=True)
    for number in range(block.cites):
        yield Frame(delta(index, {"type": "citations_delta", "citation": citation(number)}))
    if block.kind == "thinking":
        yield Frame(delta(index, {"type": "signature_delta", "signature": signature(index, reply)}))
    if not is_left_open(index, reply):
        yield Frame(event({"type": "content_block_stop", "index": index}))


def message_start(reply: Reply) -> bytes:
    # One output token, as in the API: the final count includes it.
    return event({"type": "message_start", "message": shell(reply, [], stop_reason=None, output_tokens=1)})


def content_block_start(index: int, block: dict[str, Any]) -> bytes:
    return event({"type": "content_block_start", "index": index, "content_block": block})


def is_left_open(index: int, reply: Reply) -> bool:
    """Returns whether `max_tokens` has cut the input of this call, which then has no `content_block_stop`.

    As in the SDK's fixture tests/lib/streaming/fixtures/incomplete_partial_json_response.txt.
    """
    is_call = reply.part.blocks[index].kind in ("tool_use", "server_call")
    return is_call and is_cut(index, reply)


def is_cut(index: int, reply: Reply) -> bool:
    """Returns whether `max_tokens` has cut this block."""
    return reply.part.is_last_open and index == len(reply.part.blocks) - 1


def empty_block(index: int, reply: Reply) -> dict[str, Any]:
    """Returns the block before its deltas."""
    match reply.part.blocks[index].kind:
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            return {"type": "text", "text": ""}
        case _:
            return {**content_block(index, reply), "input": {}}


def delta(index: int, change: dict[str, object]) -> bytes:
    return event({"type": "content_block_delta", "index": index, "delta": change})


def message_delta(reply: Reply) -> bytes:
    return event(
        {
            "type": "message_delta",
            "delta": {
                "stop_reason": reply.stop_reason,
                "stop_sequence": reply.part.stop_sequence,
                **stop_details(reply),
                **container(reply),
            },
            "usage": usage(reply, reply.part.deltas) | server_tool.usage(executed(reply)),
            **context_management(reply),
        }
    )


def executed(reply: Reply) -> list[ServerCall]:
    """Returns the calls of server tools that this reply executes."""
    return [block.server for block in reply.part.blocks if block.kind == "server_result" and block.server]


def stop_details(reply: Reply) -> dict[str, object]:
    return {"stop_details": REFUSAL} if reply.part.is_refused else {}


def container(reply: Reply) -> dict[str, object]:
    """Returns the report of the container in which code runs; nothing if none does."""
    return {"container": {"id": reply.container, "expires_at": EXPIRES_AT}} if reply.container else {}


def context_management(reply: Reply) -> dict[str, object]:
    """Returns the report for a request with `context_management`: nothing was cleared."""
    return {"context_management": {"applied_edits": []}} if reply.is_managed else {}


def message(reply: Reply) -> bytes:
    """Returns the body of a response without streaming."""
    content = [content_block(index, reply) for index in range(len(reply.part.blocks))]
    whole = shell(reply, content, stop_reason=reply.stop_reason, output_tokens=reply.part.deltas)
    used = usage(reply, reply.part.deltas) | server_tool.usage(executed(reply))
    more = {"stop_sequence": reply.part.stop_sequence, "usage": used, **stop_details(reply)}
    more |= container(reply) | context_management(reply)
    return msgspec.json.encode({**whole, **more})


def content_block(index: int, reply: Reply) -> dict[str, Any]:
    block = reply.part.blocks[index]
    match block.kind:
        case "thinking":
            return {"type": "thinking", "thinking": block.content, "signature": signature(index, reply)}
        case "text":
            cited = {"citations": [citation(number) for number in range(block.cites)]} if block.cites else {}
            return {"type": "text", "text": block.content, **cited}
        case "tool_use":
            return {
                "type": "tool_use",
                "id": tool_id(index, reply),
                "name": block.tool,
                "input": call_input(index, reply),
            }
    assert block.server is not None  # noqa: S101 - the two remaining kinds have a server call
    id_ = block.server.id(reply.message_id)
    if block.kind == "server_call":
        return block.server.use_block(id_, call_input(index, reply))
    is_first = block.server == executed(reply)[0]
    return block.server.result_block(reply.part.pending if reply.part.pending and is_first else id_)


def call_input(index: int, reply: Reply) -> msgspec.Raw:
    """Returns the input of a call; an empty object if `max_tokens` has cut it, which is no JSON."""
    return msgspec.Raw(b"{}" if is_cut(index, reply) else reply.part.blocks[index].content.encode())


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
        **({} if reply.dropped is None else {"input_transformations": reply.dropped}),
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


def signature(index: int, reply: Reply) -> str:
    """Returns the signature of a thinking block, which is bound to the request and to the blocks before it."""
    before = [content_block(number, reply) for number in range(index)]
    request = parse(reply.body) if reply.body else {"messages": []}
    return Signer(request).sign(parse(msgspec.json.encode(before)), reply.part.blocks[index].content)


def tool_id(index: int, reply: Reply) -> str:
    """Returns the call's id, which no other call of the conversation has: OpenAI's Agents SDK drops a repeated id."""
    block = reply.part.blocks[index]
    thoughts = [one.content for one in reply.part.blocks[:index] if one.kind == "thinking"]
    call = f"{reply.turn}{block.tool}{block.content}{block.equal or ''}"
    return mark_call("toolu_sim" + hashlib.sha256(call.encode()).hexdigest()[:20], thoughts[-1] if thoughts else "")
