"""An output item of OpenAI's Responses API while it is being told: its events, from the first to the last. Pure.

A text is a message with one part, a thought a reasoning item with a summary, a tool call a function call. A block that
the protocol has no word for is open without a sign.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.growing_text import Pieces
from tailrace.gateway.clients.openai.annotations import of_responses
from tailrace.gateway.clients.openai.responses_object import (
    Item,
    function_call,
    item,
    item_id,
    message,
    output_text,
    reasoning,
    summary_text,
)
from tailrace.proto import events

Events = list[dict[str, Any]]


class Open(msgspec.Struct, frozen=True):
    """The block that is being told, and the item that it is: the one at `output` among those of its response."""

    turn: str
    block: int
    output: int
    start: dict[str, Any]
    """The `content_block` as it was opened."""
    pieces: Pieces = Pieces()
    signature: str = ""
    citations: tuple[dict[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        return str(self.start.get("type"))


def begun(turn: str, block: int, output: int, start: dict[str, Any]) -> tuple[Open, Events]:
    """The item that `start` opens, the first of its events, and what it says already."""
    opened = Open(turn, block, output, start)
    shown = _shown(opened, "in_progress", None)
    if shown is None:
        return replace(opened, start={}), []
    opening = [_placed("response.output_item.added", opened, item=shown)]
    match opened.kind:
        case "text":
            opening.append(_part("response.content_part.added", opened, output_text("")))
            opened, saying = said(opened, events.TextDelta(str(start.get("text", ""))))
            return opened, opening + saying
        case "thinking":
            opening.append(_summary("response.reasoning_summary_part.added", opened, part=summary_text("")))
    return opened, opening


def said(opened: Open, delta: events.Delta) -> tuple[Open, Events]:
    """`opened` with more of it, and the event that says so. An empty piece says nothing."""
    if not events.fits_block(delta, opened.kind):
        return opened, []
    match delta:
        case events.SignatureDelta(signature):
            return replace(opened, signature=opened.signature + signature), []
        case events.CitationsDelta(citation):
            # Told when its text is whole: only then is it known how far that goes.
            return replace(opened, citations=(*opened.citations, citation)), []
        case events.TextDelta(piece) | events.ThinkingDelta(piece) | events.InputJsonDelta(piece) if piece:
            return replace(opened, pieces=opened.pieces.plus(piece)), _delta(opened, piece)
        case _:
            return opened, []


def closed(opened: Open, status: str) -> tuple[Item | None, Events]:
    """The whole item, and the last of its events; `status` is `incomplete` for one that was broken off."""
    text = opened.pieces.text()
    closing: Events = []
    if opened.kind == "tool_use" and not text:
        # A tool without arguments streams none, and to this protocol they are always JSON.
        text = msgspec.json.encode(opened.start.get("input") or {}).decode() if status == "completed" else ""
        closing += _delta(opened, text) if text else []
    shown = _shown(opened, status, text)
    if shown is None:
        return None, []
    match opened.kind:
        case "text":
            annotations = of_responses(opened.citations, len(text))
            for number, annotation in enumerate(annotations):
                added = {"annotation_index": number, "annotation": annotation}
                closing.append(_part("response.output_text.annotation.added", opened, None, **added))
            closing.append(_part("response.output_text.done", opened, None, text=text, logprobs=[]))
            closing.append(_part("response.content_part.done", opened, output_text(text, annotations)))
        case "thinking":
            closing.append(_summary("response.reasoning_summary_text.done", opened, text=text))
            closing.append(_summary("response.reasoning_summary_part.done", opened, part=summary_text(text)))
        case "tool_use":
            closing.append(_of("response.function_call_arguments.done", opened, arguments=text))
    closing.append(_placed("response.output_item.done", opened, item=shown))
    return shown, closing


def _shown(opened: Open, status: str, text: str | None) -> Item | None:
    """The item; with no `text` it has only begun."""
    match opened.start:
        case {"type": "text"}:
            annotations = of_responses(opened.citations, len(text or ""))
            return message(opened.turn, opened.block, status, text, annotations)
        case {"type": "thinking"}:
            return reasoning(opened.turn, opened.block, status, text or "", opened.signature)
        case {"type": "tool_use", "id": str(call), "name": str(name)}:
            return function_call(opened.turn, opened.block, status, call, name, text or "")
        case start:
            whole = item(opened.turn, opened.block, start)
            return None if whole is None else whole | {"status": status}


def _delta(opened: Open, piece: str) -> Events:
    match opened.kind:
        case "text":
            return [_part("response.output_text.delta", opened, None, delta=piece, logprobs=[])]
        case "thinking":
            return [_summary("response.reasoning_summary_text.delta", opened, delta=piece)]
        case "tool_use":
            return [_of("response.function_call_arguments.delta", opened, delta=piece)]
        case _:
            return []


def _part(kind: str, opened: Open, part: Item | None, **further: object) -> dict[str, Any]:
    return _of(kind, opened, content_index=0, **({} if part is None else {"part": part}), **further)


def _summary(kind: str, opened: Open, **further: object) -> dict[str, Any]:
    return _of(kind, opened, summary_index=0, **further)


def _of(kind: str, opened: Open, **further: object) -> dict[str, Any]:
    return _placed(kind, opened, item_id=item_id(opened.kind, opened.turn, opened.block), **further)


def _placed(kind: str, opened: Open, **further: object) -> dict[str, Any]:
    return {"type": kind, "output_index": opened.output, **further}
