"""The dialect `openai-responses`: the events of OpenAI's Responses API, numbered from 0 for the whole turn.

An event's number never changes, so a client resumes after the number of its last event. The output items are those of
`responses_object.output_items`. The protocol has no event for "discard the text so far": at a restart, readers get an
`error` and the connection is broken off. The numbers go on, and a new `response.created` starts the new answer.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import accumulate, chain, count, starmap
from operator import itemgetter
from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.block_start import answer_events, block_events, start_events
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events, odd_json
from tailrace.proto.entries import Attempt, Block, End, Event, Request, StoredEntry
from tailrace.proto.fold import CUT, PARTIAL, Turn, content
from tailrace.proto.ids import TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.proto.server_tools import is_result
from tailrace.protocols.common.answer_warnings import NOTHING, LeftOut, types_of
from tailrace.protocols.common.stop_reasons import has_waiting_calls
from tailrace.protocols.openai.builtin_calls import call_before
from tailrace.protocols.openai.responses_object import (
    SHOWN,
    Head,
    Item,
    Status,
    build_response,
    head_of,
    status_of,
)
from tailrace.protocols.openai.responses_output_item import (
    Events,
    OpenItem,
    add_delta,
    close_item,
    continue_message,
    is_cut_by_limit,
    is_empty_call,
    is_open_call,
    open_item,
    stop_block,
)

RESTARTED = "the answer starts again: request it from its beginning, without starting_after"
# The last event of a response; a cancelled one has no event of its own.
ENDS = {"completed": "response.completed", "failed": "response.failed"}
INCOMPLETE = "response.incomplete"

_encode = msgspec.json.Encoder().encode


class ResponsesState(msgspec.Struct, frozen=True):
    """The events that a reader has received since the last restart. `number`: the number of the next event."""

    head: Head
    number: int = 0
    is_created: bool = False
    is_in_progress: bool = False
    outputs: int = 0
    """The number of items that have begun."""
    items: tuple[tuple[int, Item], ...] = ()
    """The items that are closed, each with its number in the response."""
    open: tuple[OpenItem, ...] = ()
    """The blocks whose item is not closed, in order. Blocks without an item are among them."""
    left_out: LeftOut = NOTHING


def start(key: TurnKey) -> ResponsesState:
    return ResponsesState(Head(key.turn))


def render(state: ResponsesState, stored: StoredEntry) -> tuple[Frame, ResponsesState]:
    match stored.entry:
        case Request() as request:
            return _render_frame(*_render_queued(replace(state, head=head_of(state.head.turn, request, stored.at))))
        case Attempt(mode="restart"):
            error = {"type": "error", "code": "server_error", "message": RESTARTED, "param": None}
            frame, restarted = _render_frame(ResponsesState(state.head, state.number), [error])
            return Frame(frame.events, is_break=True), restarted
        case Attempt():
            return _render_frame(*_render_in_progress(state))
        case Event(event=raw, is_hidden=False):
            event = events.decode(raw)
            left_out = state.left_out.add(event, raw, SHOWN)
            return _render_frame(*_render_event(replace(state, left_out=left_out), event))
        case End() as end:
            return _render_frame(*_render_ended(state, end, stored.at))
        case _:
            return SILENT, state


def response_of(record: TurnRecord) -> dict[str, Any]:
    """Returns the response object of a turn as far as it is stored."""
    if record.outcome == "running":
        head = head_of(record.turn, record, record.asked_at)
        status: Status = "in_progress" if record.attempts else "queued"
        return build_response(head, status, output_items(head, record.content, "in_progress"))
    response: dict[str, Any] = _render_whole(record)[-1]["response"]
    return response


def output_items(head: Head, blocks: Iterable[dict[str, Any]], last: str = "completed") -> list[Item]:
    """Returns the output items of a stored answer. `last` is the status of the last one.

    A call that was cut is incomplete, and a call of a built-in tool without a result is in progress.
    """
    state, _ = _render_answer(ResponsesState(head), answer_events(blocks))
    state, _ = _close(state, [(one, "in_progress" if is_open_call(one) else last, None) for one in state.open])
    return _sorted_items(state)


def render_record(record: TurnRecord, seen: int) -> Frame:
    """Renders a whole turn; after `seen` events, only the `done` events and the end.

    Each delta stands for many deltas of the log, so the numbers differ from those in the log. A delta raises the number
    by its length in characters: the numbers are then never lower than in the log, and a client that drops events by
    number keeps the end.
    """
    rendered = _render_whole(record)
    if seen:
        rendered = [event for event in rendered if event["type"].endswith(".done")] + rendered[-1:]
        return Frame(_encode_events(rendered, count(seen)))
    lengths = (max(1, len(event.get("delta", ""))) for event in rendered)
    return Frame(_encode_events(rendered, accumulate(lengths, initial=0)))


def _render_whole(record: TurnRecord) -> Events:
    """Returns the events of a turn that has ended, with one delta for each block."""
    state = ResponsesState(head_of(record.turn, record, record.asked_at))
    state, rendered = _render_answer(state, answer_events(record.content))
    return rendered + _render_ended(state, record, record.ended_at)[1]


def render_snapshot(key: TurnKey, turn: Turn, number: int, first: int = 0) -> sse.Events:
    """Renders `turn` in the fewest events, without the output items before `first`. The event `number` comes next.

    A snapshot never has more events than the stream had, so the first number is not negative.
    """
    state = start(key)
    if turn.request is not None and turn.asked_at is not None:
        state = replace(state, head=head_of(key.turn, turn.request, turn.asked_at))
    if turn.end is None and turn.message is None and turn.mode == "restart":
        # After a restart nothing is rendered until the new answer begins.
        return ()
    begun = chain.from_iterable(starmap(_events_of, enumerate(turn.blocks)))
    state, rendered = _render_answer(state, begun) if turn.attempt else _render_queued(state)
    state = replace(state, left_out=LeftOut(types_of(map(content, turn.blocks), SHOWN)))
    if turn.end is not None:
        state, ending = _render_ended(state, turn.end, turn.ended_at)
        rendered += ending
    rendered = [event for event in rendered if event.get("output_index", first) >= first]
    return _encode_events(rendered, count(number - len(rendered)))


def _render_event(state: ResponsesState, event: events.Event | events.UnknownEvent) -> tuple[ResponsesState, Events]:
    """Renders one event of the model, after the events that must precede it."""
    if isinstance(event, events.UnknownEvent | events.MessageDelta):
        return state, []
    state, rendered = _render_in_progress(state)
    for one in start_events(event) if isinstance(event, events.BlockStart) else [event]:
        state, more = _render_in_item(state, one)
        rendered += more
    return state, rendered


def _render_in_item(state: ResponsesState, event: events.Event) -> tuple[ResponsesState, Events]:
    """Renders an event of a block."""
    match event:
        case events.BlockStart(index, {"type": "text"} as block) if state.open and state.open[-1].kind == "text":
            return replace(state, open=(*state.open[:-1], continue_message(state.open[-1], index, block))), []
        case events.BlockStart(index, block):
            ended = [one for one in state.open if one.is_stopped]
            state, closing = _close(state, [(one, "completed", None) for one in ended])
            if is_result(block):
                calls = _calls_of(state, block["tool_use_id"])
                if not calls and state.head.goes_on and (call := call_before(block)) is not None:
                    state, begun = _render_answer(state, block_events(index, call))
                    closing, calls = [*closing, *begun], state.open[-1:]
                state, ending = _close(state, [(one, "completed", block) for one in calls[-1:]])
                closing += ending
            item, beginning = open_item(state.head.turn, index, state.outputs, block)
            outputs = state.outputs + bool(beginning)
            return replace(state, open=(*state.open, item), outputs=outputs), closing + beginning
        case events.BlockDelta(index):
            return _change(state, index, lambda one: add_delta(one, event))
        case events.BlockStop(index):
            return _change(state, index, lambda one: stop_block(one, index))
        case _:
            return state, []


def _calls_of(state: ResponsesState, call: str) -> tuple[OpenItem, ...]:
    """Returns the calls of built-in tools with this id that have no result."""
    return tuple(one for one in state.open if is_open_call(one) and one.start.get("id") == call)


def _change(
    state: ResponsesState, index: int, change: Callable[[OpenItem], tuple[OpenItem, Events]]
) -> tuple[ResponsesState, Events]:
    """Changes the open items of a block."""
    rendered: Events = []
    changed = list(state.open)
    for position, one in enumerate(state.open):
        if one.has_block(index):
            changed[position], more = change(one)
            rendered += more
    return replace(state, open=tuple(changed)), rendered


def _render_answer(state: ResponsesState, answer: Iterable[events.Event]) -> tuple[ResponsesState, Events]:
    """Renders the events of the blocks of an answer, whole or not."""
    state, rendered = _render_in_progress(state)
    for event in answer:
        state, more = _render_in_item(state, event)
        rendered += more
    return state, rendered


def _events_of(index: int, block: Block) -> list[events.Event]:
    """Returns the events of a block of a fold: the input of a call as the model wrote it, and perhaps no end."""
    mark = {PARTIAL: block.text} if events.is_tool_use(block.type) else {}
    found = block_events(index, content(block) | mark)
    return found if block.is_closed else found[:-1]


def _render_queued(state: ResponsesState) -> tuple[ResponsesState, Events]:
    queued = build_response(state.head, "queued", [])
    return replace(state, is_created=True), [_lifecycle("response.created", queued)]


def _render_in_progress(state: ResponsesState) -> tuple[ResponsesState, Events]:
    """Returns the events before the first item, if they were not rendered yet."""
    if state.is_in_progress:
        return state, []
    running = build_response(state.head, "in_progress", [])
    created = [] if state.is_created else [_lifecycle("response.created", running)]
    state = replace(state, is_created=True, is_in_progress=True)
    return state, [*created, _lifecycle("response.in_progress", running)]


def _close(
    state: ResponsesState, closed: list[tuple[OpenItem, str, dict[str, Any] | None]]
) -> tuple[ResponsesState, Events]:
    """Closes open items, each with its status, and with the result of its call. Returns their last events."""
    items, rendered = list(state.items), Events()
    for one, status, result in closed:
        item, closing = close_item(one, status, result)
        rendered += closing
        if item is not None:
            items.append((one.output, item))
    rest = tuple(one for one in state.open if all(one is not other for other, _, _ in closed))
    return replace(state, open=rest, items=tuple(items)), rendered


def _render_ended(
    state: ResponsesState, ended: End | TurnRecord, ended_at: datetime | None
) -> tuple[ResponsesState, Events]:
    """Returns the last events: the open item is closed, and the whole response follows."""
    outcome, stop_reason = ended.outcome, ended.stop_reason
    status = status_of(outcome, stop_reason)
    state, opening = (state, []) if state.is_created else _render_queued(state)
    last = state.open[-1] if state.open else None
    is_cut = outcome != "completed" or (stop_reason in CUT and last is not None and is_cut_by_limit(last))
    closed: list[tuple[OpenItem, str, dict[str, Any] | None]] = []
    for one in state.open:
        is_whole = not is_cut if one is last else one.is_stopped or not is_empty_call(one)
        waiting = "in_progress" if has_waiting_calls(ended) else "incomplete"
        closed.append((one, waiting if is_open_call(one) else "completed" if is_whole else "incomplete", None))
    state, closing = _close(state, closed)
    left_out = types_of(ended.content, SHOWN) if isinstance(ended, TurnRecord) else state.left_out.types
    response = build_response(state.head, status, _sorted_items(state), ended, ended_at, left_out)
    return state, [*opening, *closing, _lifecycle(ENDS.get(status, INCOMPLETE), response)]


def _sorted_items(state: ResponsesState) -> list[Item]:
    """Returns the items that are closed, in their order in the response."""
    return [item for _, item in sorted(state.items, key=itemgetter(0))]


def _lifecycle(kind: str, response: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "response": response}


def _render_frame(state: ResponsesState, rendered: Events) -> tuple[Frame, ResponsesState]:
    frame = Frame(_encode_events(rendered, count(state.number))) if rendered else SILENT
    return frame, replace(state, number=state.number + len(rendered))


def _encode_events(rendered: Events, numbers: Iterable[int]) -> sse.Events:
    return tuple(
        sse.Event(_encode({**event, "sequence_number": number}), name=event["type"].encode())
        for event, number in zip(rendered, numbers, strict=False)
    )


OPENAI_RESPONSES = Dialect(
    name="openai-responses",
    start=start,
    render=render,
    render_record=render_record,
    is_stateful=True,
    render_json=lambda record: odd_json.encode(response_of(record)),
)
