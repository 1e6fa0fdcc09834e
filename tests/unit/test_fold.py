"""What a turn's log adds up to: by example, and for every log."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto import events
from tailrace.proto.conversation import messages
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Block, End, Failure, Progress, Request, StoredEntry, Unknown
from tailrace.proto.entries import Event as EventEntry
from tailrace.proto.events import BlockDelta, BlockStart, BlockStop, TextDelta, UsageSoFar
from tailrace.proto.fold import (
    EMPTY_TURN,
    Folding,
    Turn,
    content,
    contents,
    fold,
    fold_first_and_end,
    text_proof,
)
from tailrace.proto.nats.log_server import FIRST_EVENTS
from tailrace.proto.records import record_from_fold
from tailrace.proto.server_tools import is_executed_tool
from tailrace.proto.usage import CallUsage, Usage
from tailrace.protocols.anthropic.stream import message_of, render_record
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import (
    KEY,
    Handwritten,
    attempt,
    attempted_turn,
    closing_events,
    completed_turn,
    junk,
    opening_events,
    raw,
    started_turn,
    text_delta,
)

TOOL_START: dict[str, Any] = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
SERVER_TOOL = TOOL_START | {"type": "server_tool_use"}
MCP_TOOL = TOOL_START | {"type": "mcp_tool_use", "server_name": "s"}


@pytest.mark.rule("R25")
def test_a_whole_turn() -> None:
    log = completed_turn("The sky", " is blue.")
    assert (fold([]), EMPTY_TURN.outcome) == (EMPTY_TURN, "running")
    turn = fold(log.stored)
    assert turn.text == "The sky is blue."
    assert turn.blocks == (Block("text", {"type": "text", "text": ""}, "The sky is blue.", is_closed=True),)
    assert (turn.outcome, turn.attempt, turn.skipped, turn.is_usage_estimated) == ("completed", 1, 0, False)
    assert turn.usage == Usage(input_tokens=10, output_tokens=2)
    assert (turn.asked_at, turn.ended_at) == (log.stored[0].at, log.stored[-1].at)
    assert turn.tail == turn.chain.last == log.stored[-1].seq
    assert turn.message == events.MessageHead("msg_1", "claude-sonnet-5-5", CallUsage(10))


@pytest.mark.rule("R20")
def test_a_continuation_goes_on_in_the_block_that_was_open() -> None:
    """Its deltas carry that block's index, its hidden message_start counts, its usage is added to the first call's."""
    log = started_turn("The sk")
    log.store_attempt("continue")
    log.store_events(events.MessageStart(events.MessageHead("msg_2", "m", CallUsage(input_tokens=14))), is_hidden=True)
    log.store_texts("y is blue.")
    log.store_events(*closing_events(output_tokens=5))
    turn = log.turn
    assert turn.text == "The sky is blue."
    assert len(turn.blocks) == 1
    assert turn.usage == Usage(input_tokens=24, output_tokens=2 + 5)
    assert (turn.attempt, turn.mode) == (2, "continue")
    assert turn.message is not None
    assert turn.message.id == "msg_1"


@pytest.mark.rule("R21")
@pytest.mark.rule("R23")
def test_a_restart_drops_the_blocks_so_far_and_keeps_what_they_cost() -> None:
    log = started_turn("The sk")
    for text in ("Bl", "Blue."):
        log.store_attempt("restart")
        log.store_events(*opening_events(), BlockDelta(0, TextDelta(text)), *closing_events(output_tokens=1))
    turn = log.turn
    assert (turn.text, turn.mode) == ("Blue.", "restart")
    assert turn.usage == Usage(input_tokens=30, output_tokens=2 + 1 + 1)


@pytest.mark.rule("R60")
@pytest.mark.parametrize(
    ("block", "deltas"),
    [
        ({"type": "text", "text": "The "}, [TextDelta("sky"), TextDelta(".")]),
        (TOOL_START, [events.InputJsonDelta('{"a"'), events.InputJsonDelta(":1}")]),
    ],
    ids=["text", "call"],
)
def test_a_misfit_keeps_the_rejected_text_or_the_arguments_of_a_rejected_call(
    block: dict[str, Any], deltas: list[events.Delta]
) -> None:
    """The next call names it, also if another generator makes that call."""
    log = attempted_turn(opening_events()[0], BlockStart(0, block), *(BlockDelta(0, delta) for delta in deltas))
    log.store_events(*closing_events(output_tokens=2))
    log.store(msgspec.structs.replace(attempt(log.chain, "restart"), misfit="no JSON"))
    log.store_events(*opening_events())
    log.store_texts("{")
    log.store_attempt("restart")
    rejected = "The sky." if block["type"] == "text" else '{"a":1}'
    assert (log.turn.text, log.turn.misfit, log.turn.rejected) == ("", "no JSON", rejected)


@pytest.mark.rule("R19")
def test_an_old_attempt_that_writes_on_is_skipped() -> None:
    log = started_turn("The sk")
    late = log.chain
    log.store_attempt("continue")
    log.store(text_delta(late, "LATE"))
    log.store_texts("y")
    assert (log.turn.text, log.turn.skipped) == ("The sky", 1)


@pytest.mark.rule("R25")
def test_a_message_delta_without_a_stop_reason_keeps_the_earlier_one() -> None:
    """Otherwise the complete answer would be paid for again. Its usage counts."""
    log = started_turn("The sky")
    log.store_events(*closing_events(output_tokens=2))
    log.store_events(events.MessageDelta(events.StopReason(), UsageSoFar(output_tokens=3)))
    assert (log.turn.stop.stop_reason, log.turn.usage.output_tokens) == ("end_turn", 3)


@pytest.mark.rule("R24")
def test_an_end_proves_its_text_usage_and_cost() -> None:
    """Code points, SHA-256 of the UTF-8, the sum of all calls, and what they cost in nano-dollars."""
    log = completed_turn("Grüße, ", "世界 🌍")
    end = log.turn.end
    assert end is not None
    assert (end.text_chars, end.text_sha256) == text_proof("Grüße, 世界 🌍")
    assert end.text_chars == 11
    assert end.usage == Usage(10, 2)
    assert end.cost_nano_usd == 10 * 2000 + 2 * 10000
    assert end.stop_reason == "end_turn"


def test_the_record_keeps_the_fields_of_a_message_that_it_does_not_know() -> None:
    """Also what is newer than this version; of the attempt that counts, its latest words, and nothing that is null."""
    log = Handwritten()
    log.store_request()
    for tier, edits in (("batch", [1]), ("standard", [])):
        log.store_attempt("restart")
        _, block = opening_events()
        usage = {"input_tokens": 10, "output_tokens": 1, "service_tier": tier, "inference_geo": "eu"}
        log.store(event_entry(log, {"type": "message_start", "message": {"id": "m", "model": "c", "usage": usage}}))
        log.store_events(block)
        stop = {"stop_reason": "stop_sequence", "stop_sequence": "END", "stop_details": None}
        delta = stop | {"container": {"id": "c1"}}
        usage = {"output_tokens": 2, "inference_geo": "us", "server_tool_use": {"web_search_requests": 1}}
        usage |= {"of_the_first_answer": 1} if tier == "batch" else {}
        managed = {"applied_edits": edits}
        log.store(
            event_entry(log, {"type": "message_delta", "delta": delta, "usage": usage, "context_management": managed})
        )
    log.end()
    record = record_from_fold(KEY, log.turn)
    assert (record.stop_reason, record.stop_sequence) == ("stop_sequence", "END")
    assert record.envelope == {
        "delta": {"container": {"id": "c1"}},
        # Both calls have searched the web, and both are paid.
        "usage": {"service_tier": "standard", "inference_geo": "us", "server_tool_use": {"web_search_requests": 2}},
        "context_management": {"applied_edits": []},
    }
    assert record_from_fold(KEY, completed_turn("hi").turn).envelope == {}


def event_entry(log: Handwritten, what: object) -> EventEntry:
    return EventEntry(prev=log.chain.last, attempt=log.chain.attempt, event=raw(what))


@pytest.mark.rule("R23")
def test_each_call_is_priced_by_its_own_prompt() -> None:
    """Two calls of 60,000 tokens are no long prompt, though they are 120,000 together."""
    log = Handwritten()
    log.store_request(model="claude-haiku-5-5")
    for mode in ("fresh", "restart"):
        log.store_attempt(mode)
        log.store_events(*opening_events(60_000, "claude-haiku-5-5"), *closing_events(output_tokens=1))
    assert build_end(log.turn, "completed").cost_nano_usd == 2 * (60_000 * 100 + 500)


@pytest.mark.rule("R24")
def test_a_proof_is_a_count_and_a_hash() -> None:
    """The hash of nothing is SHA-256's well-known one; a lone surrogate has a hash, too."""
    assert text_proof("") == (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    assert text_proof("\ud800")[0] == 1


@pytest.mark.rule("R23")
def test_a_failed_turn_says_why() -> None:
    log = Handwritten()
    log.store_request(model="claude-unheard-of")
    log.end("failed", Failure("model_not_found", "no such model"))
    assert log.turn.error == Failure("model_not_found", "no such model")
    assert build_end(log.turn, "failed").cost_nano_usd == 0


BLOCKS: list[tuple[dict[str, Any], list[events.Delta], dict[str, Any]]] = [
    ({"type": "text", "text": "A"}, [TextDelta("B")], {"type": "text", "text": "AB"}),
    (
        {"type": "text", "text": ""},
        [TextDelta("A"), events.CitationsDelta({"cited_text": "B"})],
        {"type": "text", "text": "A", "citations": [{"cited_text": "B"}]},
    ),
    (
        {"type": "text", "text": "", "citations": [{"cited_text": "A"}]},
        [TextDelta("A"), events.CitationsDelta({"cited_text": "B"})],
        {"type": "text", "text": "A", "citations": [{"cited_text": "A"}, {"cited_text": "B"}]},
    ),
    (
        {"type": "thinking", "thinking": "", "signature": ""},
        [events.ThinkingDelta("A"), events.ThinkingDelta("B"), events.SignatureDelta("S")],
        {"type": "thinking", "thinking": "AB", "signature": "S"},
    ),
    (TOOL_START, [events.InputJsonDelta('{"a":'), events.InputJsonDelta(" 1}")], TOOL_START | {"input": {"a": 1}}),
    (TOOL_START, [], TOOL_START),
    (TOOL_START, [events.InputJsonDelta('{"a":')], TOOL_START),
    (TOOL_START | {"input": {"a": 1}}, [], TOOL_START | {"input": {"a": 1}}),
    ({"type": "tool_use", "id": "t", "name": "n"}, [], TOOL_START),
    (SERVER_TOOL, [events.InputJsonDelta('{"a":1}')], SERVER_TOOL | {"input": {"a": 1}}),
    (MCP_TOOL, [events.InputJsonDelta('{"a":1}')], MCP_TOOL | {"input": {"a": 1}}),
    ({"type": "redacted_thinking", "data": "x"}, [], {"type": "redacted_thinking", "data": "x"}),
]


@pytest.mark.rule("R25")
@pytest.mark.parametrize(("start", "deltas", "whole"), BLOCKS)
def test_a_folded_block_equals_the_block_of_a_response_without_a_stream(
    start: dict[str, Any], deltas: list[events.Delta], whole: dict[str, Any]
) -> None:
    """Text with citations, thinking with its signature, a tool's input as JSON, and what we do not know as it came."""
    log = attempted_turn(BlockStart(0, start), *(BlockDelta(0, delta) for delta in deltas))
    assert [content(block) for block in log.turn.blocks] == [whole]


@pytest.mark.rule("R7")
@pytest.mark.parametrize(("levels", "is_kept"), [(59, True), (60, False), (990, False), (100_000, False)])
def test_an_input_that_is_nested_too_deeply_is_left_empty(levels: int, *, is_kept: bool) -> None:
    """Deltas carry it as text, so its levels were not counted before; the next turn's request must contain it."""
    log = attempted_turn(BlockStart(0, TOOL_START))
    log.store_events(BlockDelta(0, events.InputJsonDelta('{"a":' * levels + "1" + "}" * levels)))
    assert [content(block)["input"] != {} for block in log.turn.blocks] == [is_kept]


@pytest.mark.parametrize(
    ("text", "is_closed", "stop_reason", "mark"),
    [
        ('{"a":1}', True, "tool_use", {}),
        ("", True, "tool_use", {}),
        ('{"a":', True, "max_tokens", {"partial_json": '{"a":'}),
        ("", True, "budget", {"partial_json": ""}),
        ("", True, "max_cost", {"partial_json": ""}),
        ("", True, "model_context_window_exceeded", {"partial_json": ""}),
        ('{"a":', False, None, {"partial_json": '{"a":'}),
        ("", False, None, {"partial_json": ""}),
        # The API refuses an input that is no object, and with it every later turn of the session.
        ("[1]", True, "tool_use", {"partial_json": "[1]"}),
    ],
)
def test_a_record_marks_a_tool_call_that_was_cut(
    text: str, is_closed: bool, stop_reason: str | None, mark: dict[str, str]
) -> None:
    """Otherwise it looks like a call without arguments. Anthropic's API does not know the mark."""
    log = attempted_turn(opening_events()[0], BlockStart(0, TOOL_START))
    log.store_events(BlockDelta(0, events.InputJsonDelta(text)), *([BlockStop(0)] if is_closed else []))
    if stop_reason is not None:
        log.store_events(events.MessageDelta(events.StopReason(stop_reason), UsageSoFar(output_tokens=3)))
        log.end()
    record = record_from_fold(KEY, log.turn)
    whole = {**TOOL_START, "input": {"a": 1} if text == '{"a":1}' else {}}
    assert record.content == [whole | mark]
    assert message_of(record)["content"] == [whole]
    assert b"partial_json" not in render_record(record, 0).data.replace(b'"input_json_delta","partial_json"', b"")


@pytest.mark.parametrize("is_closed", [True, False])
def test_an_input_that_came_with_the_start_of_its_call_is_whole(*, is_closed: bool) -> None:
    log = attempted_turn(BlockStart(0, TOOL_START | {"input": {"a": 1}}), *([BlockStop(0)] if is_closed else []))
    assert contents(log.turn.blocks, "max_tokens") == [TOOL_START | {"input": {"a": 1}}]


def test_a_result_finds_the_last_call_of_a_server_tool_with_its_id() -> None:
    """Not a call of the client's tool, and not a block of another type with the same id."""
    log = attempted_turn(
        *(
            BlockStart(index, one)
            for index, one in enumerate((SERVER_TOOL | {"name": "first"}, SERVER_TOOL, TOOL_START))
        ),
        BlockStart(3, SERVER_TOOL | {"id": "u"}),
        BlockStart(4, {"type": "text", "id": "t", "text": ""}),
    )
    folding = Folding(log.turn)
    found = [folding.find_call(name) for name in ("t", "u", "v")]
    assert [one and one.start for one in found] == [SERVER_TOOL, SERVER_TOOL | {"id": "u"}, None]


@pytest.mark.rule("R111")
def test_the_mark_of_a_tool_call_that_was_cut_is_not_sent_to_the_model() -> None:
    """The API refuses unknown fields. The client may have answered the call."""
    log = attempted_turn(opening_events()[0], BlockStart(0, TOOL_START), BlockStop(0))
    log.store_events(events.MessageDelta(events.StopReason("max_tokens"), UsageSoFar(output_tokens=3)))
    log.end()
    assert messages([record_from_fold(KEY, log.turn)])[-1].content == [TOOL_START]


def without_position(turn: Turn) -> tuple[object, ...]:
    """All of a turn but where it stands in the stream."""
    return (turn.text, turn.usage, turn.blocks, turn.stop, turn.mode, turn.attempt, turn.outcome, turn.message)


@pytest.mark.rule("R7")
def test_an_entry_of_a_newer_kind_changes_nothing_but_the_position() -> None:
    log = started_turn("The sk")
    before = log.turn
    log.store(Unknown(prev=log.chain.last, attempt=1))
    assert without_position(log.turn) == without_position(before)
    assert log.turn.chain.last == log.stored[-1].seq


@pytest.mark.rule("R25")
@given(logs(), st.data())
def test_folding_a_prefix_and_then_the_rest_is_folding_all(log: MadeUp, data: st.DataObject) -> None:
    turn, rest = EMPTY_TURN, log.stored
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        turn, rest = fold(rest[:count], turn), rest[count:]
    assert turn == fold(log.stored)


@pytest.mark.rule("R11")
@given(logs())
def test_forks_and_junk_change_nothing_but_their_count(log: MadeUp) -> None:
    turn = fold(log.stored)
    assert without_position(turn) == without_position(fold(log.valid))
    assert turn.chain == fold(log.valid).chain
    assert turn.skipped == len(log.stored) - len(log.valid)
    assert turn.tail == log.stored[-1].seq


@pytest.mark.rule("R9")
@given(logs(has_forks=False), st.data())
def test_splitting_deltas_changes_nothing(log: MadeUp, data: st.DataObject) -> None:
    spoken: list[EventEntry | events.Event] = []
    for event in answers(log.valid):
        match events.decode(event.event):
            case BlockDelta(index, TextDelta(text)) if len(text) > 1:
                at = data.draw(st.integers(1, len(text) - 1))
                spoken += [BlockDelta(index, TextDelta(text[:at])), BlockDelta(index, TextDelta(text[at:]))]
            case _:
                spoken.append(event)
    assert without_position(fold_of_one_attempt(log.valid, spoken)) == without_position(
        fold_of_one_attempt(log.valid, list(answers(log.valid)))
    )


def answers(valid: list[StoredEntry]) -> list[EventEntry]:
    return [stored.entry for stored in valid if isinstance(stored.entry, EventEntry)]


def fold_of_one_attempt(valid: list[StoredEntry], spoken: list[EventEntry | events.Event]) -> Turn:
    """The fold of one attempt that stored all of `spoken`."""
    log = Handwritten()
    log.store(valid[0].entry)
    log.store_attempt()
    for one in spoken:
        if isinstance(one, EventEntry):
            log.store(msgspec.structs.replace(one, prev=log.chain.last, attempt=log.chain.attempt))
        else:
            log.store_events(one)
    return log.turn


@pytest.mark.rule("R25")
@given(logs())
def test_the_text_joins_the_text_blocks_since_the_last_restart(log: MadeUp) -> None:
    """A second, plainer way to the same text: one list of strings, from the valid entries alone."""
    texts: list[list[str]] = []
    types: list[str] = []
    for stored in log.valid:
        match stored.entry:
            case EventEntry(event=raw):
                match events.decode(raw):
                    case BlockStart(_, block):
                        types.append(block["type"])
                        texts.append([])
                    case BlockDelta(index, TextDelta(piece)) if index < len(texts) and types[index] == "text":
                        texts[index].append(piece)
            case Request() | End():
                pass
            case _ if getattr(stored.entry, "mode", "continue") != "continue":
                types, texts = [], []
    text = "".join("".join(pieces) for type_, pieces in zip(types, texts, strict=True) if type_ == "text")
    assert fold(log.stored).text == text


@pytest.mark.rule("R23")
@given(st.lists(st.tuples(st.integers(0, 99), st.lists(st.integers(0, 99), max_size=3)), min_size=1, max_size=4))
def test_usage_is_the_sum_of_each_calls_last_word(calls: list[tuple[int, list[int]]]) -> None:
    """Within a call the counts are cumulative; over calls they are summed, whatever the mode was."""
    log = Handwritten()
    log.store_request()
    for number, (input_tokens, outputs) in enumerate(calls):
        log.store_attempt("continue" if number % 2 else "restart")
        log.store_events(events.MessageStart(events.MessageHead(usage=CallUsage(input_tokens))), is_hidden=number > 0)
        log.store_events(
            *(events.MessageDelta(events.StopReason(), UsageSoFar(output_tokens=count)) for count in outputs)
        )
    assert log.turn.usage == Usage(
        sum(input_tokens for input_tokens, _ in calls), sum(outputs[-1] for _, outputs in calls if outputs)
    )


@pytest.mark.rule("R23")
def test_usage_of_a_broken_call_is_estimated() -> None:
    """Its text was paid for: two tokens for seven bytes, until the model reports its own count."""
    log = attempted_turn(*opening_events(input_tokens=10))
    assert (log.turn.usage, log.turn.is_usage_estimated) == (Usage(10), False)
    log.store_texts("seven b", "天空")
    assert (log.turn.usage, log.turn.is_usage_estimated) == (Usage(10, 4), True)
    log.store_attempt("continue")
    log.store_events(*opening_events(input_tokens=20)[:1], is_hidden=True)
    log.store_texts("x" * 70)
    assert log.turn.usage == Usage(30, 24)
    log.store_events(*closing_events(output_tokens=5))
    log.end()
    assert (log.turn.usage, log.turn.is_usage_estimated) == (Usage(30, 9), True)
    assert log.turn.end is not None
    assert (log.turn.end.usage, log.turn.end.usage_is_estimated) == (Usage(30, 9), True)


@pytest.mark.rule("R23")
def test_an_estimate_never_lowers_the_reported_usage() -> None:
    """Thoughts that are not shown are counted, too."""
    log = attempted_turn(events.MessageStart(events.MessageHead(usage=CallUsage(10, 50))), opening_events()[1])
    log.store_texts("short")
    assert log.turn.usage == Usage(10, 50)


@pytest.mark.rule("R25")
def test_deltas_and_stops_without_a_block_are_passed_over() -> None:
    log = started_turn("A")
    log.store_events(BlockDelta(7, TextDelta("x")), BlockDelta(-1, TextDelta("y")), BlockStop(7), BlockStop(-1))
    assert log.turn.text == "A"
    assert not log.turn.blocks[0].is_closed


@pytest.mark.rule("R25")
@pytest.mark.parametrize(("start", "whole"), [(start, whole) for start, deltas, whole in BLOCKS if not deltas])
@pytest.mark.parametrize(
    "delta", [TextDelta("x"), events.CitationsDelta({"cited_text": "x"}), events.SignatureDelta("x")]
)
def test_a_delta_that_does_not_fit_its_block_is_passed_over(
    start: dict[str, Any], whole: dict[str, Any], delta: events.Delta
) -> None:
    """A tool's block holds no text, and what was not said is not counted either."""
    log = started_turn("A")
    before = log.turn
    log.store_events(BlockStart(1, start), BlockDelta(1, delta), BlockDelta(0, events.ThinkingDelta("x")))
    assert [content(block) for block in log.turn.blocks] == [{"type": "text", "text": "A"}, whole]
    assert log.turn.unreported_bytes == before.unreported_bytes


@pytest.mark.rule("R71")
def test_working_time_is_the_time_of_attempts() -> None:
    """Without the time in the queue, between attempts, and of forks."""
    log = started_turn("a", "b", step=10)
    assert log.turn.worked_s == 40
    log.store_attempt("continue")
    assert log.turn.worked_s == 40
    log.store_texts("c")
    log.store(junk())
    assert log.turn.worked_s == 50
    log.store_events(*closing_events(3))
    log.end()
    assert log.turn.worked_s == 90
    cancelled = Handwritten(step=10)
    cancelled.store_request()
    cancelled.end("cancelled")
    assert cancelled.turn.worked_s == 0


@pytest.mark.rule("R110")
def test_the_first_entries_and_the_end_give_the_record_of_all_entries() -> None:
    """The recorder does not read the deltas of an ended turn."""
    log = completed_turn("The sky", " is", " blue.")
    end, whole = log.stored[-1], log.turn
    first = [log.stored[0], *[one for one in log.stored if isinstance(one.entry, EventEntry)][:FIRST_EVENTS]]
    found = fold_first_and_end(first, end)
    assert found is not None
    assert record_from_fold(KEY, found) == record_from_fold(KEY, whole)
    assert (found.chain, found.tail, found.last_entry_at) == (whole.chain, whole.tail, whole.last_entry_at)
    assert fold_first_and_end(first[:-1], end) is None


@pytest.mark.rule("R110")
def test_the_record_has_the_last_attempt_of_an_answer_that_was_continued() -> None:
    log = started_turn("The")
    first = list(log.stored)
    log.store_attempt("continue")
    log.store_texts(" sky")
    log.store_events(*closing_events(3))
    log.end()
    found = fold_first_and_end(first, log.stored[-1])
    assert found is not None
    assert found.chain == log.turn.chain


@pytest.mark.parametrize(
    ("block", "is_executed"),
    [
        ({"type": "server_tool_use", "executed_by": "claude_code"}, True),
        ({"type": "server_tool_use"}, False),
        ({"type": "tool_use", "executed_by": "claude_code"}, False),
        ({}, False),
    ],
)
def test_an_executed_tool_is_a_server_tool_that_names_its_executor(block: dict[str, str], is_executed: bool) -> None:
    assert is_executed_tool(block) is is_executed


def test_the_newest_progress_is_that_of_the_batch() -> None:
    log = started_turn()
    for done in (1, 2):
        progress = Progress(prev=log.chain.last, attempt=1, done=done, failed=0, of=2)
        log.store(progress)
    assert log.turn.progress == progress


def test_the_trace_of_a_turn_is_that_of_its_last_attempt() -> None:
    log = started_turn()
    for traceparent in ("00-a-b-01", "00-c-d-01"):
        log.store(msgspec.structs.replace(attempt(log.chain), traceparent=traceparent))
    assert log.turn.attempt_traceparent == "00-c-d-01"


@pytest.mark.parametrize("split", range(2, 9))
def test_an_answer_has_moved_forward_with_each_character_and_each_closed_block(split: int) -> None:
    """A second stop of a block is no progress; neither is the number of entries that one fold reads."""
    log = attempted_turn(BlockStart(0, {"type": "text", "text": "ab"}), BlockDelta(0, TextDelta("c")), BlockStop(0))
    log.store_events(BlockStop(0), BlockStart(1, {"type": "text", "text": ""}), BlockDelta(1, TextDelta("de")))
    turn = fold(log.stored[split:], fold(log.stored[:split]))
    assert (turn.furthest, turn.fruitless) == (6, 0)


def test_usage_stays_estimated_when_a_later_call_reports_its_own() -> None:
    log = started_turn("a")
    log.store_attempt("continue")
    log.store_events(events.MessageDelta(events.StopReason("end_turn"), UsageSoFar(output_tokens=3)))
    log.store_attempt("continue")
    assert log.turn.is_usage_estimated


@pytest.mark.rule("R116")
@pytest.mark.parametrize(
    ("start", "deltas", "folded"),
    [
        (
            {"type": "compaction", "content": None},
            [{"content": None}, {"content": "The user ", "encrypted_content": "E1"}, {"content": "maps.", "newer": 1}],
            {"type": "compaction", "content": "The user maps.", "encrypted_content": "E1", "newer": 1},
        ),
        (
            {"type": "compaction", "content": None},
            [{"content": "x", "encrypted_content": "E1"}, {"encrypted_content": "E2"}, {"encrypted_content": None}],
            {"type": "compaction", "content": "x", "encrypted_content": "E2"},
        ),
        ({"type": "newer", "parts": [1]}, [{"parts": [2]}, {"parts": [3]}], {"type": "newer", "parts": [1, 2, 3]}),
        ({"type": "text", "text": "Hello"}, [{"mark": {"a": 1}}], {"type": "text", "text": "Hello", "mark": {"a": 1}}),
    ],
)
def test_deltas_of_other_types_change_the_fields_of_their_block(
    start: dict[str, Any], deltas: list[dict[str, Any]], folded: dict[str, Any]
) -> None:
    """Through the log, the `end` and the database: nothing that the model has sent is lost."""
    log = attempted_turn(events.MessageStart(events.MessageHead("msg_1", "m")), BlockStart(0, start))
    for fields in deltas:
        delta = {"type": "compaction_delta"} | fields
        one = raw({"type": "content_block_delta", "index": 0, "delta": delta})
        log.store(EventEntry(prev=log.chain.last, attempt=1, event=one))
    log.store_events(BlockStop(0), events.MessageDelta(events.StopReason("end_turn"), UsageSoFar(output_tokens=1)))
    end = msgspec.json.decode(msgspec.json.encode(build_end(log.turn, "completed")), type=End)
    assert content(log.turn.blocks[0]) == folded
    assert end.blocks is not None
    assert content(end.blocks[0]) == folded


@pytest.mark.rule("R117")
def test_a_hidden_stop_reason_is_a_pause_and_not_the_end_of_the_answer() -> None:
    log = attempted_turn(
        events.MessageStart(events.MessageHead("msg_1", "m")), BlockStart(0, SERVER_TOOL), BlockStop(0)
    )
    pause = events.MessageDelta(events.StopReason("pause_turn"), UsageSoFar(output_tokens=7))
    log.store_events(pause, is_hidden=True)
    assert (log.turn.is_paused, log.turn.stop.stop_reason, log.turn.usage.output_tokens) == (True, None, 7)
    log.store_attempt("continue")
    log.store_events(BlockStart(1, {"type": "text", "text": ""}))
    assert (log.turn.is_paused, log.turn.pauses) == (False, (1,))
    log.store_attempt("restart")
    assert log.turn.pauses == ()


@pytest.mark.rule("R118")
def test_the_causes_of_attempts_are_folded_without_pauses() -> None:
    log = attempted_turn()
    for cause in ("backend_broken", "pause_turn", None, "backend_unreadable"):
        log.store(msgspec.structs.replace(attempt(log.chain, "continue"), cause=cause))
    assert log.turn.causes == ("backend_broken", "backend_unreadable")
