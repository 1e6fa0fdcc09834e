"""The AG-UI events of an answer's content blocks. Pure.

Consecutive text blocks are one message: with citations, Claude writes a block for each sentence. The ids of messages
are made of a name, which begins with the turn's id, and the block's index: each reader of a turn gets the same ones.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.block_start import answer_events, further_fields, split_start
from tailrace.gateway.clients.growing_text import GrowingText
from tailrace.proto import events, odd_json
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.server_tools import is_result
from tailrace.protocols.ag_ui.events import Json, custom, deltas, tool_result
from tailrace.protocols.common.history_items import REDACTED, SIGNED

CUT = "not run: the answer ended within this call"
NO_RESULT = "the answer ended before the result of this call"

_fields = msgspec.json.Decoder(dict[str, Any])


class OpenBlock(msgspec.Struct, frozen=True):
    """A block that has begun."""

    id: str
    """The id of its message, or of its tool call."""
    block: Json
    """The `content_block` of its `content_block_start`."""
    input: GrowingText = GrowingText()
    signature: str = ""


class Answer(msgspec.Struct, frozen=True):
    """The answer so far."""

    name: str
    """The first part of the ids of its messages."""
    open: Mapping[int, OpenBlock] = {}
    """The block without its end, by its index."""
    held: tuple[tuple[events.Event | events.UnknownEvent, msgspec.Raw], ...] = ()
    """Events of later blocks: Claude's API may send several blocks in turn."""
    last: OpenBlock | None = None
    """The block that ended last."""
    text: str = ""
    """The id of the text message that is open."""
    owner: str = ""
    """The id of the message to which calls belong."""
    reasonings: tuple[str, ...] = ()
    """The ids of the reasoning messages."""
    calls: Mapping[str, str] = {}
    """The tools of the client's calls, by the ids of the calls."""
    server_calls: tuple[str, ...] = ()
    """The calls that wait for a result of the model's API."""


def add_event(answer: Answer, event: events.Event | events.UnknownEvent, raw: msgspec.Raw) -> tuple[list[Json], Answer]:
    """Adds an event of the model. Events of another block than the open one are held back until that has ended."""
    match event:
        case (
            events.BlockStart(index)
            | events.BlockDelta(index)
            | events.BlockStop(index)
            | events.OtherDelta(index=index)
        ):
            if answer.open and index not in answer.open:
                return [], replace(answer, held=(*answer.held, (event, raw)))
            shown, answer = _add_to_block(answer, event)
            return (shown, answer) if answer.open else _add_held(shown, answer)
        case events.UnknownEvent():
            return _raw(raw), answer
        case _:
            return [], answer


def _raw(raw: msgspec.Raw) -> list[Json]:
    """Returns the event for an event of a type that this version does not know."""
    try:
        fields = _fields.decode(raw)
    except DECODE_ERRORS:
        return []
    return [{"type": "RAW", "event": fields, "source": "anthropic"}] if isinstance(fields.get("type"), str) else []


def _add_to_block(answer: Answer, event: events.Event | events.UnknownEvent) -> tuple[list[Json], Answer]:
    match event:
        case events.BlockStart(index, block):
            start, content = split_start(block)
            shown, answer = _begin_block(answer, index, start)
            for delta in content:
                more, answer = _add_delta(answer, index, delta)
                shown += more
            return shown, answer
        case events.BlockDelta(index, delta):
            return _add_delta(answer, index, delta)
        case events.BlockStop(index):
            return _end_block(answer, index)
        case events.OtherDelta(index=index, delta=more) if index in answer.open:
            part = answer.open[index]
            if is_call(part.block):
                return [], answer
            return [], _with_open(answer, index, replace(part, block=events.merge_fields(part.block, more)))
        case _:
            return [], answer


def _add_held(shown: list[Json], answer: Answer) -> tuple[list[Json], Answer]:
    """Adds the events that the block before has held back."""
    held, answer = answer.held, replace(answer, held=())
    for event, raw in held:
        more, answer = add_event(answer, event, raw)
        shown = [*shown, *more]
    return shown, answer


def add_blocks(answer: Answer, blocks: Iterable[Json]) -> tuple[list[Json], Answer]:
    """Adds whole blocks."""
    shown: list[Json] = []
    for event in answer_events(blocks):
        more, answer = _add_to_block(answer, event)
        shown += more
    return shown, answer


def close_blocks(answer: Answer) -> tuple[list[Json], Answer, list[str]]:
    """Ends all that is open. Returns also the ids of the blocks that had no end."""
    shown: list[Json] = []
    unfinished: list[str] = []
    while answer.open:
        ((index, part),) = answer.open.items()
        unfinished.append(part.id)
        more, answer = _end_block(answer, index)
        shown, answer = _add_held([*shown, *more], answer)
    more, answer = _end_text(answer)
    return [*shown, *more], answer, unfinished


def close_answer(answer: Answer, *, is_cut: bool, waits: bool) -> tuple[list[Json], Answer]:
    """Ends all that is open, and gives each call that will not be run a result that says why.

    `waits`: the next answer has the results of the API's own calls.
    """
    shown, answer, unfinished = close_blocks(answer)
    last = answer.last
    cut = [call for call in unfinished if is_cut and call in answer.calls]
    if is_cut and last is not None and last.id in answer.calls and last.id not in cut and not _has_input(last):
        cut.append(last.id)
    shown += [tool_result(answer.name, call, CUT) for call in cut]
    shown += [tool_result(answer.name, call, NO_RESULT) for call in answer.server_calls if not waits]
    calls = {call: tool for call, tool in answer.calls.items() if call not in cut}
    return shown, replace(answer, calls=calls, server_calls=())


def is_call(block: Json) -> bool:
    """Returns whether a block is a tool call with an id and a name."""
    match block:
        case {"type": str(kind), "id": str(), "name": str()}:
            return events.is_tool_use(kind)
        case _:
            return False


def _begin_block(answer: Answer, index: int, block: Json) -> tuple[list[Json], Answer]:
    name = f"msg_{answer.name}_{index}"
    match block:
        case {"type": "text"} if answer.text:
            return [], _with_open(answer, index, OpenBlock(answer.text, block))
        case {"type": "text"}:
            shown: list[Json] = [{"type": "TEXT_MESSAGE_START", "messageId": name, "role": "assistant"}]
            return shown, replace(_with_open(answer, index, OpenBlock(name, block)), text=name, owner=name)
        case {"type": "thinking"} | {"type": "redacted_thinking", "data": str()}:
            shown, answer = _end_text(answer)
            name = f"reasoning_{answer.name}_{index}"
            names = tuple(dict.fromkeys((*answer.reasonings, name)))
            answer = replace(_with_open(answer, index, OpenBlock(name, block)), owner="", reasonings=names)
            begin: Json = {"type": "REASONING_MESSAGE_START", "messageId": name, "role": "reasoning"}
            return [*shown, {"type": "REASONING_START", "messageId": name}, begin], answer
        case {"type": str(kind), "id": str(call), "name": str(tool)} if is_call(block):
            shown, answer = _end_text(answer)
            owner = answer.owner or name
            answer = replace(_with_open(answer, index, OpenBlock(call, block)), owner=owner)
            if kind == "tool_use":
                answer = replace(answer, calls={**answer.calls, call: tool})
            else:
                answer = replace(answer, server_calls=(*answer.server_calls, call))
            begin = {"type": "TOOL_CALL_START", "toolCallId": call, "toolCallName": tool, "parentMessageId": owner}
            # TanStack AI waits for a result of each other call before it sends the results of its tools.
            executed = {} if kind == "tool_use" else {"metadata": {"providerExecuted": True}}
            return [*shown, begin | executed], answer
        case {"tool_use_id": str(call), "content": content} if is_result(block):
            shown, answer = _end_text(answer)
            result = content if isinstance(content, str) else msgspec.json.encode(content).decode()
            waiting = tuple(one for one in answer.server_calls if one != call)
            return [*shown, tool_result(answer.name, call, result)], replace(answer, owner="", server_calls=waiting)
        case _:
            return [], _with_open(answer, index, OpenBlock(name, block))


def _add_delta(answer: Answer, index: int, delta: events.Delta) -> tuple[list[Json], Answer]:
    """Adds a delta. Returns no events for a delta that does not fit the block, like the fold."""
    part = answer.open.get(index)
    if part is None or not events.fits_block(type(delta), str(part.block.get("type"))):
        return [], answer
    match delta:
        case events.TextDelta(text):
            return deltas("TEXT_MESSAGE_CONTENT", part.id, text), answer
        case events.ThinkingDelta(text):
            return deltas("REASONING_MESSAGE_CONTENT", part.id, text), answer
        case events.InputJsonDelta(text) if is_call(part.block):
            grown = _with_open(answer, index, replace(part, input=part.input.plus(text)))
            return deltas("TOOL_CALL_ARGS", part.id, text), grown
        case events.SignatureDelta(signature):
            return [], _with_open(answer, index, replace(part, signature=signature))
        case events.CitationsDelta(citation):
            return [custom("citation", {"messageId": part.id, "citation": citation})], answer
        case _:
            return [], answer


def _end_block(answer: Answer, index: int) -> tuple[list[Json], Answer]:
    part = answer.open.get(index)
    if part is None:
        return [], answer
    answer = replace(answer, open={key: one for key, one in answer.open.items() if key != index}, last=part)
    match part.block:
        case {"type": "text"}:
            # The message stays open for the next text.
            return _further(part.block), answer
        case {"type": "thinking"}:
            secret = SIGNED + part.signature if part.signature else ""
            return [*_end_reasoning(part.id, secret), *_further(part.block)], answer
        case {"type": "redacted_thinking", "data": str(data)}:
            return _end_reasoning(part.id, REDACTED + data), answer
        case block if is_call(block):
            # An input that is whole at the start, or has no fields: clients parse it as JSON.
            given = "" if part.input.text() else odd_json.encode(block.get("input") or {}).decode()
            return [*deltas("TOOL_CALL_ARGS", part.id, given), {"type": "TOOL_CALL_END", "toolCallId": part.id}], answer
        case {"type": str()}:
            return [custom("block", part.block)], answer
        case _:
            return [], answer


def _end_reasoning(name: str, secret: str) -> list[Json]:
    """Returns the events that end a reasoning message. The client sends `secret` back with the message."""
    value = {"type": "REASONING_ENCRYPTED_VALUE", "subtype": "message", "entityId": name, "encryptedValue": secret}
    ends = [{"type": kind, "messageId": name} for kind in ("REASONING_MESSAGE_END", "REASONING_END")]
    return [*ends, *([value] if secret else [])]


def _end_text(answer: Answer) -> tuple[list[Json], Answer]:
    if not answer.text:
        return [], answer
    return [{"type": "TEXT_MESSAGE_END", "messageId": answer.text}], replace(answer, text="")


def _further(block: Json) -> list[Json]:
    """Returns the event with the fields of a text or thinking block that have no other event."""
    fields = further_fields(block)
    return [custom("block", {"type": block["type"], **fields})] if fields else []


def _with_open(answer: Answer, index: int, part: OpenBlock) -> Answer:
    return replace(answer, open={**answer.open, index: part})


def _has_input(part: OpenBlock) -> bool:
    """Returns whether the input of a call is a JSON object that is not empty."""
    try:
        return bool(_fields.decode(part.input.text()) if part.input.text() else part.block.get("input"))
    except DECODE_ERRORS:
        return False
