"""The stream events of one output item of OpenAI's Responses API, from `added` to `done`.

A text block becomes a message with one part, thinking a reasoning item with a summary, a tool call a function call. A
block without an equivalent has no events.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.growing_text import GrowingText
from tailrace.proto import events, odd_json
from tailrace.proto.fold import PARTIAL, is_complete_input
from tailrace.protocols.openai.responses_object import Item, item_id, output_item, output_text, summary_text

Events = list[dict[str, Any]]


class OpenItem(msgspec.Struct, frozen=True):
    """A block that has begun, and its item, which is number `output` in the response."""

    turn: str
    block: int
    output: int
    start: dict[str, Any]
    """The `content_block` of its `content_block_start`."""
    deltas: GrowingText = GrowingText()
    signature: str = ""
    citations: tuple[dict[str, Any], ...] = ()
    is_stopped: bool = False
    """Whether the block has ended."""

    @property
    def kind(self) -> str:
        return str(self.start.get("type"))


def open_item(turn: str, block: int, output: int, start: dict[str, Any]) -> tuple[OpenItem, Events]:
    """Opens the item of the block that begins with `start`. Returns its first events; none for a block without item."""
    opened = OpenItem(turn, block, output, start)
    item = _item(opened, "in_progress", None)
    if item is None:
        return replace(opened, start={}), []
    opening = [_event("response.output_item.added", opened, item=item)]
    match opened.kind:
        case "text":
            opening.append(_part("response.content_part.added", opened, part=output_text("")))
        case "thinking":
            opening.append(_summary("response.reasoning_summary_part.added", opened, part=summary_text("")))
    return opened, opening


def add_delta(opened: OpenItem, delta: events.Delta) -> tuple[OpenItem, Events]:
    """Adds a delta. Returns its event; none for an empty delta or one that does not fit the block."""
    if not events.fits_block(type(delta), opened.kind):
        return opened, []
    match delta:
        case events.SignatureDelta(signature):
            return replace(opened, signature=signature), []
        case events.CitationsDelta(citation):
            # Rendered at the end of the block, when its length is known.
            return replace(opened, citations=(*opened.citations, citation)), []
        case events.TextDelta(text) | events.ThinkingDelta(text) | events.InputJsonDelta(text) if text:
            return replace(opened, deltas=opened.deltas.plus(text)), _delta(opened, text)
        case _:
            return opened, []


def close_item(opened: OpenItem, status: str) -> tuple[Item | None, Events]:
    """Returns the whole item and its last events. `status` is `incomplete` for a block that was cut off."""
    text = opened.deltas.text()
    closing: Events = []
    if opened.kind == "tool_use" and text and not is_complete_input(text):
        status = "incomplete"
    elif opened.kind == "tool_use" and not text:
        # The model sends no delta for a call without arguments, but this protocol requires JSON.
        given = opened.start.get("input") or {}
        text = odd_json.encode(given).decode() if given or status == "completed" else ""
        closing += _delta(opened, text) if text else []
    item = _item(opened, status, text)
    if item is None:
        return None, []
    match opened.kind:
        case "text":
            part = item["content"][0]
            for number, annotation in enumerate(part["annotations"]):
                added = {"annotation_index": number, "annotation": annotation}
                closing.append(_part("response.output_text.annotation.added", opened, **added))
            closing.append(_part("response.output_text.done", opened, text=text, logprobs=[]))
            closing.append(_part("response.content_part.done", opened, part=part))
        case "thinking":
            closing.append(_summary("response.reasoning_summary_text.done", opened, text=text))
            closing.append(_summary("response.reasoning_summary_part.done", opened, part=summary_text(text)))
        case "tool_use":
            closing.append(_item_event("response.function_call_arguments.done", opened, arguments=text))
    closing.append(_event("response.output_item.done", opened, item=item))
    return item, closing


def is_cut_by_limit(opened: OpenItem) -> bool:
    """Returns whether a limit has cut the answer's last block: any block but a tool call with arguments."""
    return opened.kind != "tool_use" or is_empty_call(opened)


def is_empty_call(opened: OpenItem) -> bool:
    """Returns whether the block is a tool call without any arguments so far."""
    return opened.kind == "tool_use" and not (opened.deltas.text() or opened.start.get("input"))


def _item(opened: OpenItem, status: str, text: str | None) -> Item | None:
    """Returns the item, empty if `text` is None; None for a block without equivalent."""
    match opened.kind:
        case "text":
            block = {"type": "text", "text": text or "", "citations": opened.citations}
        case "thinking":
            block = {"type": "thinking", "thinking": text or "", "signature": opened.signature}
        case "tool_use":
            block = {**opened.start, PARTIAL: text or ""}
        case _:
            block = opened.start
    item = output_item(opened.turn, opened.block, block)
    if item is None:
        return None
    return item | {"status": status} | ({"content": []} if opened.kind == "text" and text is None else {})


def _delta(opened: OpenItem, text: str) -> Events:
    match opened.kind:
        case "text":
            return [_part("response.output_text.delta", opened, delta=text, logprobs=[])]
        case "thinking":
            return [_summary("response.reasoning_summary_text.delta", opened, delta=text)]
        case "tool_use":
            return [_item_event("response.function_call_arguments.delta", opened, delta=text)]
        case _:
            return []


def _part(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return _item_event(kind, opened, content_index=0, **fields)


def _summary(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return _item_event(kind, opened, summary_index=0, **fields)


def _item_event(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return _event(kind, opened, item_id=item_id(opened.kind, opened.turn, opened.block), **fields)


def _event(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return {"type": kind, "output_index": opened.output, **fields}
