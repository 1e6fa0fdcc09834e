"""Cases: answers whose events a test has written, and the rest of a case after a partial answer. Pure.

A case is a text with the JSON of one event a line. It is sent byte for byte, so it may contain JSON that no library
writes. In an event with an `index`, that field stands before the block or the delta.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tailrace.deploy.simulated_claude.conversation import Conversation

INDEX = re.compile(rb'("index"\s*:\s*)\d+')
TYPE = re.compile(rb'"type"\s*:\s*"([^"]*)"')
# Events of a block. Other events may have an index, too.
OF_BLOCK = ("content_block_start", "content_block_delta", "content_block_stop")
Lines = tuple[bytes, ...]


def parse_case(body: bytes) -> Lines:
    """Returns the lines of a case, without empty lines."""
    return tuple(line.strip() for line in body.splitlines() if line.strip())


def event_type(line: bytes) -> str:
    """Returns the type of the event in a line; empty if it has none."""
    found = TYPE.search(line)
    return found[1].decode(errors="replace") if found else ""


def count_deltas(lines: Lines) -> int:
    return sum(event_type(line) == "content_block_delta" for line in lines)


def find_rest(lines: Lines, conversation: Conversation) -> Lines:
    """Returns the lines that follow the partial answer of `conversation`, with their blocks numbered from 0.

    Leaves out text that is in the partial answer, calls with results in it, and as many blocks of each other type as it
    has. If its text is not a prefix of the case's text, the case is sent from its beginning.
    """
    if not conversation.is_continued:
        return lines
    whole, lines = lines, tuple(_with_blocks(lines))
    events = [_read(line) for line in lines]
    skipped = _skipped_blocks(events, conversation)
    return whole if skipped is None else tuple(_without(lines, events, skipped))


def _with_blocks(lines: Lines) -> Iterator[bytes]:
    """Yields the lines, with the blocks of a `message_start` as events of their own."""
    for line in lines:
        match _read(line):
            case {"type": "message_start", "message": {"content": [_, *_] as content} as message} as event:
                yield _encode({**event, "message": {**message, "content": []}})
                for index, block in enumerate(content):
                    yield _encode({"type": "content_block_start", "index": index, "content_block": block})
                    yield _encode({"type": "content_block_stop", "index": index})
            case _:
                yield line


def _encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _read(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(event: dict[str, Any]) -> str:
    """Returns the text that an event adds to a text block."""
    match event:
        case {"content_block": {"type": "text", "text": str(text)}} | {
            "delta": {"type": "text_delta", "text": str(text)}
        }:
            return text
    return ""


def _skipped_blocks(events: list[dict[str, Any]], conversation: Conversation) -> dict[int, int] | None:
    """Returns the blocks to leave out, with the characters of texts (others: 0). None if the text differs."""
    texts: dict[int, str] = {}
    starts: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.get("type") == "content_block_start":
            starts[event["index"]] = event["content_block"]
        if event.get("index") in starts:
            texts[event["index"]] = texts.get(event["index"], "") + _text(event)
    if not "".join(texts[index] for index in sorted(texts)).startswith(conversation.partial):
        return None
    skipped: dict[int, int] = {}
    left = len(conversation.partial)
    for index in sorted(starts):
        if starts[index].get("type") == "text" and left:
            skipped[index] = min(left, len(texts[index]))
            left -= skipped[index]
        elif _is_known(starts[index], conversation):
            skipped[index] = 0
    reached = max(skipped, default=-1)
    known = Counter(conversation.other_types)
    for index in sorted(starts.keys() - skipped.keys()):
        kind = str(starts[index].get("type"))
        is_call = "tool_use" in kind or "tool_use_id" in starts[index]
        if not is_call and kind != "text" and (index < reached or known[kind] > 0):
            known[kind] -= 1
            skipped[index] = 0
    return skipped


def _is_known(block: dict[str, Any], conversation: Conversation) -> bool:
    """Returns whether the partial answer has this call, or this result of a call."""
    call = block.get("tool_use_id", block.get("id"))
    return call in conversation.paired or bool(call and block.get("id") == conversation.pending)


def _without(lines: Lines, events: list[dict[str, Any]], skipped: dict[int, int]) -> Iterator[bytes]:
    """Yields the lines without skipped blocks and text."""
    numbers: dict[int, int] = {}
    left = dict(skipped)
    for line, event in zip(lines, events, strict=True):
        index = event.get("index")
        if index is None or event.get("type") not in OF_BLOCK:
            yield line
            continue
        if index in skipped and _block_chars(events, index) <= skipped[index]:
            continue
        text = _text(event)
        cut = min(len(text), left.get(index, 0))
        if cut:
            left[index] -= cut
            if cut == len(text) and event["type"] == "content_block_delta":
                continue
        number = numbers.setdefault(index, len(numbers))
        yield INDEX.sub(rb"\g<1>%d" % number, _with_text(event, text[cut:]) if cut else line, count=1)


def _block_chars(events: list[dict[str, Any]], index: int) -> int:
    return sum(len(_text(event)) for event in events if event.get("index") == index)


def _with_text(event: dict[str, Any], text: str) -> bytes:
    name = "content_block" if "content_block" in event else "delta"
    return _encode({**event, name: {**event[name], "text": text}})
