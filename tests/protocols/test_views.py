"""One state, every view: what each view of a chat shows of its calls and their results. Pure.

A view is what a client has that has followed all streams of a chat (from the log or from the database), or that has
loaded the chat once. All views of a state agree.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import pytest

from tailrace.features.client_calls.records import Decision, result_block
from tailrace.features.gateway import DIALECTS
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.proto import events
from tailrace.proto.entries import Message
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.protocols.ag_ui.runs import Thread
from tailrace.protocols.ag_ui.stream import JOINED
from tailrace.protocols.ai_sdk.message import build_messages
from tailrace.protocols.ai_sdk.stream import Earlier, replay_dialect, step_chunks
from tailrace.protocols.common.earlier_steps import is_question, steps_of
from tailrace.protocols.common.newest_branch import Branch
from tailrace.protocols.openai.responses_input import items_of
from tailrace.protocols.openai.responses_stream import response_of
from tests.harness.sse_parser import parse
from tests.harness.turn_builder import Handwritten, attempted_turn, block_events, opening_events

Json = dict[str, Any]
Shown = dict[str, str | None]
"""The result of each call; None: the call waits."""
Said = list[tuple[str, str]]
"""The texts in their order, each with its role."""

SEARCH: Json = {"type": "server_tool_use", "id": "srvtoolu_01S", "name": "web_search", "input": {"query": "rivers"}}
LOOK: Json = {"type": "tool_use", "id": "toolu_01L", "name": "look", "input": {"q": 1}}
BUY: Json = {**LOOK, "id": "toolu_01B", "name": "buy"}
PAGES: list[Json] = [
    {"type": "web_search_result", "url": "https://a.example/1", "title": "A", "encrypted_content": "EE"}
]
FOUND: Json = {"type": "web_search_tool_result", "tool_use_id": SEARCH["id"], "content": PAGES}
REFUSED: Json = {**FOUND, "content": {"type": "web_search_tool_result_error", "error_code": "unavailable"}}
TEXT: Json = {"type": "text", "text": "Done."}


def result(call: Json, text: str) -> Json:
    return result_block(call["id"], Decision(result=text))


class State(NamedTuple):
    """The turns of a chat, each with its own messages, its answer and its stop reason."""

    turns: "list[Turn]"
    decided: tuple[Json, ...] = ()
    """The results of calls of the newest turn, while others wait."""

    def logs(self) -> Iterable[tuple[TurnKey, Handwritten]]:
        earlier: list[Message] = []
        question = 1
        for number, (own, answer, stop_reason) in enumerate(self.turns, 1):
            # The page of `useChat` that has asked sends the results of its tools.
            question = number if any(map(is_question, own)) else question
            metadata = {"ui_message": f"msg_turn-{question}"} if number > question else None
            asked: Json = {"messages": [*earlier, *own], "history": len(earlier), "metadata": metadata}
            blocks = [event for index, block in enumerate(answer) for event in block_events(index, block)]
            stop = events.MessageDelta(events.StopReason(stop_reason))
            log = attempted_turn(opening_events()[0], *blocks, stop, **asked)
            log.end()
            yield TurnKey(Tenant("alice"), TurnId(f"turn-{number}")), log
            earlier += [*own, Message("assistant", answer)]

    @property
    def records(self) -> list[TurnRecord]:
        return [record_from_fold(key, log.turn) for key, log in self.logs()]

    @property
    def branch(self) -> Branch:
        return Branch(self.records, [Message("user", list(self.decided))] if self.decided else [])


Turn = tuple[list[Message], list[Json], str]
QUESTION = Message("user", "Where?")
ASKED: Turn = ([QUESTION], [SEARCH, LOOK], "tool_use")
BOTH: Turn = ([QUESTION], [LOOK, BUY], "tool_use")
ANSWERED = [Message("user", [result(LOOK, "blue")])]
STATES: dict[str, tuple[State, Shown]] = {
    "a server tool waits for the client's tool beside it": (
        State([ASKED]),
        {SEARCH["id"]: None, LOOK["id"]: None},
    ),
    "its result begins the next answer": (
        State([ASKED, (ANSWERED, [FOUND, TEXT], "end_turn")]),
        {SEARCH["id"]: "https://a.example/1", LOOK["id"]: "blue"},
    ),
    "its error begins the next answer": (
        State([ASKED, (ANSWERED, [REFUSED, TEXT], "end_turn")]),
        {SEARCH["id"]: "unavailable", LOOK["id"]: "blue"},
    ),
    "a call before a pause": (State([([QUESTION], [SEARCH], "pause_turn")]), {SEARCH["id"]: None}),
    "the result of a call before a pause": (
        State([([QUESTION], [SEARCH], "pause_turn"), ([], [FOUND, TEXT], "end_turn")]),
        {SEARCH["id"]: "https://a.example/1"},
    ),
    "all calls are decided": (
        State([BOTH, ([Message("user", [result(LOOK, "blue"), result(BUY, "1 kg")])], [TEXT], "end_turn")]),
        {LOOK["id"]: "blue", BUY["id"]: "1 kg"},
    ),
    "two turns were decided": (
        State(
            [
                ([QUESTION], [LOOK], "tool_use"),
                (ANSWERED, [BUY], "tool_use"),
                ([Message("user", [result(BUY, "1 kg")])], [TEXT], "end_turn"),
            ]
        ),
        {LOOK["id"]: "blue", BUY["id"]: "1 kg"},
    ),
}
DECIDED = State([BOTH], (result(LOOK, "blue"),))
# Only `POST /v1/turns` and Anthropic's protocol have a question beside results. The context of a page of AG-UI, and a
# system message that only sets the effort, are no messages.
BESIDE = Message("user", [result(LOOK, "blue"), {"type": "text", "text": "And how deep?"}])
UNSEEN = [Message("system", "The page is dark.", clear_at="next_user_message"), Message("system", "")]
ASKED_BESIDE = State(
    [
        ([QUESTION, *UNSEEN], [LOOK], "tool_use"),
        ([BESIDE, *UNSEEN], [TEXT, BUY], "tool_use"),
        ([Message("user", [result(BUY, "1 kg")])], [TEXT], "end_turn"),
    ]
)


def stream_of(dialect: Dialect, key: TurnKey, log: Handwritten) -> list[Json]:
    state, data = dialect.start(key), b""
    for stored in log.stored:
        frame, state = dialect.render(state, stored)
        data += frame.data
    return chunks(data)


def record_of(dialect: Dialect, key: TurnKey, log: Handwritten) -> list[Json]:
    return chunks(dialect.render_record(record_from_fold(key, log.turn), 0).data)


def chunks(data: bytes) -> list[Json]:
    return [json.loads(event.data) for event in parse(data) if event.data != "[DONE]"]


def ui_shown(found: Iterable[Json], shown: Shown) -> Shown:
    """Reads chunks as the package `ai` does, which raises an error for a result without its call."""
    for chunk in found:
        match chunk:
            case {"type": "tool-input-available", "toolCallId": call}:
                shown[call] = None
            case {"type": "tool-output-available", "toolCallId": call, "output": output}:
                assert call in shown
                shown[call] = json.dumps(output)
            case {"type": "tool-output-error", "toolCallId": call, "errorText": text}:
                assert call in shown
                shown[call] = text
    return shown


def ui_followed(read: Callable[[Dialect, TurnKey, Handwritten], list[Json]]) -> Callable[[State], Shown]:
    """The page that has asked, and sends the results."""

    def view(state: State) -> Shown:
        shown: Shown = {}
        for key, log in state.logs():
            results = [block for message in messages_of(log) for block in results_in(message)]
            shown |= {block["tool_use_id"]: block["content"] for block in results}
            ui_shown(read(DIALECTS["ui"], key, log), shown)
        return shown

    return view


def messages_of(log: Handwritten) -> list[Message]:
    assert log.turn.request is not None
    return log.turn.request.messages


def results_in(message: Message) -> list[Json]:
    return (
        [block for block in message.content if block["type"] == "tool_result"]
        if isinstance(message.content, list)
        else []
    )


def ui_replayed(read: Callable[[Dialect, TurnKey, Handwritten], list[Json]]) -> Callable[[State], Shown]:
    """A page without messages that reads the newest turn."""

    def view(state: State) -> Shown:
        key, log = list(state.logs())[-1]
        steps = step_chunks(steps_of(messages_of(log)))
        found = read(replay_dialect(Earlier("msg_turn-1", steps)), key, log)
        assert found[0]["messageId"] == "msg_turn-1"
        return ui_shown(found, {})

    return view


def ui_loaded(state: State) -> Shown:
    messages = build_messages(*state.branch)
    asked = sum(map(is_question, [message for turn in state.turns for message in turn[0]]))
    assert [one.role for one in messages] == ["user", "assistant"] * asked
    assert messages[1].id == "msg_turn-1"
    parts = [part for one in messages for part in one.parts if "toolCallId" in part]
    assert {part["state"] for part in parts} <= {"input-available", "output-available", "output-error"}
    return {
        part["toolCallId"]: part["errorText"]
        if "errorText" in part
        else json.dumps(part["output"])
        if "output" in part
        else None
        for part in parts
    }


def ag_ui_shown(found: Iterable[Json], shown: Shown) -> Shown:
    for event in found:
        match event:
            case {"type": "TOOL_CALL_START", "toolCallId": call}:
                shown[call] = None
            case {"type": "TOOL_CALL_RESULT", "toolCallId": call, "content": content}:
                assert call in shown
                shown[call] = content
            case {"type": "RUN_STARTED", "input": {"messages": messages}} | {
                "type": "MESSAGES_SNAPSHOT",
                "messages": messages,
            }:
                shown |= {one["toolCallId"]: one["content"] for one in messages if one["role"] == "tool"}
    return shown


def ag_ui_followed(
    read: Callable[[Dialect, TurnKey, Handwritten], list[Json]], dialect: Dialect
) -> Callable[[State], Shown]:
    def view(state: State) -> Shown:
        shown: Shown = {}
        for key, log in state.logs():
            ag_ui_shown(read(dialect, key, log), shown)
        return shown

    return view


def connected(read: Callable[[Dialect, TurnKey, Handwritten], list[Json]]) -> Callable[[State], Shown]:
    def view(state: State) -> Shown:
        key, log = list(state.logs())[-1]
        return ag_ui_shown(read(Thread(state.branch).dialect(is_1=True, has_reasoning=False), key, log), {})

    return view


def page(state: State) -> Shown:
    parts = [part for message in Thread(state.branch).page("run")["messages"] for part in message["parts"]]
    calls = {part["id"]: part.get("output") for part in parts if part["type"] == "tool-call"}
    results = {part["toolCallId"]: part["content"] for part in parts if part["type"] == "tool-result"}
    assert [call for call, output in calls.items() if output is not None] == [call for call in calls if call in results]
    return {call: results.get(call) for call in calls}


LOADED: dict[str, Callable[[State], Shown]] = {
    "ui: messages": ui_loaded,
    "ag-ui: page": page,
    "ag-ui: connect": connected(stream_of),
    "ag-ui: connect, database": connected(record_of),
}
FOLLOWED: dict[str, Callable[[State], Shown]] = {
    "ui: streams": ui_followed(stream_of),
    "ui: streams, database": ui_followed(record_of),
    "ui: replay": ui_replayed(stream_of),
    "ui: replay, database": ui_replayed(record_of),
    "ag-ui: joined": ag_ui_followed(stream_of, JOINED),
    "ag-ui: joined, database": ag_ui_followed(record_of, JOINED),
}


@pytest.mark.parametrize("view", LOADED | FOLLOWED)
@pytest.mark.parametrize("state", STATES)
def test_a_view_shows_the_result_of_each_call(state: str, view: str) -> None:
    given, expected = STATES[state]
    shown = (LOADED | FOLLOWED)[view](given)
    assert shown.keys() == expected.keys()
    for call, text in expected.items():
        assert (shown[call] is None) == (text is None)
        assert (text or "") in (shown[call] or "")


@pytest.mark.parametrize("view", LOADED)
def test_a_decided_call_is_shown_while_another_one_waits(view: str) -> None:
    shown = LOADED[view](DECIDED)
    assert shown == {LOOK["id"]: shown[LOOK["id"]], BUY["id"]: None}
    assert "blue" in (shown[LOOK["id"]] or "")


def ui_said(state: State) -> Said:
    messages = build_messages(*state.branch)
    assert len({one.id for one in messages}) == len(messages)
    return [(one.role, part["text"]) for one in messages for part in one.parts if part["type"] == "text"]


def page_said(state: State) -> Said:
    messages = Thread(state.branch).page("run")["messages"]
    return [(one["role"], part["content"]) for one in messages for part in one["parts"] if part["type"] == "text"]


def connect_said(read: Callable[[Dialect, TurnKey, Handwritten], list[Json]]) -> Callable[[State], Said]:
    def view(state: State) -> Said:
        key, log = list(state.logs())[-1]
        found: Said = []
        for event in read(Thread(state.branch).dialect(is_1=True, has_reasoning=False), key, log):
            messages = event.get("messages") or event.get("input", {}).get("messages", [])
            found += [(one["role"], one["content"]) for one in messages if one["role"] != "tool"]
            if event["type"] == "TEXT_MESSAGE_CONTENT":
                found.append(("assistant", event["delta"]))
        return found

    return view


def items_said(state: State) -> Said:
    """The input items of each response, and its output."""
    items = [item for one in state.records for item in [*items_of(one.turn, one.input), *response_of(one)["output"]]]
    return [(one["role"], part["text"]) for one in items if one["type"] == "message" for part in one["content"]]


SAID: dict[str, Callable[[State], Said]] = {
    "ui: messages": ui_said,
    "ag-ui: page": page_said,
    "ag-ui: connect": connect_said(stream_of),
    "ag-ui: connect, database": connect_said(record_of),
    "responses: items": items_said,
}


@pytest.mark.parametrize("view", SAID)
def test_a_view_shows_a_question_beside_results(view: str) -> None:
    said = SAID[view](ASKED_BESIDE)
    questions = [("user", "Where?"), ("user", "And how deep?")]
    assert said == [*questions, ("assistant", "Done."), ("assistant", "Done.")]


@pytest.mark.parametrize("view", [*LOADED, "ui: streams", "ui: streams, database"])
def test_a_view_shows_the_results_beside_a_question(view: str) -> None:
    """They are of the answer before the question, and the answer behind it is another message."""
    shown = (LOADED | FOLLOWED)[view](ASKED_BESIDE)
    assert [(call, (text or "").strip('"')) for call, text in shown.items()] == [
        (LOOK["id"], "blue"),
        (BUY["id"], "1 kg"),
    ]
    calls = {
        one.id: [part["toolCallId"] for part in one.parts if "toolCallId" in part]
        for one in build_messages(*ASKED_BESIDE.branch)
    }
    assert [calls["msg_turn-1"], calls["msg_turn-2"]] == [[LOOK["id"]], [BUY["id"]]]


RESULT_TYPES = {
    "web_search_tool_result": "web_search_call",
    "web_fetch_tool_result": "web_search_call",
    "bash_code_execution_tool_result": "code_interpreter_call",
    "mcp_tool_result": "mcp_call",
}


@pytest.mark.parametrize("kind", RESULT_TYPES)
def test_a_response_shows_a_result_whose_call_is_in_the_response_before(kind: str) -> None:
    """Live, from the database, as JSON, and while it runs. The call was not failed, and not made up again."""
    content: Any = {"type": f"{kind}_x", "stdout": "1", "stderr": ""} if "code" in kind else PAGES
    found = {"type": kind, "tool_use_id": SEARCH["id"], "content": content}
    state = State([ASKED, (ANSWERED, [found, TEXT], "end_turn")])
    (first_key, first), (key, log) = state.logs()
    dialect = DIALECTS["openai-responses"]
    assert dialect.render_json is not None
    for one, turn, expected in (
        (first_key, first, [("web_search_call", "in_progress"), ("function_call", "completed")]),
        (key, log, [(RESULT_TYPES[kind], "completed"), ("message", "completed")]),
    ):
        record = record_from_fold(one, turn.turn)
        whole = json.loads(dialect.render_json(record))["output"]
        assert [(shown["type"], shown["status"]) for shown in whole] == expected
        for data in (stream_of(dialect, one, turn), record_of(dialect, one, turn)):
            assert data[-1]["response"]["output"] == whole
            done = [event["item"] for event in data if event["type"] == "response.output_item.done"]
            assert sorted(done, key=str) == sorted(whole, key=str)
    running = response_of(msgspec.structs.replace(record, outcome="running", stop_reason=None))
    assert running["output"][0] == whole[0]
    if kind == "web_search_tool_result":
        assert whole[0]["action"]["sources"] == [{"type": "url", "url": "https://a.example/1"}]


@pytest.mark.parametrize("is_1", [False, True])
@pytest.mark.parametrize(
    ("state", "approve", "outcome", "outcome_1"),
    [
        (STATES["its result begins the next answer"][0], "", {"type": "success"}, {"type": "success"}),
        (State([ASKED]), "", None, {"type": "success", "pendingToolCallIds": [LOOK["id"]]}),
        (State([BOTH]), "look", [LOOK["id"]], [LOOK["id"]]),
        (State([BOTH]), "*", [LOOK["id"], BUY["id"]], [LOOK["id"], BUY["id"]]),
        (DECIDED, "*", [BUY["id"]], [BUY["id"]]),
        (DECIDED, "", None, {"type": "success", "pendingToolCallIds": [BUY["id"]]}),
        (State([([QUESTION], [SEARCH], "pause_turn")]), "*", {"type": "success"}, {"type": "success"}),
    ],
)
def test_a_run_ends_with_the_calls_that_wait(
    state: State, approve: str, outcome: Json | list[str] | None, outcome_1: Json | list[str], *, is_1: bool
) -> None:
    """For clients before 1.0, a success has no open calls: assistant-ui would not run its tools after one."""
    branch = state.branch
    turns = [msgspec.structs.replace(one, metadata={"agui_approve": approve}) for one in branch.turns]
    thread = Thread(Branch(turns, branch.decided))
    shown = chunks(thread.dialect(is_1=is_1, has_reasoning=False).render_record(turns[-1], 0).data)
    found = shown[-1].get("outcome")
    waiting = [one["id"] for one in found["interrupts"]] if found and found["type"] == "interrupt" else found
    assert (shown[-1]["type"], waiting) == ("RUN_FINISHED", outcome_1 if is_1 else outcome)
    pending = thread.page("run")["interrupts"]
    assert (pending and [one["id"] for one in pending["pending"]]) == (waiting if isinstance(waiting, list) else None)
