"""The stream events of one output item of OpenAI's Responses API, from `added` to `done`.

Consecutive text blocks become a message with one part, thinking a reasoning item with a summary, a tool call a function
call, and a call of a server tool with its result the call of a built-in tool. A block without an equivalent has no
events.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.growing_text import GrowingText
from tailrace.gateway.clients.text_order import NO_BLOCKS, TextOrder
from tailrace.proto import events, odd_json
from tailrace.proto.fold import PARTIAL, is_complete_input
from tailrace.protocols.openai.annotations import Spans, measure
from tailrace.protocols.openai.builtin_calls import Call, call_item, ending_event, kind_of
from tailrace.protocols.openai.responses_object import (
    Item,
    block_item,
    item_id,
    message_item,
    output_text,
    summary_text,
)

Events = list[dict[str, Any]]


class OpenItem(msgspec.Struct, frozen=True):
    """A block that has begun, and its item, which is number `output` in the response. A message has several blocks."""

    turn: str
    block: int
    """The number of its first block."""
    output: int
    start: dict[str, Any]
    """The `content_block` of its `content_block_start`; empty for a block without an item."""
    id: str = ""
    """The id of its item."""
    deltas: GrowingText = GrowingText()
    signature: str = ""
    texts: Spans = ()
    """The blocks of a message."""
    order: TextOrder = NO_BLOCKS
    """The blocks of a message that have not ended."""
    is_stopped: bool = False
    """Whether the block has ended; for a call of a built-in tool: whether its result has come."""

    @property
    def kind(self) -> str:
        return str(self.start.get("type"))

    def has_block(self, index: int) -> bool:
        return index == self.block or any(index == block for block, _, _ in self.texts)


def open_item(turn: str, block: int, output: int, start: dict[str, Any]) -> tuple[OpenItem, Events]:
    """Opens the item of the block that begins with `start`. Returns its first events; none for a block without item."""
    opened = OpenItem(turn, block, output, start)
    item = _item(opened, "in_progress", None)
    if item is None:
        return replace(opened, start={}), []
    opened = replace(opened, id=item["id"])
    opening = [_event("response.output_item.added", opened, item=item)]
    if (call := kind_of(start)) is not None:
        return opened, [*opening, _item_event(f"response.{call.item}.in_progress", opened)]
    match opened.kind:
        case "text":
            opened = continue_message(opened, block, start)
            opening.append(_part("response.content_part.added", opened, part=output_text("")))
        case "thinking":
            opening.append(_summary("response.reasoning_summary_part.added", opened, part=summary_text("")))
    return opened, opening


def continue_message(opened: OpenItem, block: int, start: dict[str, Any]) -> OpenItem:
    """Adds a text block, which is empty at its start, to a message."""
    _, order = opened.order.start(block, "")
    return replace(opened, texts=measure(opened.texts, events.BlockStart(block, start)), order=order, is_stopped=False)


def add_delta(opened: OpenItem, event: events.BlockDelta) -> tuple[OpenItem, Events]:
    """Adds a delta of one of the item's blocks. Returns its event; none if it is empty or does not fit the block.

    The text of a block waits for the end of the blocks before it.
    """
    delta = event.delta
    if not events.fits_block(type(delta), opened.kind):
        return opened, []
    match delta:
        case events.SignatureDelta(signature):
            return replace(opened, signature=signature), []
        case events.CitationsDelta():
            # Rendered at the end of the item, when the lengths of its blocks are known.
            return replace(opened, texts=measure(opened.texts, event)), []
        case events.TextDelta(text) if text:
            shown, order = opened.order.add(event.index, text)
            texts = measure(opened.texts, event)
            if not shown:
                return replace(opened, texts=texts, order=order), []
            changed = replace(opened, texts=texts, order=order, deltas=opened.deltas.plus(shown))
            return changed, _delta(opened, shown)
        case events.ThinkingDelta(text) | events.InputJsonDelta(text) if text:
            return _show(opened, text)
        case _:
            return opened, []


def stop_block(opened: OpenItem, index: int) -> tuple[OpenItem, Events]:
    """Ends the block `index` of the item. Returns the events of a call whose input is whole, and of text that waited.

    The next block or the end of the answer closes an item: only they show whether a limit has cut it.
    """
    if (kind := kind_of(opened.start)) is None:
        shown, order = opened.order.stop(index)
        return _show(replace(opened, order=order, is_stopped=not order.waiting), shown)
    stopping: Events = []
    if kind.has_deltas and not opened.deltas.text():
        # The model sends no delta for a call without arguments.
        opened, stopping = _show(opened, _input_at_start(opened) or "{}")
    if kind.input:
        text = kind.fields(_call(opened))[kind.input]
        name = f"response.{kind.item}_{kind.input}"
        stopping += [] if kind.has_deltas else [_item_event(f"{name}.delta", opened, delta=text)]
        stopping.append(_item_event(f"{name}.done", opened, **{kind.input: text}))
    if kind.running:
        stopping.append(_item_event(f"response.{kind.item}.{kind.running}", opened))
    # A list of tools has no result.
    return replace(opened, is_stopped="id" not in opened.start), stopping


def close_item(opened: OpenItem, status: str, result: dict[str, Any] | None = None) -> tuple[Item | None, Events]:
    """Returns the whole item and its last events. `status` is `incomplete` for a block that was cut off.

    `result`: of a call of a built-in tool.
    """
    if (kind := kind_of(opened.start)) is not None:
        call = call_item(kind, item_id(opened.start, opened.turn, opened.block), _call(opened, result), status)
        name = ending_event(kind, call)
        ending = [_item_event(f"response.{kind.item}.{name}", opened)] if name else []
        return call, [*ending, _event("response.output_item.done", opened, item=call)]
    opened, closing = _show(opened, opened.order.rest())
    text = opened.deltas.text()
    if opened.kind == "tool_use" and text and not is_complete_input(text):
        # In an answer that still runs, the input goes on.
        status = "in_progress" if status == "in_progress" else "incomplete"
    elif opened.kind == "tool_use" and not text:
        # The model sends no delta for a call without arguments, but this protocol requires JSON.
        text = _input_at_start(opened) or ("{}" if status == "completed" else "")
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


def is_open_call(opened: OpenItem) -> bool:
    """Returns whether the block is a call of a built-in tool that has no result."""
    return not opened.is_stopped and kind_of(opened.start) is not None


def _item(opened: OpenItem, status: str, text: str | None) -> Item | None:
    """Returns the item, empty if `text` is None; None for a block without equivalent."""
    if (kind := kind_of(opened.start)) is not None:
        return call_item(kind, item_id(opened.start, opened.turn, opened.block), _call(opened), status)
    match opened.kind:
        case "text":
            message = message_item(opened.turn, opened.block, text or "", opened.texts)
            return message | {"status": status} | ({"content": []} if text is None else {})
        case "thinking":
            block = {"type": "thinking", "thinking": text or "", "signature": opened.signature}
        case "tool_use":
            block = {**opened.start, PARTIAL: text or ""}
        case _:
            block = opened.start
    item = block_item(opened.turn, opened.block, block)
    return None if item is None else item | {"status": status}


def _call(opened: OpenItem, result: dict[str, Any] | None = None) -> Call:
    return Call(opened.turn, opened.start, opened.deltas.text() or _input_at_start(opened), result)


def _input_at_start(opened: OpenItem) -> str:
    """Returns the JSON of the input that the start of a call has already; empty for most."""
    given = opened.start.get("input")
    return odd_json.encode(given).decode() if given else ""


def _show(opened: OpenItem, text: str) -> tuple[OpenItem, Events]:
    """Adds text to the item. Returns its event."""
    return (replace(opened, deltas=opened.deltas.plus(text)), _delta(opened, text)) if text else (opened, [])


def _delta(opened: OpenItem, text: str) -> Events:
    match opened.kind:
        case "text":
            return [_part("response.output_text.delta", opened, delta=text, logprobs=[])]
        case "thinking":
            return [_summary("response.reasoning_summary_text.delta", opened, delta=text)]
        case "tool_use":
            return [_item_event("response.function_call_arguments.delta", opened, delta=text)]
    kind = kind_of(opened.start)
    if kind is not None and kind.has_deltas:
        return [_item_event(f"response.{kind.item}_{kind.input}.delta", opened, delta=text)]
    return []


def _part(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return _item_event(kind, opened, content_index=0, **fields)


def _summary(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return _item_event(kind, opened, summary_index=0, **fields)


def _item_event(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return _event(kind, opened, item_id=opened.id, **fields)


def _event(kind: str, opened: OpenItem, **fields: object) -> dict[str, Any]:
    return {"type": kind, "output_index": opened.output, **fields}
