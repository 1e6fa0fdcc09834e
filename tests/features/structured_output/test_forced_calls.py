"""Forced tool calls of models that do not support them: the call to the model, and what is stored of its answer."""

from contextlib import nullcontext
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.deploy.simulated_claude.request import decode
from tailrace.features.batches.message_batches import map_answer
from tailrace.features.structured_output.forced_calls import CallMapper, request_forced_call, write_forced_call
from tailrace.features.structured_output.generator import (
    add_correction,
    find_checked_text,
    find_schema_obstacle,
    request_schema,
)
from tailrace.generators.backends.model_event import ModelEvent, from_event
from tailrace.generators.continuation import build_call, prepare_call
from tailrace.generators.plan import Complete, MakeAttempt, plan, plan_after_check
from tailrace.proto import events
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.fold import EMPTY_TURN
from tailrace.proto.forced_tools import answer_schema, call_schema, forced_functions, require_offered
from tailrace.proto.schema import with_schema
from tests.golden.requests import build_turn, read_cases
from tests.harness.turn_builder import Handwritten, attempt, raw, request

FILTERS = [request_forced_call, request_schema, add_correction]
DAY = {"type": "object", "properties": {"day": {"$ref": "#/$defs/Day"}}, "$defs": {"Day": {"enum": ["Mo", "Tu"]}}}
LOOK = {"name": "look", "description": "Looks.", "input_schema": DAY}
# The same name for another definition, and a reference to the whole.
TREE = {
    "type": "object",
    "properties": {"Day": {"$ref": "#/definitions/Day"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "definitions": {"Day": {"type": "integer"}},
}
GROW = {"name": "grow", "input_schema": TREE}
SEARCH = {"type": "web_search_20260101", "name": "search"}
TOOLS = [LOOK, GROW, SEARCH]
ANY = {"type": "any", "disable_parallel_tool_use": True}
ONE = {"type": "tool", "name": "look"}
ARGUMENTS = '{"day": "Mo", "a": {"b": ["}", " }"]}}'
NOPE = {"type": "tool", "name": "nope"}
NAMED = f'{{ "name": "look" , "arguments": {ARGUMENTS} }}\n'


def function_tools(**given: Any) -> list[str]:
    return list(forced_functions(request(**{"tools": TOOLS} | given)))


@pytest.mark.parametrize(
    ("given_fields", "names"),
    [
        ({"options": {"tool_choice": ONE}}, ["look"]),
        # A tool of Anthropic's own has no schema.
        ({"options": {"tool_choice": ANY}}, ["look", "grow"]),
        ({"options": {"tool_choice": {"type": "tool", "name": "other"}}}, []),
        ({"options": {"tool_choice": {"type": "auto"}}}, []),
        ({"options": {"tool_choice": "any"}}, []),
        ({"options": {"tool_choice": ANY}, "tools": None}, []),
        ({}, []),
        ({"options": {"tool_choice": ANY}, "model": "claude-haiku-5-5"}, []),
        ({"options": {"tool_choice": ANY}, "model": "gpt-9"}, []),
        ({"options": {"tool_choice": ONE, "thinking": {"type": "adaptive"}}, "model": "claude-haiku-5-5"}, []),
        ({"options": {"tool_choice": ONE, "thinking": {"type": "enabled"}}, "model": "claude-haiku-4-5"}, ["look"]),
    ],
)
def test_forced_calls_that_the_model_refuses(given_fields: dict[str, Any], names: list[str]) -> None:
    """All other calls are left to the model."""
    assert function_tools(**given_fields) == names


@pytest.mark.parametrize(
    ("given_fields", "is_refused"),
    [
        ({"options": {"tool_choice": NOPE}}, True),
        ({"options": {"tool_choice": NOPE}, "tools": None}, True),
        ({"options": {"tool_choice": {"type": "tool", "name": "search"}}}, False),
        ({"options": {"tool_choice": ANY}}, False),
        ({"options": {"tool_choice": ANY}, "tools": None}, True),
        ({"options": {"tool_choice": ANY, "mcp_servers": []}, "tools": None}, False),
        ({"options": {"tool_choice": {"type": "tool"}}}, False),
        # The tools of an MCP server are known to the model's API alone.
        ({"options": {"tool_choice": NOPE, "mcp_servers": []}}, False),
        ({"options": {"tool_choice": NOPE}, "tools": [*TOOLS, {"type": "mcp_toolset"}]}, False),
    ],
)
def test_a_choice_of_an_absent_tool_is_refused(given_fields: dict[str, Any], *, is_refused: bool) -> None:
    with pytest.raises(Refused, match=r"^`tool_choice` (names `nope`|forces)") if is_refused else nullcontext():
        require_offered(request(**{"tools": TOOLS} | given_fields))


def test_a_forced_call_is_requested_as_structured_output() -> None:
    """The API accepts it. The tools stay, and so do the other options."""
    options = with_schema({"tool_choice": ONE, "output_config": {"effort": "low"}, "stop_sequences": ["x"]}, {})
    call = build_call(request(tools=TOOLS, options=options, system="Be brief."), FILTERS)
    schema = {**DAY, "description": "Looks.", "additionalProperties": False}
    assert call.options == {
        "tool_choice": {"type": "none"},
        "stop_sequences": ["x"],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}},
    }
    assert call.tools == TOOLS
    assert call.system == "Be brief."
    assert "`look`" in str(call.messages[-1].content)
    sent = {"model": call.model, "max_tokens": 10, "messages": call.messages, "system": call.system} | call.options
    decode(msgspec.json.encode(sent))


def test_a_schema_beyond_structured_outputs_goes_into_the_prompt() -> None:
    call = build_call(request(tools=TOOLS, options={"tool_choice": {"type": "tool", "name": "grow"}}), FILTERS)
    assert call.options == {"tool_choice": {"type": "none"}}
    assert "JSON Schema" in str(call.messages[-1].content)


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ({"name": "look", "arguments": {"day": "Mo"}}, True),
        ({"name": "look", "arguments": {"day": 1}}, False),
        ({"name": "grow", "arguments": {"Day": 1, "next": {"Day": 2, "next": None}}}, True),
        ({"name": "grow", "arguments": {"next": {"Day": "Mo"}}}, False),
        ({"name": "search", "arguments": {}}, False),
        ({"arguments": {"day": "Mo"}}, False),
    ],
)
def test_one_schema_describes_a_call_of_several_functions(answer: Any, *, fits: bool) -> None:
    """Each function keeps its own definitions."""
    schema = call_schema({"look": DAY, "grow": TREE})
    assert jsonschema_rs.validator_for(schema).is_valid(answer) == fits


def test_a_schema_with_malformed_definitions_makes_no_error() -> None:
    """The schema of a tool is what the client has sent."""
    schema = call_schema({"look": {"type": "object", "$defs": [1]}, "grow": TREE})
    assert jsonschema_rs.validator_for(schema).is_valid({"name": "look", "arguments": {}})


def model_answer(text: list[str], stop_reason: str = "end_turn") -> list[ModelEvent]:
    """Returns an answer of the model with one text block after a thought."""
    stop = raw(
        {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 7}, "new": 1}
    )
    return [
        from_event(events.MessageStart(events.MessageHead("msg_1", "m"))),
        from_event(events.BlockStart(0, {"type": "thinking", "thinking": ""})),
        from_event(events.BlockDelta(0, events.ThinkingDelta("Hm."))),
        from_event(events.BlockStop(0)),
        from_event(events.BlockStart(1, {"type": "text", "text": ""})),
        *(from_event(events.BlockDelta(1, events.TextDelta(piece))) for piece in text),
        from_event(events.BlockStop(1)),
        ModelEvent(events.decode(stop), stop, "message_delta"),
    ]


def log_of(choice: dict[str, Any], answer: list[ModelEvent]) -> Handwritten:
    """Returns the log of a turn whose model answered so."""
    log = Handwritten()
    options = {"tool_choice": choice}
    log.store_request(tools=TOOLS, options=options)
    log.store_attempt()
    mapper = CallMapper(forced_functions(request(tools=TOOLS, options=options)))
    for event in answer:
        log.store_events(*(one.event for one in mapper.map(event) if not isinstance(one.event, events.UnknownEvent)))
    return log


@pytest.mark.rule("R77")
@given(data=st.data())
@pytest.mark.parametrize(
    ("choice", "text"),
    [(ONE, ARGUMENTS), (ONE, f"\n {ARGUMENTS}"), (ANY, NAMED), (ANY, f'{{"arguments": {ARGUMENTS}, "name": "look"}}')],
    ids=["one function", "after white space", "one of several", "arguments first"],
)
def test_the_answer_is_stored_as_the_call(choice: dict[str, Any], text: str, data: st.DataObject) -> None:
    """However its text is split. It is checked against the function's schema."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    turn = log_of(choice, model_answer(pieces)).turn
    thought, call = turn.blocks
    assert (thought.type, call.type, call.text, call.is_closed) == ("thinking", "tool_use", ARGUMENTS, True)
    assert call.start == {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    assert (turn.stop.stop_reason, turn.usage.output_tokens, turn.text) == ("tool_use", 7, "")
    assert plan(turn, 5) == Complete()
    assert find_checked_text(turn) == ({"description": "Looks.", **DAY}, ARGUMENTS)
    assert plan_after_check(turn, "no", 5) == MakeAttempt(2, "restart", "no")


@pytest.mark.rule("R77")
@pytest.mark.parametrize(
    ("choice", "pieces", "deltas"),
    [
        (ONE, ['{"da', 'y": 1', "}"], ['{"da', 'y": 1', "}"]),
        (ANY, ['{"name": "look", "argu', 'ments": {"da', 'y": {}', "}", "}"], ['{"da', 'y": {', "}", "}"]),
    ],
)
def test_arguments_are_stored_while_they_arrive(choice: dict[str, Any], pieces: list[str], deltas: list[str]) -> None:
    """Of one function of several without the object around them."""
    stored_events = [events.decode(one.entry.event) for one in log_of(choice, model_answer(pieces)).stored[2:]]  # type: ignore[union-attr]
    found = [one.delta for one in stored_events if isinstance(one, events.BlockDelta)]
    assert [delta.partial_json for delta in found if isinstance(delta, events.InputJsonDelta)] == deltas


@pytest.mark.rule("R77")
@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (ONE, "I cannot."),
        (ONE, ""),
        (ONE, "```json\n{}\n```"),
        (ANY, ARGUMENTS),
        (ANY, '{"name": "search", "arguments": {}}'),
    ],
)
def test_an_answer_that_is_no_call_stays_text_and_is_requested_again(choice: dict[str, Any], text: str) -> None:
    """With its text and the reason. A refusal is final."""
    turn = log_of(choice, model_answer([text[:3], text[3:]])).turn
    assert (turn.stop.stop_reason, turn.blocks[-1].type) == ("end_turn", "text")
    assert plan(turn, 5) == Complete()
    checked = find_checked_text(turn)
    assert checked is not None
    assert not is_valid(*checked)
    assert plan_after_check(turn, "no", 5) == MakeAttempt(2, "restart", "no")
    refused = log_of(choice, model_answer([text], "refusal")).turn
    assert plan_after_check(refused, "no", 5) == Complete(schema_valid=False)


def is_valid(schema: dict[str, Any], text: str) -> bool:
    try:
        answer = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return jsonschema_rs.validator_for(schema).is_valid(answer)


@pytest.mark.rule("R77")
def test_a_rejected_call_is_shown_to_the_model() -> None:
    log = log_of(ONE, model_answer(['{"day": 1}']))
    log.store(msgspec.structs.replace(attempt(log.chain, "restart"), misfit="wrong day"))
    call, _ = prepare_call(log.turn, "restart", FILTERS)
    assert [message.content for message in call.messages[1:2]] == ['{"day": 1}']
    assert "wrong day" in str(call.messages[2].content)


@pytest.mark.rule("R77")
def test_a_correction_has_no_call_of_code_whose_result_was_in_the_rejected_answer() -> None:
    code = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "code_execution", "input": {}}
    caller = {"type": "code_execution_20260521", "tool_id": "srvtoolu_1"}
    by_code = {"type": "tool_use", "id": "c1", "name": "look", "input": {}, "caller": caller}
    results = Message("user", [{"type": "tool_result", "tool_use_id": "c1", "content": "1"}])
    begun = [
        Message("user", "Hi."),
        Message("assistant", [{"type": "text", "text": "I look."}, code, by_code]),
        results,
    ]
    asked = request(messages=begun, options=with_schema(None, {"type": "object"}))
    turn = msgspec.structs.replace(EMPTY_TURN, misfit="no JSON", rejected="It is 1.")
    call = add_correction(build_call(asked), asked, turn)
    assert [message.content for message in call.messages[:3]] == ["Hi.", "I look.", "It is 1."]


@pytest.mark.rule("R77")
def test_a_call_that_breaks_off_is_restarted() -> None:
    """Before the first block, the answer is continued: readers have no text to discard."""
    answer = model_answer([ARGUMENTS[:5]])
    turns = [log_of(ONE, answer[:count]).turn for count in (len(answer) - 2, 4, 1)]
    assert [find_schema_obstacle(turn.request) for turn in turns if turn.request is not None] == ["schema"] * 3
    restart = MakeAttempt(2, "restart", reason="schema")
    assert [plan(turn, 5, obstacle="schema") for turn in turns] == [restart, restart, MakeAttempt(2, "continue")]


def test_a_result_of_a_message_batch_is_mapped_alike() -> None:
    """By every generator to the same bytes."""
    turn_request = request(tools=TOOLS, options={"tool_choice": ONE})
    answer = [one.raw for one in model_answer([ARGUMENTS])]
    mapped = map_answer(answer, turn_request, [write_forced_call])
    assert mapped == map_answer(answer, turn_request, [write_forced_call])
    assert b'"toolu_1"' in bytes(mapped[4])
    stop = msgspec.json.decode(mapped[-1])
    assert stop == msgspec.json.decode(answer[-1]) | {"delta": {"stop_reason": "tool_use"}}
    assert map_answer(answer, request(), [write_forced_call]) is answer


def test_without_a_forced_call_the_schema_is_that_of_the_text() -> None:
    options = with_schema({"tool_choice": ONE}, {"type": "object"})
    assert answer_schema(request(options=options, tools=TOOLS, model="claude-haiku-5-5")) == {"type": "object"}
    assert find_checked_text(Handwritten().turn) is None


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_the_default_mode_of_instructor_is_a_forced_call(api: str) -> None:
    """Its requests, recorded from the library, are among the golden requests."""
    (case,) = (one for one in read_cases(api) if one.case.startswith("instructor") and "TOOLS" in one.case)
    turn = build_turn(api, case.body).turn
    functions = forced_functions(request(model=str(turn.model), tools=turn.tools, options=turn.options))
    assert list(functions) == ["River"]
