"""The history of a chat equals the messages that the AI SDK builds from its streams."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from tailrace.proto import events
from tailrace.proto.entries import Failure, Message
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.protocols.ai_sdk import message
from tailrace.protocols.ai_sdk.stream import UI, record_chunks
from tests.clients import node
from tests.harness.turn_builder import Handwritten, opening_events

ALICE = Tenant("alice")
OVERLOADED = Failure("backend_overloaded", "Claude is overloaded")
CALL = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
SEARCH = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "https://a"}]}
SEARCH_ERROR = FOUND | {"content": {"type": "web_search_tool_result_error", "error_code": "unavailable"}}
MCP_CALL = {"type": "mcp_tool_use", "id": "m1", "name": "look", "server_name": "s", "input": {"q": 1}}
MCP_RESULT = {
    "type": "mcp_tool_result",
    "tool_use_id": "m1",
    "is_error": True,
    "content": [{"type": "text", "text": "no"}],
}
CODE = {"type": "server_tool_use", "id": "b1", "name": "bash_code_execution", "input": {"command": "ls"}}
CODE_RESULT = {
    "type": "bash_code_execution_tool_result",
    "tool_use_id": "b1",
    "content": {"type": "bash_code_execution_result", "stdout": "a", "stderr": "", "return_code": 0, "content": []},
}
COMPACTION = {"type": "compaction", "content": "so far", "encrypted_content": None}
FALLBACK = {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}, "trigger": {"type": "refusal"}}
UPLOAD = {"type": "container_upload", "file_id": "file_1"}
CITED = {"type": "web_search_result_location", "url": "https://a", "title": "A", "cited_text": "a"}


class Block(NamedTuple):
    start: dict[str, Any]
    deltas: Sequence[events.Delta] = ()
    is_closed: bool = True


def log_of(outcome: Any, *blocks: Block) -> Handwritten:
    log = Handwritten()
    log.store_request()
    log.store_attempt()
    log.store_events(opening_events()[0])
    for index, block in enumerate(blocks):
        log.store_events(
            events.BlockStart(index, block.start), *(events.BlockDelta(index, delta) for delta in block.deltas)
        )
        if block.is_closed:
            log.store_events(events.BlockStop(index))
    log.end(outcome, OVERLOADED if outcome == "failed" else None)
    return log


TEXT = Block(
    {"type": "text", "text": ""}, [events.TextDelta("a "), events.TextDelta("b"), events.CitationsDelta(CITED)]
)
THOUGHT = Block({"type": "thinking"}, [events.ThinkingDelta("hm"), events.SignatureDelta("sig")])
HIDDEN = Block({"type": "redacted_thinking", "data": "xyz"})
CALLED = Block(CALL, [events.InputJsonDelta('{"q":'), events.InputJsonDelta(" [1]}")])
SEARCHED = (Block(SEARCH, [events.InputJsonDelta('{"query":"a"}')]), Block(FOUND))
HALF = Block({"type": "text", "text": ""}, [events.TextDelta("half")], is_closed=False)
HALF_A_CALL = Block(CALL, [events.InputJsonDelta('{"q')], is_closed=False)

LOGS = {
    "text and thought": log_of("completed", THOUGHT, TEXT),
    "hidden thought": log_of("completed", HIDDEN, TEXT),
    "a call": log_of("completed", THOUGHT, TEXT, CALLED),
    "a search": log_of("completed", TEXT, *SEARCHED),
    "tools of an MCP server": log_of("completed", Block(MCP_CALL), Block(MCP_RESULT), Block(MCP_CALL | {"id": "m2"})),
    "an error of a tool": log_of("completed", Block(SEARCH | {"input": {"query": "a"}}), Block(SEARCH_ERROR), TEXT),
    "code": log_of("completed", Block(CODE), Block(CODE_RESULT), TEXT),
    "other blocks": log_of("completed", Block(COMPACTION), TEXT, Block(FALLBACK), Block(UPLOAD)),
    "a result without its call": log_of("completed", Block(FOUND), TEXT),
    "a whole call": log_of("completed", Block(CALL | {"input": {"q": 1}})),
    "a whole thought": log_of("completed", Block({"type": "thinking", "thinking": "hm", "signature": "s"}), TEXT),
    "failed": log_of("failed", THOUGHT, TEXT),
    "cancelled": log_of("cancelled", THOUGHT, HALF),
    "half a call": log_of("cancelled", TEXT, HALF_A_CALL),
    "nothing": log_of("completed"),
}


def render_stream(log: Handwritten) -> list[dict[str, Any]]:
    state, data = UI.start(TurnKey(ALICE, TurnId("t1"))), b""
    for stored in log.stored:
        frame, state = UI.render(state, stored)
        data += frame.data
    lines = [line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


def render_record(log: Handwritten, turn: str = "t1") -> TurnRecord:
    return record_from_fold(TurnKey(ALICE, TurnId(turn)), log.turn)


def to_plain_json(value: object) -> Any:
    return json.loads(msgspec.json.encode(value))


def without_open_calls(shown: dict[str, Any]) -> dict[str, Any]:
    return {**shown, "parts": [part for part in shown["parts"] if part.get("state") != "input-streaming"]}


@pytest.mark.proves("ui", "read from the history", "ai (Node)")
async def test_history_equals_the_clients_messages() -> None:
    """Every kind of part and of end, from the log and from the database. A call that was cut is left out."""
    live = [render_stream(log) for log in LOGS.values()]
    late = [to_plain_json(record_chunks(render_record(log))) for log in LOGS.values()]
    seen = [without_open_calls(one) for one in await node.run("messages.mjs", json.dumps(live + late))]
    kept = [to_plain_json(message.build_messages([render_record(log)])[1]) for log in LOGS.values()]
    assert dict(zip(LOGS, seen[: len(LOGS)], strict=True)) == dict(zip(LOGS, kept, strict=True))
    assert dict(zip(LOGS, seen[len(LOGS) :], strict=True)) == dict(zip(LOGS, kept, strict=True))


@pytest.mark.parametrize("package", ["ai", "ai-v5", "ai-v6"])
async def test_no_version_of_the_sdk_rejects_a_chunk(package: str) -> None:
    """In the transport of `useChat`, with its schema. A failed answer has its own error, and no other."""
    logs = {name: log for name, log in LOGS.items() if name != "failed"}
    live = [render_stream(log) for log in logs.values()]
    late = [to_plain_json(record_chunks(render_record(log))) for log in logs.values()]
    found = await node.run("ui-chunks.mjs", package, json.dumps(live + late))
    assert [one["errors"] for one in found] == [[]] * len(found)
    shown = dict(zip(logs, found, strict=False))
    tools = [part for part in shown["tools of an MCP server"]["message"]["parts"] if part["type"] == "dynamic-tool"]
    assert [(part["toolName"], part["state"]) for part in tools] == [
        ("look", "output-error"),
        ("look", "input-available"),
    ]
    kinds = [part["type"] for part in shown["other blocks"]["message"]["parts"]]
    assert kinds[2:] == ["data-compaction", "text", "source-url", "data-fallback", "data-container_upload"]


@pytest.mark.proves("ui", "answer continues after a tool result", "ai (Node)")
async def test_message_of_two_turns_is_one_in_the_history() -> None:
    """The tool result is in the call, and the rest is a step of its own."""
    call = render_record(LOGS["a call"])
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": '{"found":1}'}]}
    rest = log_of("completed", TEXT)
    after = msgspec.structs.replace(
        render_record(rest, "t2"), parent="t1", metadata={"ui_message": "msg_t1"}, input=[Message("user", [result])]
    )
    output = {"type": "tool-output-available", "toolCallId": "c1", "output": {"found": 1}}
    (seen,) = await node.run(
        "messages.mjs", json.dumps([to_plain_json([*record_chunks(call), output, *record_chunks(after)])])
    )
    _, kept = message.build_messages([call, after])
    assert to_plain_json(kept) == seen
