"""Claude Code's output becomes one message; a block or call that broke off is not completed."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.features.claude_code.backend import ClaudeCode
from tailrace.features.claude_code.generator import ClaudeCodeSettings
from tailrace.features.claude_code.output import ClaudeCodeOutput
from tailrace.generators.backends import Call
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import CloseCall, ModelEvent
from tailrace.generators.settings import Settings
from tailrace.proto.entries import Message
from tailrace.proto.errors import BACKEND_MESSAGE_CHARS_MAX, BackendError
from tailrace.proto.events import UnknownEvent
from tailrace.proto.fold import Turn
from tailrace.proto.pricing import price_calls
from tailrace.proto.thinking_prefix import find_stored_thinking
from tailrace.proto.usage import Usage
from tests.harness.answers import answer_of
from tests.harness.cost_limits import limit_cost
from tests.harness.turn_builder import Handwritten, request


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "stream_event", "event": {"type": kind, **fields}, "parent_tool_use_id": None}


def begin(input_tokens: int = 5, model: str = "claude-sonnet-5-5") -> dict[str, Any]:
    usage = {"input_tokens": input_tokens, "output_tokens": 1}
    return event("message_start", message={"id": "msg_1", "model": model, "usage": usage})


def block(index: int, kind: str, *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    tool = {"id": "toolu_1", "name": "Bash", "input": {}} if kind == "tool_use" else {"text": ""}
    start = event("content_block_start", index=index, content_block={"type": kind, **tool})
    lines = [event("content_block_delta", index=index, delta=delta) for delta in deltas]
    return [start, *lines, event("content_block_stop", index=index)]


def text(index: int, words: str) -> list[dict[str, Any]]:
    return block(index, "text", {"type": "text_delta", "text": words})


def finish(reason: str | None, output_tokens: int) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [event("message_delta", delta=delta, usage={"output_tokens": output_tokens}), event("message_stop")]


RESULT = {"type": "result", "subtype": "success", "is_error": False, "result": "x"}
TOOL = block(1, "tool_use", {"type": "input_json_delta", "partial_json": "{}"})
ROUND = [begin(5), *text(0, "I look. "), *TOOL, *finish("tool_use", 7), {"type": "user", "message": {}}]


def read(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the events, checked for their order."""
    output, order = ClaudeCodeOutput(), EventOrder()
    events = []
    for line in lines:
        for event in output.read(msgspec.json.encode(line)):
            order.accept(event)
            events.append(msgspec.json.decode(event.raw))
    return events


def test_several_model_calls_become_one_message() -> None:
    """One start that readers see, blocks numbered on, the usage of each call; a tool call is one that was executed."""
    output = read([{"type": "system"}, *ROUND, begin(9), *text(0, "Found."), *finish("end_turn", 3), RESULT])
    starts = [(e["index"], e["content_block"]["type"]) for e in output if e["type"] == "content_block_start"]
    assert starts == [(0, "text"), (1, "server_tool_use"), (2, "text")]
    tools = [e["content_block"] for e in output if e["type"] == "content_block_start" and e["index"] == 1]
    assert [tool["executed_by"] for tool in tools] == ["claude_code"]
    deltas = [e["delta"] for e in output if e["type"] == "content_block_delta"]
    assert [one.get("text", one.get("partial_json")) for one in deltas] == ["I look. ", "{}", "Found."]
    assert [e["type"] for e in output].count("message_start") == 2
    assert output[-1]["delta"]["stop_reason"] == "end_turn"
    assert [e["usage"]["output_tokens"] for e in output if e["type"] == "message_delta"] == [7, 3]


@pytest.mark.rule("R140")
def test_thinking_of_claude_code_is_not_for_the_api() -> None:
    """Claude Code has written the prompt of each of its calls, which the API would compare with ours."""
    output = ClaudeCodeOutput()
    found = [event for line in (*ROUND, begin(9)) for event in output.read(msgspec.json.encode(line))]
    prefixes = [event.prefix for event in found if event.kind == "message_start"]
    assert len(prefixes) == 2
    for prefix in prefixes:
        assert prefix is not None
        [thinking] = find_stored_thinking([prefix], [{"type": "thinking", "thinking": "", "signature": "s"}])
        assert thinking.prefix == ""


def fold_of(lines: list[dict[str, Any]], max_cost_nano_usd: int | None = None) -> Turn:
    """Returns the fold of a log with the events of these lines. Raises CloseCall at the cost limit."""
    log, output = Handwritten(), ClaudeCodeOutput()
    log.store_request(max_cost_nano_usd=max_cost_nano_usd)
    log.store_attempt()

    def store(one: ModelEvent) -> None:
        assert not isinstance(one.event, UnknownEvent)
        log.store_events(one.event, is_hidden=one.is_hidden)

    sink = limit_cost(store, request(max_cost_nano_usd=max_cost_nano_usd), log.turn)
    for line in lines:
        for event in output.read(msgspec.json.encode(line)):
            sink(event)
    return log.turn


def test_the_usage_of_ended_calls_is_in_the_log_while_a_tool_runs() -> None:
    """So it counts when the answer is cancelled or its generator is killed; a further call adds its prompt."""
    whole = [*ROUND, begin(9), *TOOL, *finish("tool_use", 3), begin(11), *text(0, "Found."), *finish("end_turn", 2)]
    assert fold_of(ROUND).usage == Usage(5, 7)
    assert fold_of([*ROUND, begin(9)]).usage == Usage(14, 8)
    assert fold_of(whole[:-2]).usage.input_tokens == 25
    turn = fold_of([*whole, RESULT])
    assert (turn.usage, turn.text, turn.stop.stop_reason) == (Usage(25, 12), "I look. Found.", "end_turn")


@pytest.mark.rule("R23")
def test_each_call_has_the_price_of_its_own_prompt() -> None:
    """Haiku 5.5 has a higher price from 100,000 tokens on. The rounds have 50,000 each."""
    start = begin(50_000, "claude-haiku-5-5")
    rounds = [start, *ROUND[1:]] * 3
    turn = fold_of([*rounds, start, *text(0, "Found."), *finish("end_turn", 3), RESULT])
    assert turn.usage == Usage(200_000, 3 * 7 + 3)
    assert price_calls("claude-haiku-5-5", turn.calls).total.cost_nano_usd == 200_000 * 100 + 24 * 500
    assert turn.message is not None
    assert turn.message.usage.input_tokens == 50_000


@pytest.mark.rule("R41")
def test_an_answer_whose_last_call_reaches_the_cost_limit_is_complete() -> None:
    """As with the API: the usage and the stop reason are one event."""
    lines = [begin(9), *text(0, "Found."), *finish("end_turn", 3), RESULT]
    cost = price_calls(request().model, fold_of(lines).calls).total.cost_nano_usd
    # All lines but the result fit: no event before it has the usage that reaches the limit.
    turn = fold_of(lines[:-1], max_cost_nano_usd=cost)
    assert (turn.text, turn.stop.stop_reason) == ("Found.", None)
    with pytest.raises(CloseCall):
        fold_of(lines, max_cost_nano_usd=cost)


@pytest.mark.rule("R41")
def test_the_cost_limit_stops_a_loop_of_tool_calls() -> None:
    """One round costs less than the limit, and three cost more."""
    limit = 2 * (5 * 2000 + 7 * 10_000)
    assert not fold_of(ROUND, limit).is_usage_estimated
    with pytest.raises(CloseCall):
        fold_of(ROUND * 3, limit)


@pytest.mark.parametrize("last", [[{**RESULT, "is_error": True}], []])
async def test_the_usage_of_the_last_call_counts_if_no_result_follows(
    last: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The result is an error, or Claude Code ends without one."""
    program, printed = tmp_path / "claude", tmp_path / "printed"
    lines = [begin(), *text(0, "Half a wo"), *finish("max_tokens", 4096), *last]
    printed.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    program.write_text(f"#!/bin/sh\ncat > /dev/null\ncat {printed}\n")
    program.chmod(0o700)
    backend = ClaudeCode(program, Settings(anthropic_api_key="key"), ClaudeCodeSettings(claude_code_root=tmp_path))
    call = Call(model="claude-sonnet-5-5", max_tokens=9, messages=[Message("user", "x")], tenant="acme", project=None)
    events: list[ModelEvent] = []

    async def read_answer() -> None:
        async for event in answer_of(backend, call):
            events.append(event)  # noqa: PERF401  # a comprehension would lose the events before the error

    with pytest.raises(BackendError):
        await read_answer()
    assert (events[-1].is_hidden, msgspec.json.decode(events[-1].raw)["usage"]) == (True, {"output_tokens": 4096})


def test_a_block_that_broke_off_stays_open() -> None:
    """Claude Code closes it; a closed block could not be continued in the middle of a word."""
    lines = [begin(), *text(0, "Half a wo"), *finish(None, 1)]
    output = ClaudeCodeOutput()
    kinds = [event.kind for line in lines for event in output.read(msgspec.json.encode(line))]
    assert kinds == ["message_start", "content_block_start", "content_block_delta"]
    with pytest.raises(BackendError):
        output.read(msgspec.json.encode(RESULT))


def test_output_of_a_delegated_task_is_left_out() -> None:
    """It is marked with the tool call that began the task."""
    other = [
        line | {"parent_tool_use_id": "toolu_1"} for line in [begin(), *text(0, "among us"), *finish("end_turn", 9)]
    ]
    output = read([begin(), *other, *text(0, "So."), *finish("end_turn", 3), RESULT])
    assert [e["delta"]["text"] for e in output if e["type"] == "content_block_delta"] == ["So."]
    assert output[-1]["usage"]["output_tokens"] == 3


def test_awaits_model_is_false_while_a_tool_runs() -> None:
    """A tool may run for minutes without output; a model that is silent for so long has stalled."""
    output = ClaudeCodeOutput()
    awaits = [output.awaits_model]
    for line in [*ROUND, begin()]:
        output.read(msgspec.json.encode(line))
        awaits.append(output.awaits_model)
    assert awaits[0]
    assert awaits[-3:] == [False, True, True]


NO_MODEL = "There's an issue with the selected model (claude-x[1m]). It may not exist or you may not have access to it."


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"api_error_status": 529, "api_error_type": "overloaded_error"}, "backend_overloaded"),
        ({"api_error_status": 429}, "backend_rate_limited"),
        ({"api_error_status": 401}, "backend_refused_key"),
        ({"api_error_status": 400}, "backend_refused_request"),
        ({"api_error_status": 404, "result": NO_MODEL}, "model_not_found"),
        ({"api_error_type": "overloaded_error"}, "backend_overloaded"),
        ({"api_error": "connection_failed"}, "backend_broken"),
        ({}, "backend_failed"),
        ({"is_error": False, "subtype": "error_max_turns"}, "backend_failed"),
    ],
)
def test_a_failed_result_maps_to_the_code_of_the_api_error(result: dict[str, Any], code: str) -> None:
    """Also after a whole answer. A result without an answer has failed as well."""
    whole = [begin(), *text(0, "Found."), *finish("end_turn", 3)]
    for lines in ([], whole):
        with pytest.raises(BackendError) as failure:
            read([*lines, {**RESULT, "is_error": True, "result": "x" * 9999, **result}])
        assert failure.value.code == code
        assert len(failure.value.message) <= BACKEND_MESSAGE_CHARS_MAX
    with pytest.raises(BackendError):
        read([*whole[:1], RESULT])


@pytest.mark.parametrize("line", [b"", b"{", b"Warning: x", b"[1]", b'{"type": 3}', b'{"type":"\xff"}', b"[" * 100_000])
def test_an_unreadable_line_breaks_the_answer(line: bytes) -> None:
    with pytest.raises(BackendError, match="cannot be read"):
        ClaudeCodeOutput().read(line)
