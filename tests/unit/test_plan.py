"""The next action for every shape of a turn's log."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.structured_output.generator import (
    add_correction,
    find_checked_text,
    find_schema_obstacle,
    request_schema,
)
from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import from_event
from tailrace.generators.continuation import ContinuationMapper, limit_tokens, prepare_call
from tailrace.generators.pauses import PAUSES_MAX, hide_pause
from tailrace.generators.plan import (
    ATTEMPTS_TOTAL_MAX,
    Acknowledge,
    AppendEvents,
    Complete,
    Fail,
    Leave,
    MakeAttempt,
    find_obstacle,
    plan,
    plan_after_check,
    tokens_left,
)
from tailrace.proto import events
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Batch, Event, Message, Mode, OnInterrupt, OnPause
from tailrace.proto.events import (
    BlockDelta,
    BlockStart,
    BlockStop,
    InputJsonDelta,
    MessageHead,
    MessageStart,
    TextDelta,
)
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.schema import with_schema
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import Handwritten, attempt, attempted_turn

POLICIES: tuple[OnInterrupt, ...] = ("continue", "restart", "fail")
START = MessageStart(MessageHead("msg_1"))
SCHEMA = {"type": "string"}
STOPPED = events.MessageDelta(events.StopReason("end_turn"))
PAUSED = events.MessageDelta(events.StopReason("pause_turn"))
WITH_SCHEMA = with_schema(None, SCHEMA)
CALL: dict[str, Any] = {"type": "server_tool_use", "id": "srvtoolu_0", "name": "web_search", "input": {}}
RESULT: dict[str, Any] = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_0", "content": []}


def search(index: int, call: str = "srvtoolu_0") -> list[events.Event]:
    """Returns the events of a completed call of a server tool, with its result, from block `index` on."""
    return [
        BlockStart(index, CALL | {"id": call}),
        BlockDelta(index, InputJsonDelta('{"query": "q"}')),
        BlockStop(index),
        BlockStart(index + 1, RESULT | {"tool_use_id": call}),
        BlockStop(index + 1),
    ]


def block_start(type_: str, index: int = 0) -> list[events.Event]:
    delta = InputJsonDelta('{"a') if type_ == "tool_use" else TextDelta("some")
    return [BlockStart(index, {"type": type_}), BlockDelta(index, delta)]


def block_stop(type_: str, index: int = 0) -> list[events.Event]:
    return [*block_start(type_, index), BlockStop(index)]


def log_with(prefix: Sequence[events.Event], on_interrupt: OnInterrupt = "continue", attempts: int = 1) -> Handwritten:
    """Returns the log of a turn whose last attempt has stored the events `prefix`."""
    log = Handwritten()
    log.store_request(on_interrupt=on_interrupt)
    for _ in range(attempts):
        log.store_attempt()
    log.store_events(*prefix)
    return log


@pytest.mark.parametrize("policy", POLICIES)
def test_a_turn_without_a_message_starts_fresh_and_an_opening_alone_is_continued(policy: OnInterrupt) -> None:
    """Whether or not a generator died: readers have seen no text, so nothing is taken back."""
    assert [plan(log_with([], policy, n).turn, 5) for n in range(3)] == [MakeAttempt(n, "fresh") for n in (1, 2, 3)]
    assert plan(log_with([START], policy).turn, 5) == MakeAttempt(2, "continue")


@pytest.mark.parametrize(
    ("prefix", "obstacle"),
    [
        (block_start("text"), None),
        (block_stop("text"), None),
        ([*block_stop("text"), *block_start("text", 1)], None),
        (block_stop("thinking"), None),
        (block_stop("redacted_thinking"), None),
        ([*block_stop("thinking"), *block_start("text", 1)], None),
        ([BlockStart(0, {"type": "text"})], None),
        (block_start("thinking"), "thinking"),
        (block_start("tool_use"), "tool_use"),
        (block_stop("tool_use"), "tool_use"),
        ([*block_stop("text"), *block_start("tool_use", 1)], "tool_use"),
        ([*block_stop("text"), *block_stop("tool_use", 1), *block_start("text", 2)], "tool_use"),
        ([*block_start("text"), *block_start("text", 1)], "text"),
        (block_stop("newer"), "newer"),
        (block_start("compaction"), "compaction"),
        (block_stop("compaction"), None),
        (search(0), None),
        ([*search(0), *block_start("thinking", 2)], None),
        ([*search(0), *block_stop("newer", 2)], None),
        ([*search(0), *block_start("newer", 2)], "newer"),
        ([*search(0), BlockStart(2, {"type": "redacted_thinking", "data": "c2VjcmV0"})], None),
        ([*search(0), BlockStart(2, {"type": "container_upload", "file_id": "file_1"})], None),
        ([*search(0), BlockStart(2, {"type": "fallback"})], None),
        ([*search(0), *block_start("text", 2), *block_start("text", 3)], "text"),
        ([*search(0), *block_start("tool_use", 2)], "tool_use"),
        ([*search(0), *block_stop("tool_use", 2), *block_start("text", 3)], "tool_use"),
    ],
)
def test_text_complete_thinking_and_server_tools_are_continued_and_other_blocks_restarted(
    prefix: list[events.Event], obstacle: str | None
) -> None:
    """A model can continue text in the middle of a word; not half a thought, a client's tool call, or an unknown block.

    After a completed call of a server tool, a restart would run the tool again: half a thought is left out instead.
    """
    action = plan(log_with([START, *prefix]).turn, 5)
    if obstacle is not None:
        assert action == MakeAttempt(2, "restart", reason=obstacle)
    elif isinstance(action, AppendEvents):
        # What is half is closed first.
        assert action.events
    else:
        assert action == MakeAttempt(2, "continue")


@pytest.mark.rule("R119")
@pytest.mark.parametrize("prefix", [[], block_stop("text"), search(0), [*search(0), *block_stop("text", 2)]])
@pytest.mark.parametrize(
    "half",
    [
        [BlockStart(9, CALL | {"id": "half"})],
        [BlockStart(9, CALL | {"id": "half"}), BlockDelta(9, InputJsonDelta('{"q'))],
        [BlockStart(9, CALL | {"id": "half"}), BlockDelta(9, InputJsonDelta("{}")), BlockStop(9)],
        [BlockStart(9, CALL | {"type": "mcp_tool_use", "id": "half", "server_name": "s"}), BlockStop(9)],
    ],
)
def test_half_a_call_of_a_server_tool_gets_an_error_and_is_left_out_of_the_continuation(
    prefix: list[events.Event], half: list[events.Event]
) -> None:
    """The stored answer stays one that the API accepts when a client sends it back; the call sends completed pairs."""
    log = log_with([START, *prefix])
    at = len(log.turn.blocks)
    log.store_events(*(msgspec.structs.replace(event, index=at) for event in half))
    action = plan(log.turn, 5)
    assert isinstance(action, AppendEvents)
    log.store_events(*(one.event for one in action.events if not isinstance(one.event, events.UnknownEvent)))
    turn = log.turn
    assert all(block.is_closed for block in turn.blocks)
    assert turn.blocks[-1].start["tool_use_id"] == "half"
    assert turn.blocks[-1].type.endswith("_tool_result")
    assert plan(turn, 5) == MakeAttempt(2, "continue")
    call, _ = prepare_call(turn, "continue")
    sent = msgspec.json.encode(call.messages).decode()
    assert "half" not in sent
    assert ("srvtoolu_0" in sent) == any(isinstance(one, BlockStart) and "id" in one.content_block for one in prefix)


def close_halves(log: Handwritten) -> None:
    """Stores what the plan stores before the next attempt."""
    action = plan(log.turn, 5)
    assert isinstance(action, AppendEvents)
    log.store_events(*(one.event for one in action.events if not isinstance(one.event, events.UnknownEvent)))


@pytest.mark.rule("R119")
@pytest.mark.parametrize(
    "answer",
    [
        # The text begins before the result of a parallel call has come.
        [BlockStart(2, CALL | {"id": "half"}), BlockStop(2), *block_start("text", 3)],
        # Two blocks are open.
        [*block_start("text", 2), BlockStart(3, CALL | {"id": "half"})],
        [BlockStart(2, CALL | {"id": "half"}), *block_start("text", 3)],
    ],
)
def test_an_open_text_beside_half_a_call_is_closed_and_no_completed_call_runs_again(answer: list[events.Event]) -> None:
    log = log_with([START, *search(0), *answer])
    close_halves(log)
    assert all(block.is_closed for block in log.turn.blocks)
    assert plan(log.turn, 5) == MakeAttempt(2, "continue")
    sent = prepare_call(log.turn, "continue")[0].messages[1].content
    assert isinstance(sent, list)
    assert [block.get("id") or block.get("tool_use_id") or block["text"] for block in sent] == [
        *["srvtoolu_0"] * 2,
        "some",
    ]


@pytest.mark.rule("R119")
def test_the_api_s_own_error_of_a_tool_is_a_result() -> None:
    """It has fields that the error of an interrupted call has not."""
    error = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    failed = RESULT | {"content": error, "caller": {"type": "direct"}}
    log = log_with([START, BlockStart(0, CALL), BlockStop(0), BlockStart(1, failed), BlockStop(1)])
    assert plan(log.turn, 5) == MakeAttempt(2, "continue")
    assert prepare_call(log.turn, "continue")[0].messages[1].content == [CALL, failed]


PENDING = [{"type": "text", "text": "I search."}, CALL, CALL | {"id": "srvtoolu_1"}]


@pytest.mark.rule("R119")
@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        # The API executes the calls.
        ([], PENDING),
        (block_stop("thinking"), PENDING),
        # Half of them are done, and the rest gets an error.
        ([BlockStart(0, RESULT), BlockStop(0)], [*PENDING[:2], RESULT]),
        ([BlockStart(0, RESULT), *block_start("text", 1)], [*PENDING[:2], RESULT, {"type": "text", "text": "some"}]),
    ],
)
def test_a_paused_answer_that_the_client_sent_back_is_continued_without_half_calls(
    answer: list[events.Event], sent: list[dict[str, Any]]
) -> None:
    log = Handwritten()
    log.store_request(messages=[Message("user", "Search."), Message("assistant", PENDING)])
    log.store_attempt()
    log.store_events(START, *answer)
    is_partial = sent != PENDING
    if is_partial:
        close_halves(log)
        assert log.turn.blocks[-1].start["tool_use_id"] == "srvtoolu_1"
    assert plan(log.turn, 5) == MakeAttempt(2, "continue")
    messages = prepare_call(log.turn, "continue")[0].messages
    assert messages[1] == Message("assistant", sent)
    assert [one.role for one in messages[2:]] == ["user"] * is_partial


@pytest.mark.rule("R117")
@pytest.mark.parametrize("blocks", [[], [BlockStart(0, {"type": "text", "text": " "}), BlockStop(0)]])
def test_a_pause_without_content_is_continued_without_an_empty_message(blocks: list[events.Event]) -> None:
    """The API refuses a message of the assistant that has no content."""
    log = paused(*blocks)
    assert [one.role for one in prepare_call(log.turn, "continue")[0].messages] == ["user"]


@pytest.mark.rule("R118")
def test_a_turn_whose_attempts_all_make_progress_has_a_bound() -> None:
    log = log_with([START, *block_start("text")])
    while log.turn.attempt < ATTEMPTS_TOTAL_MAX:
        assert isinstance(plan(log.turn, 5), MakeAttempt)
        log.store_attempt("continue")
        log.store_texts("more")
    failed = plan(log.turn, 5)
    assert isinstance(failed, Fail)
    assert failed.failure.code == "attempts_exhausted"
    assert str(ATTEMPTS_TOTAL_MAX) in failed.failure.message


def paused(*blocks: events.Event, times: int = 1, **given: object) -> Handwritten:
    """Returns the log of a turn that has paused `times` times; a generator continues each pause."""
    log = Handwritten()
    log.store_request(on_pause="continue", tools=[{"type": "web_search_20250305", "name": "web_search"}], **given)
    log.store_attempt()
    log.store_events(START, *blocks)
    for number in range(times):
        if number:
            log.store_attempt("continue")
            log.store_events(*search(len(log.turn.blocks), f"s{number}"))
        log.store_events(PAUSED, is_hidden=True)
    return log


@pytest.mark.rule("R117")
@pytest.mark.parametrize("given", [{}, {"on_interrupt": "fail"}, {"on_interrupt": "restart"}, {"options": WITH_SCHEMA}])
def test_a_pause_is_continued_with_the_answer_as_the_last_message(given: dict[str, Any]) -> None:
    """Also on models without prefill. `on_interrupt` and a schema do not apply: nothing has broken off."""
    log = paused(*block_stop("text"), BlockStart(1, CALL), BlockStop(1), **given)
    assert log.turn.is_paused
    assert log.turn.stop.stop_reason is None
    assert plan(log.turn, 5) == MakeAttempt(2, "continue")
    call, mapper = prepare_call(log.turn, "continue")
    assert [one.role for one in call.messages] == ["user", "assistant"]
    assert isinstance(call.messages[-1].content, list)
    assert [block["type"] for block in call.messages[-1].content] == ["text", "server_tool_use"]
    assert mapper is not None
    thought = BlockStart(0, {"type": "thinking", "thinking": "", "signature": ""})
    assert [one.event for one in mapper.map(from_event(thought))] == [msgspec.structs.replace(thought, index=2)]


@pytest.mark.rule("R117")
def test_after_a_pause_and_new_blocks_an_interruption_is_one_like_any_other() -> None:
    log = paused(BlockStart(0, CALL), BlockStop(0))
    log.store_attempt("continue")
    log.store_events(BlockStart(1, RESULT), BlockStop(1), BlockStart(2, {"type": "text", "text": ""}))
    assert not log.turn.is_paused
    assert plan(log.turn, 5) == MakeAttempt(3, "continue")
    call, _ = prepare_call(log.turn, "continue")
    assert [one.role for one in call.messages] == ["user", "assistant", "user"]


@pytest.mark.rule("R117")
@pytest.mark.parametrize(("pauses", "is_hidden"), [(0, True), (PAUSES_MAX - 1, True), (PAUSES_MAX, False)])
def test_a_generator_continues_ten_pauses_and_shows_the_next(pauses: int, is_hidden: bool) -> None:
    log = paused(*search(0), times=pauses)
    assert hide_pause(from_event(PAUSED), log.turn).is_hidden is is_hidden
    log.store_events(PAUSED, is_hidden=is_hidden)
    assert (plan(log.turn, 5) == Complete()) is not is_hidden


@pytest.mark.rule("R117")
@pytest.mark.parametrize(
    ("on_pause", "event", "is_hidden"),
    [("continue", PAUSED, True), ("return", PAUSED, False), ("continue", STOPPED, False)],
)
def test_a_pause_that_the_client_continues_is_shown(
    on_pause: OnPause, event: events.MessageDelta, *, is_hidden: bool
) -> None:
    log = Handwritten()
    log.store_request(on_pause=on_pause)
    assert hide_pause(from_event(event), log.turn).is_hidden is is_hidden


@pytest.mark.rule("R117")
@pytest.mark.parametrize("given", [None, "container_0", {"skills": [{"skill_id": "pdf"}]}])
def test_the_container_of_the_answer_is_sent_again(given: object) -> None:
    """Its files would be missing in a new one."""
    log = Handwritten()
    tools = [{"type": "code_execution_20250825", "name": "code_execution"}]
    log.store_request(on_pause="continue", tools=tools, options={"container": given} if given else None)
    log.store_attempt()
    log.store_events(START, BlockStart(0, CALL), BlockStop(0))
    delta = {"stop_reason": "pause_turn", "container": {"id": "container_1", "expires_at": "2026-01-01T00:00:00Z"}}
    raw = msgspec.Raw(msgspec.json.encode({"type": "message_delta", "delta": delta, "usage": {}}))
    log.store(Event(prev=log.chain.last, attempt=1, event=raw, is_hidden=True))
    call, _ = prepare_call(log.turn, "continue")
    expected = {**given, "id": "container_1"} if isinstance(given, dict) else "container_1"
    assert (call.options or {})["container"] == expected


@pytest.mark.rule("R19")
@pytest.mark.parametrize("prefix", [block_start("text"), block_start("tool_use"), block_stop("thinking")])
def test_on_interrupt_restart_and_fail_are_obeyed(prefix: list[events.Event]) -> None:
    """`restart` also takes back text that could be continued; `fail` keeps it and ends the turn."""
    assert plan(log_with([START, *prefix], "restart").turn, 5) == MakeAttempt(2, "restart", reason="on_interrupt")
    failed = plan(log_with([START, *prefix], "fail").turn, 5)
    assert isinstance(failed, Fail)
    assert failed.failure.code == "interrupted"
    assert failed.failure.message == "the answer broke off, and the request has on_interrupt: fail"


@pytest.mark.rule("R73")
@pytest.mark.parametrize("prefix", [[], [START], [START, *block_start("text")], [START, *block_start("tool_use")]])
@pytest.mark.parametrize("policy", ["continue", "restart"])
def test_attempts_that_store_nothing_new_are_limited(prefix: list[events.Event], policy: OnInterrupt) -> None:
    """A turn that breaks every generator ends after `attempts_max` attempts without progress."""
    log = log_with(prefix, policy)
    has_moved = len(prefix) > 1
    for _ in range(2 if has_moved else 1):
        log.store_attempt()
    assert isinstance(plan(log.turn, 3), MakeAttempt)
    log.store_attempt()
    failed = plan(log.turn, 3)
    assert isinstance(failed, Fail)
    assert failed.failure.code == "attempts_exhausted"


@pytest.mark.rule("R73")
def test_an_attempt_that_moves_the_answer_forward_starts_the_count_again() -> None:
    """A long answer survives any number of generator deaths."""
    log = log_with([START, *block_start("text")])
    for _ in range(20):
        log.store_attempt("continue")
        log.store_events(START, is_hidden=True)
        log.store_attempt("continue")
        log.store_texts("more")
        assert log.turn.fruitless == 0
        assert plan(log.turn, 2) == MakeAttempt(log.turn.attempt + 1, "continue")


@pytest.mark.rule("R73")
def test_a_restarted_answer_moves_forward_only_beyond_the_furthest_before() -> None:
    """Otherwise a turn that restarts at each death would be paid for without end."""
    log = log_with([START, *block_start("tool_use"), BlockDelta(0, InputJsonDelta(": 1"))], "restart")
    for count in (1, 2, 3):
        log.store_attempt("restart")
        log.store_events(START, *block_start("tool_use"))
        assert log.turn.fruitless == count
    log.store_events(BlockDelta(0, InputJsonDelta(": 1")), BlockDelta(0, InputJsonDelta("}")))
    assert log.turn.fruitless == 0


@pytest.mark.rule("R73")
def test_an_attempt_that_was_handed_over_does_not_count() -> None:
    """A rolling deployment uses up no attempts. A handover takes back one, and another hidden event none."""
    log = log_with([])
    for _ in range(9):
        log.store(event_entry(log.chain))
        assert log.turn.fruitless == 0
        log.store_attempt()
    log.store_attempt()
    log.store_events(START, is_hidden=True)
    # A model's event of the same bytes is none.
    log.store(msgspec.structs.replace(event_entry(log.chain), is_hidden=False))
    assert log.turn.fruitless == 2
    log.store(event_entry(log.chain))
    assert log.turn.fruitless == 1


@pytest.mark.rule("R73")
def test_a_corrected_answer_is_counted_from_its_beginning() -> None:
    """It may be shorter than the rejected one."""
    turn = schema_turn([START, BlockStart(0, {"type": "text", "text": ""}), BlockDelta(0, TextDelta("1"))], misfit="no")
    assert (turn.furthest, turn.fruitless) == (1, 0)


def event_entry(chain: Chain) -> Event:
    return Event(prev=chain.last, attempt=chain.attempt, event=events.HANDOVER, is_hidden=True)


def limited_turn(*calls: int, mode: Mode = "continue") -> Turn:
    """A turn of at most 1000 tokens whose calls have each written that many output tokens, and broke off."""
    log = Handwritten()
    log.store_request(max_tokens=1000)
    for number, tokens in enumerate(calls):
        log.store_attempt(mode if number else "fresh")
        log.store_events(START, is_hidden=number > 0 and mode == "continue")
        if not number or mode == "restart":
            log.store_events(BlockStart(0, {"type": "text", "text": ""}))
        log.store_texts("x" * (tokens * 7 // 2))
    return log.turn


@pytest.mark.rule("R74")
def test_a_continuing_call_asks_for_the_tokens_that_are_left() -> None:
    """The tokens of broken calls are estimated: two for each seven bytes of their text."""
    turn = limited_turn(100, 200)
    call, _ = prepare_call(turn, "continue")
    assert call.max_tokens == 700
    call, _ = prepare_call(turn, "restart")
    assert call.max_tokens == 1000
    call, _ = prepare_call(limited_turn(100, 200, mode="restart"), "continue")
    assert call.max_tokens == 800


@pytest.mark.rule("R74")
def test_an_answer_with_all_its_tokens_is_completed() -> None:
    """Also without attempts left: the answer has reached its limit, it did not fail."""
    action = plan(limited_turn(600, 400), 1)
    assert isinstance(action, AppendEvents)
    assert [bytes(event.raw) for event in action.events] == [
        b'{"type":"content_block_stop","index":0}',
        b'{"type":"message_delta","delta":{"stop_reason":"max_tokens","stop_sequence":null},"usage":{}}',
    ]
    assert isinstance(plan(limited_turn(600, 399), 1), MakeAttempt)
    assert tokens_left(EMPTY_TURN) == 0


@pytest.mark.rule("R74")
@pytest.mark.parametrize(
    ("budget", "tokens", "thinking"),
    [
        (2000, 5000, {"type": "enabled", "budget_tokens": 2000}),
        (4000, 4000, {"type": "enabled", "budget_tokens": 2000}),
        (4000, 1500, {"type": "enabled", "budget_tokens": 1024}),
        (4000, 1024, {"type": "disabled"}),
    ],
)
def test_the_budget_for_thinking_fits_in_the_tokens_that_are_left(budget: int, tokens: int, thinking: object) -> None:
    """The API refuses a budget that is not below `max_tokens`."""
    options = {"thinking": {"type": "enabled", "budget_tokens": budget}, "temperature": 1}
    call = Call(model="claude-x", max_tokens=9000, messages=[], options=options)
    limited = limit_tokens(call, tokens)
    assert limited.max_tokens == tokens
    assert limited.options == {"thinking": thinking, "temperature": 1}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("type_", ["text", "thinking", "tool_use"])
def test_a_complete_answer_only_needs_its_end(policy: OnInterrupt, type_: str) -> None:
    """After a kill between the last event and the end: no call, also without attempts left."""
    log = log_with([START, *block_stop(type_), STOPPED], policy)
    assert [plan(log.turn, attempts_max) for attempts_max in (1, 5)] == [Complete(), Complete()]


def schema_turn(prefix: Sequence[events.Event], misfit: str | None = None) -> Turn:
    """Returns a turn with a schema, and with these events since the attempt that named its `misfit`."""
    log = Handwritten()
    log.store_request(options=with_schema(None, SCHEMA))
    log.store_attempt()
    if misfit is not None:
        log.store(msgspec.structs.replace(attempt(log.chain, "restart"), misfit=misfit))
    log.store_events(*prefix)
    return log.turn


@pytest.mark.rule("R60")
def test_an_answer_with_a_schema_is_checked_and_corrected_once() -> None:
    """A generator that takes over counts the corrections in the log."""
    first = schema_turn([START, *block_stop("text"), STOPPED])
    assert (plan(first, 5), find_checked_text(first)) == (Complete(), (SCHEMA, "some"))
    assert plan_after_check(first, None, 5) == Complete(schema_valid=True)
    # A complete answer has moved forward, so the last attempt may be corrected, too.
    assert [plan_after_check(first, "no", most) for most in (1, 5)] == [MakeAttempt(2, "restart", "no")] * 2
    last = msgspec.structs.replace(first, fruitless=5)
    assert plan_after_check(last, "no", 6) == MakeAttempt(2, "restart", "no")
    assert plan_after_check(last, "no", 5) == Complete(schema_valid=False)
    second = schema_turn([START, *block_stop("text"), STOPPED], misfit="no")
    assert (plan(second, 5), find_checked_text(second)) == (Complete(), (SCHEMA, "some"))
    assert plan_after_check(second, "no again", 5) == Complete(schema_valid=False)


@pytest.mark.parametrize(
    ("stop_reason", "is_checked"),
    [("max_tokens", True), ("refusal", True), ("newer", True), ("tool_use", False), ("pause_turn", False)],
)
def test_an_answer_that_was_cut_is_checked_but_not_corrected_and_an_unfinished_one_is_not_checked(
    stop_reason: str, *, is_checked: bool
) -> None:
    """A tool result comes first."""
    turn = schema_turn([START, *block_stop("text"), events.MessageDelta(events.StopReason(stop_reason))])
    assert plan(turn, 5) == Complete()
    assert find_checked_text(turn) == ((SCHEMA, "some") if is_checked else None)
    if is_checked:
        assert plan_after_check(turn, "no", 5) == Complete(schema_valid=False)


@pytest.mark.parametrize("misfit", [None, "no"])
def test_json_is_restarted_and_not_continued(misfit: str | None) -> None:
    """Without any block, continuing takes nothing back."""
    attempts = 2 if misfit is None else 3
    restart = MakeAttempt(attempts, "restart", reason="schema")
    turns = [schema_turn(events, misfit=misfit) for events in ([START, *block_start("text")], [START], [])]
    obstacles = [find_schema_obstacle(turn.request) for turn in turns if turn.request is not None]
    assert obstacles == ["schema"] * 3
    plans = [plan(turn, 5, obstacle="schema") for turn in turns]
    assert plans == [restart, MakeAttempt(attempts, "continue"), MakeAttempt(attempts, "fresh")]


@pytest.mark.parametrize("mode", ["fresh", "continue", "restart"])
def test_every_attempt_after_a_misfit_gets_the_correction_prompt(mode: Mode) -> None:
    """The request, the rejected answer and the reason, in any generator."""
    log = attempted_turn(START, *block_stop("text"), STOPPED, options=with_schema(None, SCHEMA))
    log.store(msgspec.structs.replace(attempt(log.chain, "restart"), misfit="no"))
    log.store_events(START)
    assert log.turn.request is not None
    call, _ = prepare_call(log.turn, mode, [request_schema, add_correction])
    question, answer, why = call.messages
    assert (question.role, answer.role, answer.content, why.role) == ("user", "assistant", "some", "user")
    assert "no" in str(why.content)


@pytest.mark.rule("R19")
@given(made_up=logs(), attempts_max=st.integers(1, 4), policy=st.sampled_from(POLICIES))
def test_every_prefix_of_every_log_has_a_next_action(made_up: MadeUp, attempts_max: int, policy: OnInterrupt) -> None:
    """No exception, never an attempt too many, and `continue` only after what can be continued."""
    for length in range(1, len(made_up.stored) + 1):
        turn = fold(made_up.stored[:length])
        assert turn.request is not None
        turn = msgspec.structs.replace(turn, request=msgspec.structs.replace(turn.request, on_interrupt=policy))
        check(turn, attempts_max)


def check(turn: Turn, attempts_max: int) -> None:
    go = plan(turn, attempts_max)
    assert isinstance(go, Acknowledge) == (turn.end is not None)
    if not isinstance(go, MakeAttempt):
        return
    assert turn.request is not None
    assert go.attempt == turn.attempt + 1
    assert turn.fruitless < attempts_max
    _, continuation = prepare_call(turn, go.mode)
    assert isinstance(continuation, ContinuationMapper) == (go.mode == "continue")
    if go.mode == "continue":
        assert turn.message is not None
        assert find_obstacle(turn) is None
        assert turn.request.on_interrupt == "continue" or not turn.blocks


def test_a_turn_of_a_message_batch_is_left_to_the_batch() -> None:
    handed = Handwritten()
    handed.store_request(via="message_batches")
    assert plan(handed.turn, 5) == Leave()
    handed.end("cancelled")
    assert plan(handed.turn, 5) == Acknowledge()


def test_a_batch_itself_is_left_to_a_generator_with_batches() -> None:
    """A generator without this feature would send the model a request without messages."""
    batch = Handwritten()
    batch.store_request(batch=Batch("sha256", 10, 1, parallel=1), messages=[])
    assert plan(batch.turn, 5) == Leave()
