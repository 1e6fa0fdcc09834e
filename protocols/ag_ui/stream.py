"""The dialects of AG-UI: `ag-ui-1` for clients that declare version 1.0, and `ag-ui` for all others.

A turn is a run, and its session is the thread. Source: `@ag-ui/core` 1.0.0, and `@ag-ui/client` 1.0.0 and 0.0.59, which
check the order of the events.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, Message, Request, StoredEntry
from tailrace.proto.ids import LOCAL, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetContext, TurnRecord
from tailrace.proto.usage import Usage
from tailrace.protocols.ag_ui.blocks import Answer, add_blocks, add_event, close_answer, close_blocks
from tailrace.protocols.ag_ui.events import Json, custom, encode_events, tool_result
from tailrace.protocols.ag_ui.messages import build_messages
from tailrace.protocols.common.answer_warnings import warnings_of
from tailrace.protocols.common.earlier_steps import own_messages
from tailrace.protocols.common.failure import LOST
from tailrace.protocols.common.stop_reasons import has_waiting_calls, is_whole

# The keys in a request's metadata for the id of the run, and for the names of the tools whose calls are interrupts.
RUN = "agui_run"
APPROVE = "agui_approve"
ALL_TOOLS = "*"
VERSION = "1.0"
# The names of variants whose end tool_runs.py sends begin with these: for a page that joins a run, for the page of the
# run, and for this page before it resumes.
HELD = "held "
POSTED = f"{HELD}posted "
LIVE = f"{POSTED}live "
DECISION: Json = {
    "type": "object",
    "properties": {
        "result": {"description": "The result of the tool, which the client has run."},
        "approved": {"type": "boolean", "description": "false: the tool is not run."},
        "reason": {"type": "string", "description": "Why the call is denied."},
    },
}


class RunState(msgspec.Struct, frozen=True):
    """The run so far."""

    turn: TurnId
    answer: Answer
    is_1: bool = False
    """Whether the client declares AG-UI 1.0."""
    before: tuple[Json, ...] | None = None
    """The events of the thread's earlier runs, for a client that gets the whole thread."""
    reset: tuple[Json, ...] | None = None
    """The further messages of the snapshot with which the whole thread begins; None: there is no snapshot."""
    own: bytes | None = None
    """The messages of the client's request, as JSON."""
    run: str = ""
    """The id of the run, if it is not in the turn's metadata: it has decided interrupts."""
    known: frozenset[str] | None = None
    """The calls whose results in the turn's own messages the client has. None: all of them."""
    decided: tuple[Json, ...] = ()
    """The results of this turn's calls, while others wait for a decision."""
    holds: bool = False
    """Whether tool_runs.py sends the end of a run with calls that the page runs by itself."""
    request: Request | None = None


def render(state: RunState, stored: StoredEntry) -> tuple[Frame, RunState]:
    shown, state = _entry_events(state, stored.entry)
    encoded = encode_events(shown, stored.seq, state.turn)
    if state.holds and isinstance(stored.entry, End) and is_held(stored.entry):
        encoded = encoded[:-1]
    return (Frame(encoded) if shown else SILENT), state


def _entry_events(state: RunState, entry: Any) -> tuple[list[Json], RunState]:
    match entry:
        case Request() as request:
            # Without the input, so that it is small: a client resumes only after its first id.
            shown = [*(state.before or ()), _started(state, request), *_results(state, request)]
            return _with_reset(shown, state.reset), replace(state, request=request, before=None, reset=None)
        case Attempt(mode="restart", attempt=attempt) if state.request is not None:
            closing, before, _ = close_blocks(state.answer)
            answer = Answer(f"{state.turn}_{attempt}")
            snapshot = _snapshot(state, answer.name, state.request, has_reasoning=bool(before.reasonings))
            return [*closing, snapshot], replace(state, answer=answer)
        case Event(event=raw, is_hidden=False):
            shown, answer = add_event(state.answer, events.decode(raw), raw)
            return shown, replace(state, answer=answer)
        case End() as end if state.request is not None:
            return _end(state, state.request, end), state
        case _:
            return [], state


def _snapshot(state: RunState, answer: str, asked: Request | TurnRecord, *, has_reasoning: bool) -> Json:
    """Returns the event with which a client drops the answer so far. `answer` is the name of the next one.

    It has the messages of the client, with its ids, or those that the model gets.
    """
    if state.own is None:
        found = build_messages(asked.input if isinstance(asked, TurnRecord) else asked.messages, state.turn)
    else:
        found = msgspec.json.decode(state.own)
        results = [{"id": one["messageId"], **one} for one in _results(state, asked)]
        found += [{name: one[name] for name in ("id", "role", "toolCallId", "content")} for one in results]
    if has_reasoning:
        # HttpAgent keeps its reasoning messages unless the snapshot has one. An answer that begins with thinking fills
        # this one.
        found.append({"id": f"reasoning_{answer}_0", "role": "reasoning", "content": ""})
    return {"type": "MESSAGES_SNAPSHOT", "messages": found}


def _results(state: RunState, asked: Request | TurnRecord) -> list[Json]:
    """Returns the results that the client does not have: without them, it would not send the calls."""
    if (known := state.known) is None:
        return []
    return [one for one in result_events(state.turn, own_messages(asked)) if one["toolCallId"] not in known]


def result_events(turn: TurnId, messages: Sequence[Message]) -> list[Json]:
    """Returns the events of the results of tools in messages."""
    found = [one for one in build_messages(messages, turn) if one["role"] == "tool"]
    return [tool_result(turn, one["toolCallId"], one["content"]) for one in found]


def record_events(state: RunState, record: TurnRecord, seen: int = 0) -> list[Json]:
    """Returns the events of a whole turn. The state is that before its first entry. `seen`: see Dialect.render_record.

    A client that has a part of them drops the answer, and gets one with other ids.
    """
    name = f"{record.turn}_{record.attempts + 1}"
    shown, answer = add_blocks(Answer(name) if seen else state.answer, record.content)
    ended = _end(replace(state, answer=answer), record, record)
    if seen:
        snapshot = _snapshot(state, name, record, has_reasoning=bool(answer.reasonings))
        return [snapshot, *shown, *ended]
    started = [*(state.before or ()), _started(state, record), *_results(state, record)]
    return _with_reset([*started, *shown, *ended], state.reset)


def run_of(turn: TurnId, metadata: Mapping[str, str] | None) -> str:
    """Returns the id of the run of a turn: the client's, or the turn's own."""
    return (metadata or {}).get(RUN, turn)


def find_interrupts(calls: Mapping[str, str], metadata: Mapping[str, str] | None) -> list[Json]:
    """Returns the interrupts of a turn that ended with `calls`: the names of tools by call."""
    approved = (metadata or {}).get(APPROVE, "").split()
    return [
        {
            "id": call,
            "reason": "tool_call",
            "message": f"The call of {tool} waits for a decision.",
            "toolCallId": call,
            "responseSchema": DECISION,
        }
        for call, tool in calls.items()
        if ALL_TOOLS in approved or tool in approved
    ]


def is_held(end: End) -> bool:
    """Returns whether tool_runs.py sends the end of a turn: there may be calls that its page runs by itself."""
    return end.successor is None and has_waiting_calls(end)


def _started(state: RunState, asked: Request | TurnRecord) -> Json:
    """Returns the first event. It has the turn's own messages for a client that gets the whole thread."""
    names = _names(state, asked)
    version = {"protocolVersion": VERSION} if state.is_1 else {}
    given: Json = {}
    if state.before is not None:
        built = build_messages(own_messages(asked), state.turn)
        given = {"input": {**names, "messages": built, "tools": [], "context": [], "state": {}, "forwardedProps": {}}}
    return {"type": "RUN_STARTED", **names, **version, **given}


def _names(state: RunState, asked: Request | TurnRecord) -> Json:
    return {"threadId": asked.session, "runId": state.run or run_of(state.turn, asked.metadata)}


def _with_reset(shown: list[Json], reset: tuple[Json, ...] | None) -> list[Json]:
    """Returns events of which the first begins a run, with a snapshot in place of its input.

    A client that connects again drops the messages that it has, and would otherwise have them twice.
    """
    if reset is None:
        return shown
    first = {name: value for name, value in shown[0].items() if name != "input"}
    snapshot = {"type": "MESSAGES_SNAPSHOT", "messages": [*shown[0]["input"]["messages"], *reset]}
    return [first, snapshot, *shown[1:]]


def _end(state: RunState, asked: Request | TurnRecord, ended: End | TurnRecord) -> list[Json]:
    is_cut = ended.outcome != "completed" or not is_whole(ended.stop_reason)
    closing, answer = close_answer(state.answer, is_cut=is_cut, waits=has_waiting_calls(ended))
    decided = {one["toolCallId"] for one in state.decided}
    calls = {call: tool for call, tool in answer.calls.items() if call not in decided}
    closing += state.decided
    facts = custom(
        "end",
        {
            "turn": state.turn,
            "outcome": ended.outcome,
            "stop_reason": ended.stop_reason,
            "model": ended.answered_by or asked.model,
            "usage": asdict(ended.usage),
            "usage_is_estimated": ended.usage_is_estimated,
            "cost_usd": ended.cost_usd,
        },
    )
    usage = {"usage": _usage(ended, ended.answered_by or asked.model)} if state.is_1 else {}
    if ended.outcome == "failed":
        failure = ended.error or LOST
        return [*closing, facts, {"type": "RUN_ERROR", "message": failure.message, "code": failure.code, **usage}]
    outcome: Json = {}
    if ended.outcome == "completed":
        if interrupts := find_interrupts(calls, asked.metadata):
            outcome = {"outcome": {"type": "interrupt", "interrupts": interrupts}}
        elif not calls:
            outcome = {"outcome": {"type": "success"}}
        elif state.is_1:
            outcome = {"outcome": {"type": "success", "pendingToolCallIds": list(calls)}}
        # For clients before 1.0, a success has no open calls: assistant-ui would not run its tools.
    elif state.is_1:
        outcome = {"outcome": {"type": "cancelled"}}
    # AG-UI has no outcome for an answer that is not whole.
    warnings = warnings_of(ended, (), state.turn)
    result = {"result": {"warnings": warnings}} if warnings else {}
    return [*closing, facts, {"type": "RUN_FINISHED", **_names(state, asked), **outcome, **result, **usage}]


def _usage(ended: End | TurnRecord, model: str) -> list[Json]:
    """Returns the tokens by model. AG-UI counts the tokens of the cache among those of the input."""
    used: Mapping[str, Usage] = ended.by_model or {model: ended.usage}
    return [
        {
            "provider": "anthropic",
            "model": name,
            "inputTokens": one.input_tokens + one.cache_read_input_tokens + one.cache_creation_input_tokens,
            "outputTokens": one.output_tokens,
            "cachedInputTokens": one.cache_read_input_tokens,
            "cacheWriteInputTokens": one.cache_creation_input_tokens,
        }
        for name, one in used.items()
    ]


def make_dialect(variant: str = "", *, is_1: bool, **given: Any) -> Dialect:
    """Returns a dialect. `given` are further fields of RunState, and `variant` names their values for a turn."""

    def start(key: TurnKey) -> RunState:
        return RunState(key.turn, Answer(key.turn), is_1, holds=variant.startswith(HELD), **given)

    def render_record(record: TurnRecord, seen: int) -> Frame:
        shown = record_events(start(TurnKey(LOCAL, record.turn)), record, seen)
        return Frame(encode_events(shown, record.cursor, record.turn, first=seen))

    async def with_history(history: HistoryClient, key: ScopedKey, record: TurnRecord) -> Dialect:
        messages = record.input
        if record.parent is not None:
            context = await history.query(key.scope, GetContext(record.session, record.parent))
            messages = [*context.messages, *messages]
        own = msgspec.json.encode(build_messages(messages, record.turn))
        return make_dialect(is_1=is_1, **given | {"own": own, "known": None})

    return Dialect(
        name="ag-ui-1" if is_1 else "ag-ui",
        variant=variant,
        start=start,
        render=render,
        render_record=render_record,
        can_reset=True,
        is_stateful=True,
        goes_on=True,
        with_history=None if given.get("own") else with_history,
    )


AG_UI = make_dialect(is_1=False)
AG_UI_1 = make_dialect(is_1=True)
# Of a client that may have the messages of the thread as they were before another one has sent results.
JOINED = make_dialect(f"{HELD}joined", is_1=False, known=frozenset())
